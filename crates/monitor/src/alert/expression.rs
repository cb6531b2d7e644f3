//! The small texts of a rule: durations, quantities, queries such as `rate(requests[5m])` and conditions.
//!
//! There is no expression language: a query is one aggregate of one selector, a condition compares it with
//! one number or with one metric times a factor. What reads is written back by `Display` in the same form.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::selector::Selector;
use crate::source::Aggregate;

/// Longest duration that a rule may name: 400 days.
const DURATION_MAX: Duration = Duration::from_secs(400 * 86_400);

/// Reads a duration such as `10s`, `1h30m` or `500ms`.
///
/// # Errors
///
/// What would be right.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a duration such as \"30s\", \"5m\" or \"1h30m\"".to_owned();
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let count: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit_end = rest[digits..].find(|c: char| !c.is_ascii_alphabetic());
        let unit_end = unit_end.map_or(rest.len(), |end| digits + end);
        let unit_ms: u64 = match &rest[digits..unit_end] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            _ => return Err(wrong()),
        };
        let part = count.checked_mul(unit_ms).map(Duration::from_millis);
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = &rest[unit_end..];
    }
    match total <= DURATION_MAX {
        true => Ok(total),
        false => Err("expected at most 400 days".to_owned()),
    }
}

/// Writes a duration as [`duration`] reads it.
pub(crate) fn duration_text(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, length) in
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)]
    {
        if rest >= length {
            text += &format!("{}{unit}", rest / length);
            rest %= length;
        }
    }
    text
}

/// The units that a quantity may carry, with what they are in the unit of the metric.
const UNITS: [(&str, f64); 15] = [
    ("%", 0.01),
    ("KiB", 1_024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("us", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3_600.0),
    ("d", 86_400.0),
];

/// Reads a number with or without a unit: `0.05`, `5%`, `2s`, `512MiB`.
///
/// # Errors
///
/// What would be right.
pub(crate) fn quantity(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (digits, factor) = match unit {
        Some((unit, factor)) => (text[..text.len() - unit.len()].trim_end(), *factor),
        None => (text, 1.0),
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE_".contains(&byte));
    let number = digits.replace('_', "").parse::<f64>().ok().map(|number| number * factor);
    match number.filter(|number| plain && number.is_finite()) {
        Some(number) => Ok(number),
        None => Err("expected a number such as 0.8, \"80%\", \"2s\" or \"512MiB\"".to_owned()),
    }
}

/// The names of aggregates, for messages.
pub(crate) const AGGREGATES: &str =
    "last, avg, min, max, sum, count, stddev, rate, delta, p50, p90, p95 or p99";

/// An aggregate of a selector over a window, written `rate(requests{status="500"}[5m])`.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// The series.
    pub selector: Selector,
    /// What to make of their samples.
    pub aggregate: Aggregate,
    /// The window up to now.
    pub window: Duration,
}

impl Query {
    /// Reads a query; a selector alone is the last value within `window`.
    ///
    /// # Errors
    ///
    /// What is wrong, and what would be right.
    pub fn parse(text: &str, window: Duration) -> Result<Self, String> {
        let (query, rest) = Self::parse_prefix(text, window)?;
        match rest.trim().is_empty() {
            true => Ok(query),
            false => Err(format!("expected the end, found `{}`", rest.trim())),
        }
    }

    /// Whether a text names an aggregate, and so is more than a selector.
    pub(crate) fn names_aggregate(text: &str) -> bool {
        text.split_once('(').is_some_and(|(word, _)| word.trim().parse::<Aggregate>().is_ok())
    }

    fn parse_prefix(text: &str, window: Duration) -> Result<(Self, &str), String> {
        let text = text.trim_start();
        let word_end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (word, after) = text.split_at(word_end.unwrap_or(text.len()));
        let Some(inner) = after.trim_start().strip_prefix('(') else {
            let (selector, rest) =
                Selector::parse_prefix(text).map_err(|error| error.to_string())?;
            return Ok((Self { selector, aggregate: Aggregate::Last, window }, rest));
        };
        let Ok(aggregate) = word.parse::<Aggregate>() else {
            return Err(format!("`{word}` is no aggregate: expected {AGGREGATES}"));
        };
        let (selector, rest) = Selector::parse_prefix(inner).map_err(|error| error.to_string())?;
        let form = || format!("expected a window, such as {word}({selector}[5m])");
        let rest = rest.trim_start().strip_prefix('[').ok_or_else(form)?;
        let (span, rest) = rest.split_once(']').ok_or_else(form)?;
        let window = duration(span)?;
        let rest = rest.trim_start().strip_prefix(')').ok_or_else(|| "expected `)`".to_owned())?;
        Ok((Self { selector, aggregate, window }, rest))
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.aggregate.word();
        write!(f, "{word}({}[{}])", self.selector, duration_text(self.window))
    }
}

/// How two numbers compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

impl Relation {
    /// All of them, those first whose sign begins with that of another.
    const ALL: [Self; 6] = [
        Self::LessOrEqual,
        Self::GreaterOrEqual,
        Self::Equal,
        Self::NotEqual,
        Self::Less,
        Self::Greater,
    ];

    /// Returns the sign.
    #[must_use]
    pub const fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Equal => "==",
            Self::NotEqual => "!=",
        }
    }

    /// Whether it holds; with a NaN only `!=` does.
    #[must_use]
    #[expect(clippy::float_cmp, reason = "who writes == means it")]
    pub fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
            Self::Equal => left == right,
            Self::NotEqual => left != right,
        }
    }

    fn read(text: &str) -> Option<(Self, &str)> {
        let text = text.trim_start();
        Self::ALL
            .into_iter()
            .find_map(|relation| Some((relation, text.strip_prefix(relation.sign())?)))
    }
}

/// What a value is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A number.
    Number(f64),
    /// The last value of another metric, times a factor.
    Metric {
        /// The series; where they carry a label that the instance has, it is the same one.
        selector: Selector,
        /// The factor.
        factor: f64,
    },
}

impl Operand {
    /// Reads `0.9`, `80%`, `limit_bytes` or `limit_bytes * 0.9`.
    ///
    /// # Errors
    ///
    /// What is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if !text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == ':') {
            return match text.split_once('*') {
                Some((factor, metric)) => {
                    let (selector, factor) = (Self::selector(metric)?, quantity(factor)?);
                    Ok(Self::Metric { selector, factor })
                }
                None => quantity(text).map(Self::Number),
            };
        }
        let (selector, rest) = Selector::parse_prefix(text).map_err(|error| error.to_string())?;
        let factor = match rest.trim_start().strip_prefix('*') {
            Some(factor) => quantity(factor)?,
            None if rest.trim().is_empty() => 1.0,
            None => return Err(format!("expected `* number` or the end, found `{}`", rest.trim())),
        };
        Ok(Self::Metric { selector, factor })
    }

    fn selector(text: &str) -> Result<Selector, String> {
        Selector::parse(text).map_err(|error| error.to_string())
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Metric { selector, factor: 1.0 } => write!(f, "{selector}"),
            Self::Metric { selector, factor } => write!(f, "{selector} * {factor}"),
        }
    }
}

/// A comparison that a value meets or not: `> 0.05`, `< limit_bytes * 0.9`.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// How it compares.
    pub relation: Relation,
    /// With what.
    pub operand: Operand,
}

impl Condition {
    /// Compares with a number.
    #[must_use]
    pub fn number(relation: Relation, number: f64) -> Self {
        Self { relation, operand: Operand::Number(number) }
    }

    /// Reads a condition.
    ///
    /// # Errors
    ///
    /// What is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((relation, operand)) = Relation::read(text) else {
            return Err("expected <, <=, >, >=, == or != and a number, such as \"> 0.8\"".into());
        };
        Ok(Self { relation, operand: Operand::parse(operand)? })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.relation.sign(), self.operand)
    }
}

/// A condition on another query, without which a rule does not count: `rate(requests[5m]) > 10`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// What is looked at.
    pub query: Query,
    /// How it compares.
    pub relation: Relation,
    /// With what.
    pub number: f64,
}

impl Gate {
    /// Reads a gate; a selector alone is the last value within `window`.
    ///
    /// # Errors
    ///
    /// What is wrong, and what would be right.
    pub fn parse(text: &str, window: Duration) -> Result<Self, String> {
        let (query, rest) = Query::parse_prefix(text, window)?;
        let Some((relation, number)) = Relation::read(rest) else {
            return Err(format!("expected a comparison, such as {query} > 10"));
        };
        Ok(Self { query, relation, number: quantity(number)? })
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.query, self.relation.sign(), self.number)
    }
}

/// Returns the name that is most likely meant, if one is near enough.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = name.chars().count();
    let best = known.into_iter().map(|other| (distance(name, other), other)).min()?;
    (best.0 <= (length / 3).max(1) && best.0 < length).then_some(best.1)
}

/// The edit distance with swapped neighbours as one edit; long names are far from everything.
fn distance(left: &str, right: &str) -> usize {
    if left.len() > 64 {
        return left.len();
    }
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for (at, row) in rows.iter_mut().enumerate() {
        row[0] = at;
    }
    rows[0] = (0..=right.len()).collect();
    for i in 1..=left.len() {
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[left.len()][right.len()]
}

/// Shares the text of names that are stored often.
pub(crate) fn shared(text: &str) -> Arc<str> {
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_they_are_written() {
        for (text, millis) in
            [("0s", 0), ("10s", 10_000), ("1h30m", 5_400_000), ("500ms", 500), ("1w", 604_800_000)]
        {
            let read = duration(text).expect("a duration");
            assert_eq!(read, Duration::from_millis(millis), "{text}");
            assert_eq!(duration(&duration_text(read)), Ok(read));
        }
        for text in ["", "5", "m", "5 m", "5y", "-5s", "1.5h", "99999999999999999999s", "500d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quantities_have_units() {
        for (text, number) in [
            ("0.8", 0.8),
            ("80%", 0.8),
            ("2s", 2.0),
            ("250ms", 0.25),
            ("1 KiB", 1024.0),
            ("-1", -1.0),
        ] {
            let read = quantity(text).expect("a quantity");
            assert!((read - number).abs() < 1e-12, "{text} is {read}");
        }
        for text in ["", "%", "inf", "NaN", "1e999", "5 parsecs", "1..2"] {
            assert!(quantity(text).is_err(), "{text}");
        }
    }

    #[test]
    fn queries_gates_and_conditions_read_as_they_are_written() {
        let minute = Duration::from_secs(60);
        for text in [r#"rate(http_requests_total{status=~"5.."}[5m])"#, "p95(latency[1m])"] {
            assert_eq!(Query::parse(text, minute).expect("a query").to_string(), text);
        }
        assert_eq!(Query::parse("a", minute).expect("a query").to_string(), "last(a[1m])");
        assert_eq!(
            Gate::parse("rate(a[5m])>=10", minute).expect("a gate").to_string(),
            "rate(a[5m]) >= 10"
        );
        for text in ["> 0.05", "<= limit_bytes * 0.9", "!= up{job=\"a\"}"] {
            assert_eq!(Condition::parse(text).expect("a condition").to_string(), text);
        }
        let problem = |text| Query::parse(text, minute).expect_err("no query");
        assert!(problem("median(a[5m])").starts_with("`median` is no aggregate: expected last"));
        assert_eq!(problem("rate(a)"), "expected a window, such as rate(a[5m])");
        assert_eq!(problem("rate(a[5m]) > 1"), "expected the end, found `> 1`");
    }

    #[test]
    fn aggregates_read_as_they_are_written() {
        for word in ["last", "stddev", "p05", "p50", "p90", "p95", "p99", "p999"] {
            let read = word.parse::<Aggregate>().expect("an aggregate");
            assert_eq!(read.word(), word);
        }
        for word in ["", "p", "p5", "p100000", "px", "mean"] {
            assert!(word.parse::<Aggregate>().is_err(), "{word}");
        }
    }

    #[test]
    fn the_nearest_name_is_found_if_it_is_near() {
        let known = ["cooldown", "window", "every"];
        assert_eq!(nearest("coldown", known), Some("cooldown"));
        assert_eq!(nearest("windows", known), Some("window"));
        assert_eq!(nearest("eveyr", known), Some("every"), "swapped letters");
        assert_eq!(nearest("threshold", known), None);
    }
}
