//! `cargo xtask tidy`: what no compiler checks and a reader relies on.
//!
//! Each check looks at the whole tree, read once, and returns its problems; none of them stops another.
//! A problem names the place, what is there and what would be right, one line each, in the form that
//! editors jump to.

mod layers;
mod links;
mod readme;
mod sources;

use std::fmt;
use std::fs;
use std::path::Path;

use crate::{Outcome, repo};

/// Folders that hold what programs made, by their path from the root.
const GENERATED: [&str; 7] = [
    ".git",
    "target",
    "docs/book",
    "fuzz/target",
    "fuzz/corpus",
    "fuzz/artifacts",
    "fuzz/coverage",
];

/// Checks everything and prints each problem.
pub(crate) fn run() -> Outcome {
    let tree = Tree::read(repo::root())?;
    let members = layers::members(&repo::metadata()?, &tree);
    let mut problems = layers::dependencies(&members);
    problems.extend(layers::page(&tree, &members));
    problems.extend(sources::check(&tree));
    problems.extend(links::check(&tree));
    problems.extend(readme::check(&tree));
    problems.sort();
    for problem in &problems {
        println!("{problem}");
    }
    match problems.len() {
        0 => Ok(()),
        1 => Err("1 thing is untidy".to_owned()),
        n => Err(format!("{n} things are untidy")),
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    path: String,
    line: usize,
    what: String,
    right: String,
}

impl Problem {
    fn new(path: &str, line: usize, what: impl Into<String>, right: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into(), right: right.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; {}", self.path, self.line, self.what, self.right)
    }
}

/// The files of the repository, with the text of those that are text.
#[derive(Debug, Default)]
struct Tree {
    files: Vec<File>,
}

#[derive(Debug)]
struct File {
    /// From the root, with `/`.
    path: String,
    text: Option<String>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self, String> {
        let mut tree = Self::default();
        tree.read_folder(root, "")
            .map_err(|error| format!("cannot read {}: {error}", root.display()))?;
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(tree)
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str) -> std::io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if GENERATED.contains(&path.as_str()) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                self.read_folder(&entry.path(), &format!("{path}/"))?;
            } else {
                let bytes = fs::read(entry.path()).unwrap_or_default();
                self.files.push(File { path, text: String::from_utf8(bytes).ok() });
            }
        }
        Ok(())
    }

    /// Every text file with this end to its name, as path and text.
    fn texts(&self, end: &'static str) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter(move |file| file.path.ends_with(end))
            .filter_map(|file| Some((file.path.as_str(), file.text.as_deref()?)))
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path)?.text.as_deref()
    }

    /// Whether a file or a folder is there.
    fn has(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        path.is_empty()
            || self.files.iter().any(|file| file.path == path || file.path.starts_with(&folder))
    }
}

#[cfg(test)]
impl Tree {
    /// A tree of made-up files.
    fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| File {
            path: (*path).to_owned(),
            text: Some((*text).to_owned()),
        };
        Self { files: files.iter().map(file).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_with_its_place_and_the_remedy() {
        let problem = Problem::new("a/b.md", 7, "link to c.md, which is not there", "remove it");
        assert_eq!(problem.to_string(), "a/b.md:7: link to c.md, which is not there; remove it");
    }

    #[test]
    fn the_tree_holds_the_sources_and_nothing_generated() {
        let tree = Tree::read(repo::root()).expect("the repository can be read");
        assert!(tree.has("xtask/src/tidy.rs") && tree.has("xtask/src") && tree.has("Cargo.toml"));
        assert!(!tree.has("target") && !tree.has(".git"));
        assert!(tree.text("xtask/src/tidy.rs").is_some_and(|text| text.starts_with("//!")));
        assert!(!tree.has("xtask/src/tid"), "a part of a name is not a name");
    }
}
