//! What every file of the repository keeps to.
//!
//! A Rust file starts by telling what it is; a file that has grown past one idea says why; nothing names
//! a folder that exists on one person's machine only; nothing says that it will be written later.

use super::{Problem, Tree};

/// Lines after which a file needs a reason.
const LONG: usize = 1_500;

/// Files that are longer, each with the reason.
const MAY_BE_LONG: &[(&str, &str)] = &[
    ("Cargo.lock", "written by cargo"),
    ("fuzz/Cargo.lock", "written by cargo"),
    ("docs/src/ultra-perf.schema.json", "made of the keys of the configuration"),
];

/// Texts that a file must not hold, and what would be right. Put together from parts, since this file
/// is checked too.
const PRIVATE: [&str; 4] =
    [concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];
/// Whom tests and examples mean when they need somebody's folder.
const MADE_UP: &str = concat!("/ho", "me/me/");
const UNWRITTEN: [&str; 2] = [concat!("to", "do!("), concat!("unimple", "mented!(")];

/// Runs the checks of this file over the tree.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    check_against(MAY_BE_LONG, tree)
}

fn check_against(may_be_long: &[(&str, &str)], tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in tree.texts("") {
        if path.ends_with(".rs") && !text.starts_with("//!") {
            let right = "start it with `//!` and what the file is and how it works";
            problems.push(Problem::new(path, 1, "has no head", right));
        }
        let lines = text.lines().count();
        let reason = may_be_long.iter().find(|(long, _)| *long == path);
        if lines > LONG && reason.is_none() {
            let right =
                "split it at a joint, or list it with a reason in xtask/src/tidy/sources.rs";
            problems.push(Problem::new(path, lines, format!("has {lines} lines"), right));
        }
        for (index, line) in text.lines().enumerate() {
            if let Some(folder) = PRIVATE.iter().find(|folder| names_folder(line, folder)) {
                let what = format!("names a folder under {folder}");
                let right = "say it relative to the repository, or with a folder every machine has";
                problems.push(Problem::new(path, index + 1, what, right));
            }
            if let Some(macro_call) = UNWRITTEN.iter().find(|call| line.contains(**call)) {
                let what = format!("calls {macro_call})");
                problems.push(Problem::new(path, index + 1, what, "write it, or leave it out"));
            }
        }
    }
    problems
}

/// Whether a line names a path that starts with `folder`, as opposed to one that holds it further on,
/// such as the path of a URL.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        if line[at..].starts_with(MADE_UP) {
            return false;
        }
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-~/:$}{)*".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the problems of one file, each as `line: what`.
    fn check_file(path: &str, text: &str, expected: &[&str]) {
        let problems = check_against(&[("long.md", "a list")], &Tree::of(&[(path, text)]));
        let found: Vec<String> =
            problems.iter().map(|problem| format!("{}: {}", problem.line, problem.what)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_rust_file_without_a_head_is_found_and_others_need_none() {
        check_file("a.rs", "//! Tells.\nfn a() {}\n", &[]);
        check_file("a.rs", "fn a() {}\n//! Late.\n", &["1: has no head"]);
        check_file("a.rs", "", &["1: has no head"]);
        check_file("a.toml", "[a]\n", &[]);
    }

    #[test]
    fn a_long_file_needs_a_reason() {
        let text = "x\n".repeat(LONG + 1);
        check_file("a.md", &"x\n".repeat(LONG), &[]);
        check_file("a.md", &text, &["1501: has 1501 lines"]);
        check_file("long.md", &text, &[]);
    }

    #[test]
    fn folders_of_one_machine_are_found_and_paths_of_urls_are_not() {
        let [home, work, root, users] = PRIVATE;
        check_file(
            "a.md",
            &format!("see {home}ann/x\n"),
            &[&format!("1: names a folder under {home}")],
        );
        check_file(
            "a.md",
            &format!("\n`{work}x`\n"),
            &[&format!("2: names a folder under {work}")],
        );
        check_file(
            "a.md",
            &format!("\"{root}x\"\n"),
            &[&format!("1: names a folder under {root}")],
        );
        check_file("a.md", &format!("{users}x\n"), &[&format!("1: names a folder under {users}")]);
        check_file("a.md", &format!("http://a.b{home}x and $X{work}y\n"), &[]);
        check_file("a.md", &format!("{MADE_UP}.cache\n"), &[]);
    }

    #[test]
    fn what_is_not_written_yet_is_found() {
        for call in UNWRITTEN {
            let text = format!("//! Head.\nfn a() {{ {call}) }}\n");
            check_file("a.rs", &text, &[&format!("2: calls {call})")]);
        }
    }

    #[test]
    fn every_reason_for_a_long_file_has_its_long_file() {
        let tree = Tree::read(crate::repo::root()).expect("the repository can be read");
        for (path, _) in MAY_BE_LONG {
            let lines = tree.text(path).map_or(0, |text| text.lines().count());
            assert!(lines > LONG, "{path} has {lines} lines and needs no reason");
        }
    }
}
