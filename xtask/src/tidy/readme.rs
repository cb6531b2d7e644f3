//! The table of the levels in the README: it is there, between its markers, with a row for each.

use super::{Problem, Tree};
use crate::readme::{BEGIN, END, PAGE, ROWS};

const WRITE: &str = "run `cargo xtask readme`";

/// Looks for the table.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let Some(text) = tree.text(PAGE) else {
        return vec![Problem::new(PAGE, 1, "is not there", "write it")];
    };
    let line_of = |text: &str| text.lines().count().max(1);
    let Some((before, (table, _))) =
        text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?)))
    else {
        let right = format!("put `{BEGIN}` and `{END}` where it belongs, and {WRITE}");
        return vec![Problem::new(
            PAGE,
            line_of(text),
            "has no place for the table of levels",
            right,
        )];
    };
    let rows: Vec<_> = table
        .lines()
        .filter_map(|line| line.strip_prefix('|')?.split('|').next())
        .map(|name| name.trim().trim_matches('`'))
        .filter(|name| !name.is_empty() && !name.starts_with('-'))
        .collect();
    match rows == ROWS {
        true => Vec::new(),
        false => {
            let what = format!("has a table of levels with the rows {rows:?}");
            vec![Problem::new(PAGE, line_of(before), what, WRITE)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::File;

    fn problems(text: &str) -> Vec<String> {
        let file = File { path: PAGE.to_owned(), text: Some(text.to_owned()) };
        check(&Tree { files: vec![file] }).into_iter().map(|it| it.what).collect()
    }

    #[test]
    fn a_table_with_every_row_between_its_markers_is_tidy() {
        let rows: String = ROWS.iter().map(|name| format!("| `{name}` | 1 |\n")).collect();
        let table = format!("# a\n{BEGIN}\n| | requests/s |\n|---|---|\n{rows}{END}\n");
        assert_eq!(problems(&table), Vec::<String>::new());
        assert_eq!(problems("# a\n"), ["has no place for the table of levels"]);
        assert_eq!(problems(&table.replace(END, "")), ["has no place for the table of levels"]);
        let short = table.replace("| `ultra` | 1 |\n", "");
        assert_eq!(problems(&short).len(), 1);
        assert!(problems(&short)[0].contains("extreme"));
    }
}
