//! Relative links of Markdown files, which break silently when a file moves.
//!
//! Inline links, images and reference definitions are looked at; code blocks and code spans are not, and
//! neither are links with a scheme. A fragment is cut off: the file has to be there, its headings are
//! not read.

use super::{Problem, Tree};

/// Finds the relative links that lead nowhere.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in tree.texts(".md") {
        for (line, target) in links(text) {
            let file = target.split(['#', '?']).next().unwrap_or_default();
            if has_scheme(target) || file.is_empty() {
                continue;
            }
            if !resolve(path, file).is_some_and(|file| tree.has(&file)) {
                let what = format!("links to {target}, which is not there");
                problems.push(Problem::new(path, line, what, "link to a file of the repository"));
            }
        }
    }
    problems
}

/// The targets of all links, with their lines.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    let mut fence: Option<&str> = None;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let opens = ["```", "~~~"].into_iter().find(|mark| trimmed.starts_with(mark));
        match (fence, opens) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            (None, None) => {
                for piece in line.split('`').step_by(2) {
                    let targets =
                        piece.split("](").skip(1).filter_map(|rest| rest.split(')').next());
                    links.extend(targets.map(|target| (index + 1, target)));
                }
                if let Some((_, target)) = line.split_once("]: ").filter(|_| line.starts_with('['))
                {
                    links.push((index + 1, target));
                }
            }
            _ => {}
        }
    }
    // A target may be followed by a title and stand in angle brackets.
    links
        .into_iter()
        .filter_map(|(line, target)| Some((line, target.split_whitespace().next()?)))
        .map(|(line, target)| (line, target.trim_start_matches('<').trim_end_matches('>')))
        .collect()
}

fn has_scheme(target: &str) -> bool {
    let scheme = target.split(['/', '#', '?']).next().unwrap_or_default();
    target.starts_with("//") || scheme.contains(':')
}

/// The path from the root of what a file links to; `None` where that is outside.
fn resolve(from: &str, target: &str) -> Option<String> {
    let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    if target.starts_with('/') { None } else { Some(parts.join("/")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a page at `docs/src/page.md` in a small tree and compares the dead links, as `line target`.
    fn check_page(text: &str, expected: &[&str]) {
        let tree = Tree::of(&[
            ("README.md", ""),
            ("docs/src/page.md", text),
            ("docs/src/other.md", ""),
            ("crates/cli/src/main.rs", ""),
        ]);
        let dead: Vec<String> = check(&tree)
            .iter()
            .map(|problem| {
                let target = problem.what.strip_prefix("links to ").expect("what it says");
                format!("{} {}", problem.line, target.split(',').next().unwrap_or_default())
            })
            .collect();
        assert_eq!(dead, expected);
    }

    #[test]
    fn a_link_to_a_file_or_a_folder_is_alive() {
        check_page(
            "[a](other.md) and ![b](./other.md \"title\"), [c](../../README.md#part)\n\
             [d](../../crates/cli) [e](../../crates/cli/) [f](<other.md>)\n\
             [g]: other.md\n",
            &[],
        );
    }

    #[test]
    fn a_link_to_nothing_is_dead_wherever_it_stands() {
        check_page(
            "text\n- [a](gone.md), [b](other.md), [c](../gone/)\n[d]: gone.md#part\n",
            &["2 gone.md", "2 ../gone/", "3 gone.md#part"],
        );
    }

    #[test]
    fn a_link_out_of_the_repository_is_dead() {
        check_page("[a](../../../x.md) [b](/README.md)\n", &["1 ../../../x.md", "1 /README.md"]);
    }

    #[test]
    fn addresses_and_parts_of_the_page_are_left_alone() {
        check_page("[a](https://example.org/x) [b](mailto:a@b.c) [c](#part) [d](//host/x)\n", &[]);
    }

    #[test]
    fn code_holds_no_links() {
        check_page(
            "`[a](gone.md)` and `x` [b](gone.md)\n```text\n[c](gone.md)\n```\n~~~\n```\n[d](gone.md)\n~~~\n",
            &["1 gone.md"],
        );
    }
}
