//! Summaries with places for values: `{{labels.cache}}: hit ratio {{value|pct}} for {{active_for}}`.
//!
//! There are fields and five filters, and no code. Everything is checked when a rule is loaded, so that
//! rendering cannot fail.

use std::fmt::Write as _;
use std::sync::Arc;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::series::Labels;

use super::event::Severity;
use super::expression::nearest;

/// A text with places for values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template {
    source: Arc<str>,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Field(Field, Filter),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Value,
    Threshold,
    ActiveFor,
    StartsAt,
    Severity,
    Rule,
    Label(Box<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Percent,
    Bytes,
    Duration,
    Number,
    Time,
}

const FIELDS: [&str; 6] = ["value", "threshold", "active_for", "starts_at", "severity", "rule"];
const FILTERS: [&str; 5] = ["pct", "bytes", "duration", "number", "time"];

/// Longest summary that is rendered, in bytes; what is over is cut off.
const RENDERED_MAX: usize = 2_048;

/// What the fields stand for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values<'a> {
    pub(crate) value: Option<f64>,
    pub(crate) threshold: Option<f64>,
    pub(crate) active_ms: i64,
    pub(crate) starts_at_ms: i64,
    pub(crate) severity: Severity,
    pub(crate) rule: &'a str,
    pub(crate) labels: &'a Labels,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    ///
    /// What is wrong, and what would be right.
    pub fn parse(source: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = source;
        while let Some(start) = rest.find("{{") {
            let (text, field) = (&rest[..start], &rest[start + 2..]);
            let Some(end) = field.find("}}") else {
                return Err("expected `}}` behind `{{`".to_owned());
            };
            if !text.is_empty() {
                parts.push(Part::Text(text.into()));
            }
            parts.push(Self::part(field[..end].trim())?);
            rest = &field[end + 2..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(Self { source: source.into(), parts })
    }

    /// Makes a template of a text that has no places.
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        let source = text.into();
        Self { parts: vec![Part::Text((&*source).into())], source }
    }

    fn part(inside: &str) -> Result<Part, String> {
        let (name, filter) = match inside.split_once('|') {
            Some((name, filter)) => (name.trim(), Some(filter.trim())),
            None => (inside, None),
        };
        let (field, plain) = match name {
            "value" => (Field::Value, Some(Filter::Number)),
            "threshold" => (Field::Threshold, Some(Filter::Number)),
            "active_for" => (Field::ActiveFor, Some(Filter::Duration)),
            "starts_at" => (Field::StartsAt, Some(Filter::Time)),
            "severity" => (Field::Severity, None),
            "rule" => (Field::Rule, None),
            _ => match name.strip_prefix("labels.") {
                Some(label) if crate::selector::is_label_name(label) => {
                    (Field::Label(label.into()), None)
                }
                _ => {
                    let hint = nearest(name, FIELDS)
                        .map_or_else(String::new, |near| format!(", did you mean {near}?"));
                    return Err(format!(
                        "{{{{{name}}}}} is no field{hint}: expected {} or labels.<name>",
                        FIELDS.join(", ")
                    ));
                }
            },
        };
        let chosen = match filter {
            None => None,
            Some("pct") => Some(Filter::Percent),
            Some("bytes") => Some(Filter::Bytes),
            Some("duration") => Some(Filter::Duration),
            Some("number") => Some(Filter::Number),
            Some("time") => Some(Filter::Time),
            Some(other) => {
                return Err(format!("`{other}` is no filter: expected {}", FILTERS.join(", ")));
            }
        };
        match (plain, chosen) {
            (None, Some(_)) => Err(format!("{name} is a text and takes no filter")),
            (plain, chosen) => Ok(Part::Field(field, chosen.or(plain).unwrap_or(Filter::Number))),
        }
    }

    /// Returns the text that was read.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns the labels that it names.
    pub(crate) fn labels(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field(Field::Label(label), _) => Some(&**label),
            _ => None,
        })
    }

    /// Whether it has no text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Fills in the values; what is not there becomes `-`.
    pub(crate) fn render(&self, values: &Values<'_>) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(plain) => text += plain,
                Part::Field(field, filter) => fill(&mut text, field, *filter, values),
            }
        }
        if text.len() > RENDERED_MAX {
            let end = (0..=RENDERED_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            text.truncate(end);
        }
        text
    }
}

fn fill(text: &mut String, field: &Field, filter: Filter, values: &Values<'_>) {
    let number = match field {
        Field::Severity => return text.push_str(values.severity.word()),
        Field::Rule => return text.push_str(values.rule),
        Field::Label(label) => return text.push_str(values.labels.get(label).unwrap_or("-")),
        Field::Value => values.value,
        Field::Threshold => values.threshold,
        Field::ActiveFor => Some(values.active_ms as f64 / 1e3),
        Field::StartsAt => Some(values.starts_at_ms as f64 / 1e3),
    };
    match (number, filter) {
        (None, _) => text.push('-'),
        (Some(number), Filter::Number) => text.push_str(&number_text(number)),
        (Some(number), Filter::Percent) => {
            let _ = write!(text, "{} %", number_text((number * 1e3).round() / 10.0));
        }
        (Some(number), Filter::Bytes) => text.push_str(&bytes_text(number)),
        (Some(number), Filter::Duration) => text.push_str(&seconds_text(number)),
        (Some(number), Filter::Time) => text.push_str(&time_text(number)),
    }
}

/// Four significant digits, all digits of the whole part, no zeros at the end.
fn number_text(number: f64) -> String {
    if !number.is_finite() || number == 0.0 {
        return format!("{}", number + 0.0);
    }
    let whole_digits = number.abs().log10().floor() as i32 + 1;
    let decimals = (4 - whole_digits).clamp(0, 12) as usize;
    let text = format!("{number:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn bytes_text(bytes: f64) -> String {
    let mut scaled = bytes;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if scaled.abs() < 1_024.0 {
            return format!("{} {unit}", number_text(scaled));
        }
        scaled /= 1_024.0;
    }
    format!("{} PiB", number_text(scaled))
}

/// The two greatest units of a duration.
fn seconds_text(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "for ever".to_owned();
    }
    if seconds != 0.0 && seconds.abs() < 1.0 {
        return match seconds.abs() < 1e-3 {
            true => format!("{}us", number_text(seconds * 1e6)),
            false => format!("{}ms", number_text(seconds * 1e3)),
        };
    }
    if seconds.abs() < 10.0 {
        return format!("{}s", number_text(seconds));
    }
    let sign = if seconds < 0.0 { "-" } else { "" };
    let mut rest = seconds.abs().round() as u64;
    let mut parts = Vec::new();
    for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        if rest >= length {
            parts.push(format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    parts.truncate(2);
    format!("{sign}{}", parts.join(" "))
}

fn time_text(seconds: f64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds as i64).ok();
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| number_text(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(template: &str, expected: &str) {
        let labels = Labels::new([("cache", "users")]);
        let values = Values {
            value: Some(0.6312),
            threshold: Some(0.7),
            active_ms: 754_000,
            starts_at_ms: 1_700_000_000_000,
            severity: Severity::Warning,
            rule: "cache_hit_low",
            labels: &labels,
        };
        assert_eq!(Template::parse(template).expect("a template").render(&values), expected);
    }

    #[test]
    fn fields_and_filters_are_filled_in() {
        check(
            "{{labels.cache}}: L1 hit ratio {{value|pct}} (wanted {{ threshold | pct }}) for {{active_for}}",
            "users: L1 hit ratio 63.1 % (wanted 70 %) for 12m 34s",
        );
        check("{{rule}} {{severity}} {{value}} {{labels.tier}}", "cache_hit_low warning 0.6312 -");
        check(
            "{{starts_at}}, {{value|duration}}, {{value|bytes}}",
            "2023-11-14T22:13:20Z, 631.2ms, 0.6312 B",
        );
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in
            [(0.0, "0"), (1234.56, "1235"), (0.000_123_46, "0.0001235"), (7.0, "7")]
        {
            assert_eq!(number_text(number), text);
        }
        assert_eq!(bytes_text(1_610_612_736.0), "1.5 GiB");
        assert_eq!(seconds_text(93_600.0), "1d 2h");
        assert_eq!(seconds_text(2.5), "2.5s");
        assert_eq!(seconds_text(0.0), "0s");
    }

    #[test]
    fn what_is_wrong_is_found_when_it_is_read() {
        let problem = |text| Template::parse(text).expect_err("no template");
        assert_eq!(problem("{{value"), "expected `}}` behind `{{`");
        assert!(problem("{{vale}}").starts_with("{{vale}} is no field, did you mean value?"));
        assert!(problem("{{value|percent}}").starts_with("`percent` is no filter: expected pct"));
        assert_eq!(problem("{{rule|pct}}"), "rule is a text and takes no filter");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let template = Template::text("ä".repeat(3_000));
        let values = Values {
            value: None,
            threshold: None,
            active_ms: 0,
            starts_at_ms: 0,
            severity: Severity::Info,
            rule: "r",
            labels: &Labels::default(),
        };
        assert_eq!(template.render(&values).len(), RENDERED_MAX);
    }
}
