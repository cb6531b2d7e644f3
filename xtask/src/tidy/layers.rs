//! The layers: which crate may depend on which, and the page that says so to people.
//!
//! [`LAYERS`] is the table. It governs normal and build dependencies, optional ones included, between
//! members of the workspace; development dependencies, `xtask` and everything under `benches/` may see
//! everything. A crate that is not in the table may see nothing. The page must list every member's folder
//! once, with its package and, for a crate, exactly what the table allows, so that neither can change
//! without the other.

use std::collections::BTreeMap;

use cargo_metadata::{DependencyKind, Metadata};

use super::{Problem, Tree};
use crate::repo;

/// What one crate may depend on inside the workspace.
struct Layer {
    folder: &'static str,
    package: &'static str,
    may: &'static [&'static str],
}

const fn layer(folder: &'static str, package: &'static str, may: &'static [&'static str]) -> Layer {
    Layer { folder, package, may }
}

/// The table, from the bottom up. A new edge is a change of the design: the page first, then this.
const LAYERS: &[Layer] = &[
    layer("crates/memory", "memory", &[]),
    layer("crates/resilience", "resilience", &[]),
    layer("crates/scheduler", "scheduler", &[]),
    layer("crates/monitor", "monitor", &[]),
    layer("crates/macros", "ultra-perf-macros", &[]),
    layer("crates/loadbalancer", "loadbalancer", &["resilience"]),
    layer("crates/cache-tiered", "cache-tiered", &["resilience"]),
    layer(
        "crates/ultra-perf",
        "ultra-perf",
        &[
            "cache-tiered",
            "loadbalancer",
            "memory",
            "monitor",
            "resilience",
            "scheduler",
            "ultra-perf-macros",
        ],
    ),
    layer("crates/http", "ultra-perf-http", &["ultra-perf"]),
    layer("crates/cli", "ultra-perf-cli", &["ultra-perf", "ultra-perf-http"]),
];

const PAGE: &str = "docs/src/architecture.md";
const TABLE: &str = "xtask/src/tidy/layers.rs";

/// A package of the workspace as it is.
#[derive(Debug)]
pub(super) struct Member {
    folder: String,
    package: String,
    /// Members it depends on, normally or in its build script, with the line of the manifest.
    dependencies: Vec<(String, usize)>,
}

impl Member {
    /// Whether the table says what it may see.
    fn governed(&self) -> bool {
        self.folder.starts_with("crates/")
    }
}

/// The members of the workspace and what they depend on among themselves.
pub(super) fn members(metadata: &Metadata, tree: &Tree) -> Vec<Member> {
    let packages = metadata.workspace_packages();
    let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    packages
        .iter()
        .filter_map(|package| {
            let manifest = package.manifest_path.strip_prefix(repo::root()).ok()?;
            let text = tree.text(manifest.as_str()).unwrap_or_default();
            let dependencies = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind != DependencyKind::Development)
                .filter(|dependency| names.contains(&dependency.name.as_str()))
                .map(|dependency| (dependency.name.clone(), line_of(text, &dependency.name)))
                .collect();
            Some(Member {
                folder: manifest.parent()?.to_string(),
                package: package.name.to_string(),
                dependencies,
            })
        })
        .collect()
}

/// The line of a manifest on which a dependency is named.
fn line_of(manifest: &str, dependency: &str) -> usize {
    let names = |line: &str| {
        let rest = line.trim_start().strip_prefix(dependency);
        rest.is_some_and(|rest| rest.trim_start().starts_with(['.', '=']))
    };
    manifest.lines().position(names).map_or(1, |index| index + 1)
}

/// Holds the table against the workspace.
pub(super) fn dependencies(members: &[Member]) -> Vec<Problem> {
    dependencies_against(LAYERS, members)
}

fn dependencies_against(table: &[Layer], members: &[Member]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for member in members.iter().filter(|member| member.governed()) {
        let manifest = format!("{}/Cargo.toml", member.folder);
        let Some(layer) = table.iter().find(|layer| layer.folder == member.folder) else {
            let what = format!("{} is in no layer", member.folder);
            let right = format!("give it a place in {PAGE} and then in {TABLE}");
            problems.push(Problem::new(&manifest, 1, what, right));
            continue;
        };
        if layer.package != member.package {
            let what = format!("the package is called {}", member.package);
            let right = format!("{TABLE} calls it {}", layer.package);
            problems.push(Problem::new(&manifest, 1, what, right));
        }
        for (dependency, line) in &member.dependencies {
            if !layer.may.contains(&dependency.as_str()) {
                let what = format!("{} depends on {dependency}", member.package);
                let right = match layer.may {
                    [] => "it may depend on no other member".to_owned(),
                    may => format!("it may depend on {}", may.join(", ")),
                };
                problems.push(Problem::new(&manifest, *line, what, right));
            }
        }
    }
    for layer in table {
        if !members.iter().any(|member| member.folder == layer.folder) {
            let what = format!("{} is in the table and not in the workspace", layer.folder);
            problems.push(Problem::new(TABLE, 1, what, "take it out"));
        }
    }
    problems
}

/// Holds the page against the workspace and the table.
pub(super) fn page(tree: &Tree, members: &[Member]) -> Vec<Problem> {
    page_against(LAYERS, tree, members)
}

fn page_against(table: &[Layer], tree: &Tree, members: &[Member]) -> Vec<Problem> {
    let Some(text) = tree.text(PAGE) else {
        return vec![Problem::new(PAGE, 1, "is not there", "it tells the layers to people")];
    };
    let mut problems = Vec::new();
    let mut seen = BTreeMap::new();
    for (index, row) in text.lines().enumerate().filter(|(_, line)| line.starts_with('|')) {
        let line = index + 1;
        let mut cells = row.trim_matches('|').split('|').map(in_backticks);
        let mut cell = || cells.next().unwrap_or_default();
        let (folder, package, may) = (cell(), cell(), cell());
        let Some(folder) = folder.first().filter(|folder| is_member_folder(folder)) else {
            continue;
        };
        if let Some(first) = seen.insert(*folder, line) {
            let what = format!("{folder} is listed again");
            problems.push(Problem::new(PAGE, line, what, format!("line {first} has it")));
        }
        let Some(member) = members.iter().find(|member| member.folder == *folder) else {
            let what = format!("lists {folder}, which is not a member of the workspace");
            problems.push(Problem::new(PAGE, line, what, "take the row out"));
            continue;
        };
        if package.first() != Some(&member.package.as_str()) {
            let what = format!("gives {folder} another package than it has");
            problems.push(Problem::new(PAGE, line, what, format!("it is `{}`", member.package)));
        }
        if let Some(layer) = table.iter().find(|layer| layer.folder == *folder) {
            let is_member = |name: &&str| members.iter().any(|member| member.package == *name);
            let mut listed: Vec<&str> = may.into_iter().filter(is_member).collect();
            let mut allowed = layer.may.to_vec();
            listed.sort_unstable();
            listed.dedup();
            allowed.sort_unstable();
            if listed != allowed {
                let what = format!("lets {folder} depend on [{}]", listed.join(", "));
                let right = format!("{TABLE} says [{}]", allowed.join(", "));
                problems.push(Problem::new(PAGE, line, what, right));
            }
        }
    }
    for member in members.iter().filter(|member| !seen.contains_key(member.folder.as_str())) {
        let what = format!("does not list {}", member.folder);
        let right = format!(
            "add a row | `{}` | `{}` | what it may depend on |",
            member.folder, member.package
        );
        problems.push(Problem::new(PAGE, 1, what, right));
    }
    problems
}

fn is_member_folder(name: &str) -> bool {
    name == "xtask" || name.starts_with("crates/") || name.starts_with("benches/")
}

/// What stands in backticks in a cell.
fn in_backticks(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &[Layer] =
        &[layer("crates/low", "low", &[]), layer("crates/high", "up-high", &["low"])];

    fn member(folder: &str, package: &str, dependencies: &[&str]) -> Member {
        let dependencies = dependencies.iter().zip(1..).map(|(d, line)| ((*d).to_owned(), line));
        Member {
            folder: folder.into(),
            package: package.into(),
            dependencies: dependencies.collect(),
        }
    }

    fn two() -> Vec<Member> {
        vec![member("crates/low", "low", &[]), member("crates/high", "up-high", &["low"])]
    }

    /// Compares the problems, each as the start of its line.
    fn check(problems: &[Problem], expected: &[&str]) {
        let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
        let as_expected = lines.len() == expected.len()
            && lines.iter().zip(expected).all(|(line, start)| line.starts_with(start));
        assert!(as_expected, "{lines:#?} instead of {expected:#?}");
    }

    #[test]
    fn the_table_matches_the_workspace() {
        let tree = Tree::read(repo::root()).expect("the repository can be read");
        let members = members(&repo::metadata().expect("a workspace"), &tree);
        assert!(members.len() > LAYERS.len());
        check(&dependencies(&members), &[]);
    }

    #[test]
    fn the_table_goes_from_the_bottom_up() {
        for (index, layer) in LAYERS.iter().enumerate() {
            for name in layer.may {
                assert!(LAYERS[..index].iter().any(|below| below.package == *name), "{name}");
            }
        }
    }

    #[test]
    fn an_edge_that_points_down_is_right() {
        check(&dependencies_against(TWO, &two()), &[]);
    }

    #[test]
    fn an_edge_that_is_not_in_the_table_is_named_with_its_line() {
        let mut members = two();
        members[0].dependencies.push(("up-high".into(), 12));
        members[1].dependencies.push(("bench".into(), 3));
        check(
            &dependencies_against(TWO, &members),
            &[
                "crates/low/Cargo.toml:12: low depends on up-high; it may depend on no other",
                "crates/high/Cargo.toml:3: up-high depends on bench; it may depend on low",
            ],
        );
    }

    #[test]
    fn only_crates_are_governed() {
        let mut members = two();
        members.push(member("xtask", "xtask", &["low", "up-high"]));
        members.push(member("benches/disk", "bench-disk", &["low", "up-high"]));
        check(&dependencies_against(TWO, &members), &[]);
    }

    #[test]
    fn table_and_workspace_list_the_same_crates() {
        let members = [member("crates/low", "down", &[]), member("crates/new", "new", &[])];
        check(
            &dependencies_against(TWO, &members),
            &[
                "crates/low/Cargo.toml:1: the package is called down",
                "crates/new/Cargo.toml:1: crates/new is in no layer",
                "xtask/src/tidy/layers.rs:1: crates/high is in the table and not",
            ],
        );
    }

    #[test]
    fn a_dependency_is_found_on_its_line_of_the_manifest() {
        let manifest = "[dependencies]\nlow-er.workspace = true\nlow = { path = \"x\" }\n";
        assert_eq!(line_of(manifest, "low"), 3);
        assert_eq!(line_of(manifest, "low-er"), 2);
        assert_eq!(line_of(manifest, "lo"), 1);
    }

    fn check_page(page: &str, expected: &[&str]) {
        let tree = Tree::of(&[(PAGE, page)]);
        check(&page_against(TWO, &tree, &two()), expected);
    }

    #[test]
    fn a_page_that_lists_every_folder_once_is_right() {
        check_page(
            "| folder | package | may depend on |\n|---|---|---|\n\
             | `crates/low` | `low` | nothing |\n\
             | `crates/high` | `up-high` | `low` (feature `redis`) |\n\n\
             | another | table | of `low` things |\n",
            &[],
        );
    }

    #[test]
    fn a_page_that_tells_another_story_is_corrected_line_by_line() {
        check_page(
            "| `crates/low` | `down` | `up-high` |\n\
             | `crates/low` | `low` | nothing |\n\
             | `crates/gone` | `gone` | nothing |\n",
            &[
                "docs/src/architecture.md:1: gives crates/low another package than it has; it is",
                "docs/src/architecture.md:1: lets crates/low depend on [up-high]; ",
                "docs/src/architecture.md:2: crates/low is listed again; line 1 has it",
                "docs/src/architecture.md:3: lists crates/gone, which is not a member",
                "docs/src/architecture.md:1: does not list crates/high; add a row",
            ],
        );
    }

    #[test]
    fn a_missing_page_is_one_problem() {
        check(&page_against(TWO, &Tree::of(&[]), &two()), &["docs/src/architecture.md:1: is not"]);
    }
}
