//! One case as a row: for people in a table, for programs as JSON.
//!
//! The table is plain text with aligned columns; only `holds` takes a colour, and only where the caller
//! says that a terminal is looking.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The result of one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The suite it belongs to.
    pub suite: String,
    /// What was done, and against whom.
    pub case: String,
    /// The median of ours; absent if the case was skipped.
    pub ours: Option<f64>,
    /// The median of the peer, in the same unit.
    pub peer: Option<f64>,
    /// The unit of `ours` and `peer`.
    pub unit: String,
    /// The median over the rounds of `ours / peer`.
    pub ratio: Option<f64>,
    /// The 95 % interval of what the target speaks of: the ratio, or `ours` where there is no peer.
    pub spread: Option<[f64; 2]>,
    /// What the ratio, or `ours` where there is no peer, should be.
    pub target: Option<Target>,
    /// Whether the unfavourable end of `spread` meets the target.
    pub holds: Option<bool>,
    /// Why the case was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// A bound that a number has to keep; in JSON a string such as `"<= 1.7"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// Lower is better.
    AtMost(f64),
    /// Higher is better.
    AtLeast(f64),
}

impl Target {
    /// Tells whether the whole interval meets the target, that is, its unfavourable end.
    pub fn holds(self, [low, high]: [f64; 2]) -> bool {
        match self {
            Self::AtMost(bound) => high <= bound,
            Self::AtLeast(bound) => low >= bound,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl TryFrom<String> for Target {
    type Error = ParseTargetError;

    fn try_from(text: String) -> Result<Self, ParseTargetError> {
        text.parse()
    }
}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, ParseTargetError> {
        let error = || ParseTargetError(text.to_owned());
        let (make, number): (fn(f64) -> Self, _) = match text.split_at_checked(2) {
            Some(("<=", number)) => (Self::AtMost, number),
            Some((">=", number)) => (Self::AtLeast, number),
            _ => return Err(error()),
        };
        number.trim().parse().map(make).map_err(|_| error())
    }
}

/// Reports a text that is not a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseTargetError(String);

impl fmt::Display for ParseTargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is not a target, expected \"<= NUMBER\" or \">= NUMBER\"", self.0)
    }
}

impl std::error::Error for ParseTargetError {}

const HEAD: [&str; 9] =
    ["suite", "case", "ours", "peer", "unit", "ratio", "spread", "target", "holds"];
const NUMBERS: [bool; 9] = [false, false, true, true, false, true, true, true, false];

/// Renders rows as an aligned table, with colours only where `colour` says so.
pub fn table(rows: &[Row], colour: bool) -> String {
    let cells: Vec<[String; 9]> = rows.iter().map(cells).collect();
    let mut widths = HEAD.map(str::len);
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    push_line(&mut text, &HEAD.map(str::to_owned), &widths);
    push_line(&mut text, &widths.map(|width| "-".repeat(width)), &widths);
    for (row, line) in rows.iter().zip(&cells) {
        let start = text.len();
        push_line(&mut text, line, &widths);
        if let Some(reason) = &row.skipped {
            text.truncate(text.trim_end().len());
            let _ = writeln!(text, "  skipped: {reason}");
        }
        if let (true, Some(holds)) = (colour, row.holds) {
            let word = &line[8];
            let at = start + text[start..].rfind(word.as_str()).expect("just written");
            let code = if holds { 32 } else { 31 };
            text.replace_range(at..at + word.len(), &format!("\x1b[{code}m{word}\x1b[0m"));
        }
    }
    text
}

fn push_line(text: &mut String, cells: &[String; 9], widths: &[usize; 9]) {
    for ((cell, width), number) in cells.iter().zip(widths).zip(NUMBERS) {
        let _ = match number {
            true => write!(text, "{cell:>width$}  "),
            false => write!(text, "{cell:<width$}  "),
        };
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
}

fn cells(row: &Row) -> [String; 9] {
    let number = |value: Option<f64>| value.map_or_else(String::new, thousands);
    [
        row.suite.clone(),
        row.case.clone(),
        number(row.ours),
        number(row.peer),
        row.unit.clone(),
        number(row.ratio),
        row.spread.map_or_else(String::new, |[low, high]| {
            format!("{} .. {}", thousands(low), thousands(high))
        }),
        row.target.map_or_else(String::new, |target| target.to_string()),
        row.holds.map_or_else(String::new, |holds| if holds { "yes" } else { "NO" }.to_owned()),
    ]
}

/// Three digits that mean something below a thousand, whole numbers in groups above.
pub(crate) fn thousands(value: f64) -> String {
    let size = value.abs();
    if size < 1_000.0 {
        let decimals = match size {
            _ if size >= 100.0 || size == 0.0 => 0,
            _ if size >= 10.0 => 1,
            _ if size >= 0.1 => 2,
            _ => 4,
        };
        return format!("{value:.decimals$}");
    }
    let digits = format!("{size:.0}");
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &str) -> Row {
        Row {
            suite: "disk".into(),
            case: case.into(),
            ours: Some(1_234_567.0),
            peer: Some(210_000.0),
            unit: "op/s".into(),
            ratio: Some(5.879),
            spread: Some([5.5, 6.25]),
            target: Some(Target::AtLeast(5.0)),
            holds: Some(true),
            skipped: None,
        }
    }

    fn skipped(case: &str) -> Row {
        Row {
            ours: None,
            peer: None,
            ratio: None,
            spread: None,
            target: None,
            holds: None,
            skipped: Some("built without the feature peers".into()),
            ..row(case)
        }
    }

    #[test]
    fn numbers_keep_three_digits_or_are_grouped() {
        for (value, text) in [
            (0.0, "0"),
            (0.012_34, "0.0123"),
            (0.5, "0.50"),
            (5.879, "5.88"),
            (58.79, "58.8"),
            (587.9, "588"),
            (1_000.0, "1,000"),
            (1_234_567.4, "1,234,567"),
            (-12_345.0, "-12,345"),
        ] {
            assert_eq!(thousands(value), text);
        }
    }

    #[test]
    fn a_target_holds_only_if_the_unfavourable_end_meets_it() {
        for (target, spread, holds) in [
            (Target::AtMost(1.7), [1.2, 1.7], true),
            (Target::AtMost(1.7), [1.2, 1.71], false),
            (Target::AtLeast(5.0), [5.0, 9.0], true),
            (Target::AtLeast(5.0), [4.9, 9.0], false),
        ] {
            assert_eq!(target.holds(spread), holds, "{target} {spread:?}");
        }
    }

    #[test]
    fn the_table_is_aligned_and_says_what_was_skipped() {
        let text = table(&[row("put, 1 KiB vs sled"), skipped("get")], false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "suite  case                     ours     peer  unit  ratio        spread  target  holds",
                "-----  ------------------  ---------  -------  ----  -----  ------------  ------  -----",
                "disk   put, 1 KiB vs sled  1,234,567  210,000  op/s   5.88  5.50 .. 6.25    >= 5  yes",
                "disk   get                                     op/s  skipped: built without the feature peers",
            ]
        );
    }

    #[test]
    fn colour_touches_the_verdict_and_nothing_else() {
        let mut missed = row("yes, NO");
        missed.holds = Some(false);
        let rows = [row("put"), missed, skipped("get")];
        let coloured = table(&rows, true);
        assert!(
            coloured.contains("\x1b[32myes\x1b[0m\n") && coloured.contains("\x1b[31mNO\x1b[0m\n")
        );
        let plain: String = ["\x1b[32m", "\x1b[31m", "\x1b[0m"]
            .iter()
            .fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(plain, table(&rows, false));
    }

    #[test]
    fn json_has_the_nine_columns_and_comes_back_the_same() {
        let value = serde_json::to_value(row("put")).expect("plain data");
        let mut names: Vec<_> = value.as_object().expect("an object").keys().cloned().collect();
        let mut expected = HEAD.map(str::to_owned);
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
        assert_eq!(value["target"], ">= 5");
        for row in [row("put"), skipped("get")] {
            let text = serde_json::to_string(&row).expect("plain data");
            assert_eq!(serde_json::from_str::<Row>(&text).expect("just written"), row);
        }
    }

    #[test]
    fn a_text_that_is_no_target_is_refused() {
        for text in ["", "<", "= 5", "<= fast", "5"] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }
}
