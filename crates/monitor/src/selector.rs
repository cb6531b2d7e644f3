//! Selectors such as `http_requests_total{status=~"5..",route!="/health"}`, with the matchers of Prometheus.

use std::fmt;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::series::{Labels, SeriesKey};

/// How a matcher compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`, the whole value
    Matches,
    /// `!~`, the whole value
    MatchesNot,
}

impl Comparison {
    /// Returns the sign.
    #[must_use]
    pub const fn sign(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Matches => "=~",
            Self::MatchesNot => "!~",
        }
    }
}

/// One condition on one label; a label that is not there has the empty value.
#[derive(Debug, Clone)]
pub struct Matcher {
    label: Arc<str>,
    comparison: Comparison,
    value: Arc<str>,
    /// The value anchored at both ends, for the comparisons by expression.
    expression: Option<regex::Regex>,
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        (&self.label, self.comparison, &self.value)
            == (&other.label, other.comparison, &other.value)
    }
}

impl Eq for Matcher {}

/// Longest expression of a matcher, in bytes of its compiled form.
const EXPRESSION_BYTES_MAX: usize = 256 * 1024;

impl Matcher {
    /// Makes a matcher.
    ///
    /// # Errors
    ///
    /// If the expression of `=~` or `!~` is none, or too large.
    pub fn new(
        label: impl Into<Arc<str>>,
        comparison: Comparison,
        value: impl Into<Arc<str>>,
    ) -> Result<Self, SelectorError> {
        let (label, value) = (label.into(), value.into());
        let expression = match comparison {
            Comparison::Equal | Comparison::NotEqual => None,
            Comparison::Matches | Comparison::MatchesNot => {
                let anchored = format!("^(?:{value})$");
                let expression = regex::RegexBuilder::new(&anchored)
                    .size_limit(EXPRESSION_BYTES_MAX)
                    .build()
                    .map_err(|error| SelectorError {
                        at: 0,
                        problem: format!("\"{value}\" is no regular expression: {error}"),
                    })?;
                Some(expression)
            }
        };
        Ok(Self { label, comparison, value, expression })
    }

    /// Whether labels meet the condition.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.label).unwrap_or("");
        match (&self.expression, self.comparison) {
            (Some(expression), Comparison::MatchesNot) => !expression.is_match(value),
            (Some(expression), _) => expression.is_match(value),
            (None, Comparison::NotEqual) => value != &*self.value,
            (None, _) => value == &*self.value,
        }
    }

    /// Returns the name of the label.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns how it compares.
    #[must_use]
    pub fn comparison(&self) -> Comparison {
        self.comparison
    }

    /// Returns what the label is compared with.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What [`Selector::parse`] undoes.
        let value = self.value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
        write!(f, "{}{}\"{value}\"", self.label, self.comparison.sign())
    }
}

/// The series of one name whose labels meet all conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// The name of the metric.
    pub name: Arc<str>,
    /// What its labels must meet.
    pub matchers: Vec<Matcher>,
}

impl Selector {
    /// Selects all series of a name.
    #[must_use]
    pub fn name(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), matchers: Vec::new() }
    }

    /// Whether a series is meant.
    #[must_use]
    pub fn matches(&self, key: &SeriesKey) -> bool {
        self.name == key.name && self.matchers.iter().all(|matcher| matcher.matches(&key.labels))
    }

    /// Reads a selector from text.
    ///
    /// # Errors
    ///
    /// Where it goes wrong, and what was expected there.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut reader = Reader { text, at: 0 };
        let selector = reader.selector()?;
        reader.blanks();
        match reader.rest().is_empty() {
            true => Ok(selector),
            false => Err(reader.error("expected the end")),
        }
    }

    /// Reads a selector at the beginning of a text and returns what follows it.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse).
    pub fn parse_prefix(text: &str) -> Result<(Self, &str), SelectorError> {
        let mut reader = Reader { text, at: 0 };
        let selector = reader.selector()?;
        Ok((selector, &text[reader.at..]))
    }

    /// Reads conditions without a name, with or without braces, as silences have them: `cache="users"`.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse).
    pub fn parse_matchers(text: &str) -> Result<Vec<Matcher>, SelectorError> {
        let mut reader = Reader { text, at: 0 };
        reader.blanks();
        let matchers = match reader.rest().starts_with('{') {
            true => reader.braces()?,
            false => reader.matchers()?,
        };
        reader.blanks();
        match reader.rest().is_empty() {
            true => Ok(matchers),
            false => Err(reader.error("expected the end")),
        }
    }
}

impl std::str::FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

/// As its text.
impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (at, matcher) in self.matchers.iter().enumerate() {
            write!(f, "{}{matcher}", if at == 0 { "{" } else { "," })?;
        }
        f.write_str(if self.matchers.is_empty() { "" } else { "}" })
    }
}

/// A selector that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} (at character {})", at + 1)]
pub struct SelectorError {
    /// Where, in bytes from the beginning.
    pub at: usize,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// Whether a text is the name of a metric: letters, digits, `_` and `:`, and no digit first.
#[must_use]
pub fn is_metric_name(text: &str) -> bool {
    !text.starts_with(|first: char| first.is_ascii_digit())
        && !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':')
}

/// Whether a text is the name of a label: as that of a metric, without `:`.
#[must_use]
pub fn is_label_name(text: &str) -> bool {
    is_metric_name(text) && !text.contains(':')
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn blanks(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn error(&self, expected: &str) -> SelectorError {
        let seen = match self.rest().chars().next() {
            Some(character) => format!("`{character}`"),
            None => "the end".to_owned(),
        };
        SelectorError { at: self.at, problem: format!("{expected}, found {seen}") }
    }

    fn eat(&mut self, sign: &str) -> bool {
        let found = self.rest().starts_with(sign);
        self.at += if found { sign.len() } else { 0 };
        found
    }

    /// Reads a name; `:` is a part of a metric's name only.
    fn word(&mut self, colons: bool, expected: &str) -> Result<&'a str, SelectorError> {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
        let rest = self.rest();
        let length = rest.find(|c| !part(c)).unwrap_or(rest.len());
        if length == 0 || rest.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(self.error(expected));
        }
        self.at += length;
        Ok(&rest[..length])
    }

    fn selector(&mut self) -> Result<Selector, SelectorError> {
        self.blanks();
        let name = self.word(true, "expected the name of a metric")?.into();
        let matchers = match self.rest().starts_with('{') {
            true => self.braces()?,
            false => Vec::new(),
        };
        Ok(Selector { name, matchers })
    }

    fn braces(&mut self) -> Result<Vec<Matcher>, SelectorError> {
        self.eat("{");
        let matchers = self.matchers()?;
        self.blanks();
        match self.eat("}") {
            true => Ok(matchers),
            false => Err(self.error("expected `,` or `}`")),
        }
    }

    fn matchers(&mut self) -> Result<Vec<Matcher>, SelectorError> {
        let mut matchers = Vec::new();
        loop {
            self.blanks();
            if self.rest().is_empty() || self.rest().starts_with('}') {
                return Ok(matchers);
            }
            matchers.push(self.matcher()?);
            self.blanks();
            if !self.eat(",") {
                return Ok(matchers);
            }
        }
    }

    fn matcher(&mut self) -> Result<Matcher, SelectorError> {
        let label: Arc<str> = self.word(false, "expected the name of a label")?.into();
        self.blanks();
        let signs =
            [Comparison::Matches, Comparison::MatchesNot, Comparison::NotEqual, Comparison::Equal];
        let Some(comparison) = signs.into_iter().find(|sign| self.eat(sign.sign())) else {
            return Err(self.error("expected =, !=, =~ or !~"));
        };
        self.blanks();
        let start = self.at;
        let value = self.quoted()?;
        Matcher::new(label, comparison, value).map_err(|error| SelectorError { at: start, ..error })
    }

    fn quoted(&mut self) -> Result<String, SelectorError> {
        if !self.eat("\"") {
            return Err(self.error("expected a value in double quotes"));
        }
        let mut value = String::new();
        let mut characters = self.rest().char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.at += at + 1;
                    return Ok(value);
                }
                '\\' => match characters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                    // An expression such as `\d` keeps its backslash.
                    Some((_, other)) => value.extend(['\\', other]),
                    None => break,
                },
                other => value.push(other),
            }
        }
        self.at = self.text.len();
        Err(self.error("expected `\"`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, labels: &[(&str, &str)]) -> SeriesKey {
        SeriesKey { name: name.into(), labels: Labels::new(labels.iter().copied()) }
    }

    #[track_caller]
    fn check(selector: &str, matched: &[&[(&str, &str)]], passed_over: &[&[(&str, &str)]]) {
        let selector = Selector::parse(selector).expect("a selector");
        for labels in matched {
            assert!(selector.matches(&key("m", labels)), "{selector} and {labels:?}");
        }
        for labels in passed_over {
            assert!(!selector.matches(&key("m", labels)), "{selector} and {labels:?}");
        }
    }

    #[test]
    fn selectors_match_as_those_of_prometheus() {
        check("m", &[&[], &[("a", "1")]], &[]);
        check("n", &[], &[&[]]);
        check(r#"m{a="1"}"#, &[&[("a", "1")], &[("a", "1"), ("b", "2")]], &[&[], &[("a", "11")]]);
        check(r#"m{a!="1"}"#, &[&[], &[("a", "2")]], &[&[("a", "1")]]);
        check(r#"m{s=~"5.."}"#, &[&[("s", "503")]], &[&[("s", "5030")], &[("s", "404")], &[]]);
        check(r#"m{s!~"5..|4.."}"#, &[&[("s", "200")], &[]], &[&[("s", "503")], &[("s", "404")]]);
        check(r#" m{ a = "x\"y" , b =~ "\d+" , }"#, &[&[("a", "x\"y"), ("b", "12")]], &[&[]]);
    }

    #[test]
    fn what_cannot_be_read_says_where_and_why() {
        let problem = |text| Selector::parse(text).expect_err("no selector").to_string();
        assert_eq!(problem(""), "expected the name of a metric, found the end (at character 1)");
        assert_eq!(problem("9a"), "expected the name of a metric, found `9` (at character 1)");
        assert_eq!(problem("a{b}"), "expected =, !=, =~ or !~, found `}` (at character 4)");
        assert_eq!(
            problem("a{b=c}"),
            "expected a value in double quotes, found `c` (at character 5)"
        );
        assert_eq!(problem("a{b=\"c}"), "expected `\"`, found the end (at character 8)");
        assert_eq!(problem("a{b=\"c\" d}"), "expected `,` or `}`, found `d` (at character 9)");
        assert_eq!(problem("a b"), "expected the end, found `b` (at character 3)");
        assert!(problem("a{b=~\"(\"}").contains("is no regular expression"));
    }

    #[test]
    fn a_written_selector_reads_as_the_same() {
        for text in ["a", r#"a{b="c",d!="e",f=~"g.*",h!~"i"}"#, r#"a:b{c="\"\\"}"#] {
            let selector = Selector::parse(text).expect("a selector");
            assert_eq!(selector.to_string(), text);
        }
        assert_eq!(Selector::parse_matchers(r#"a="1",b!="2""#).expect("matchers").len(), 2);
        assert_eq!(Selector::parse_matchers(r#"{a="1"}"#).expect("matchers").len(), 1);
        let (selector, rest) = Selector::parse_prefix(r#"a{b="c"}[5m]"#).expect("a selector");
        assert_eq!((selector.to_string().as_str(), rest), (r#"a{b="c"}"#, "[5m]"));
    }
}
