//! Silences: for a while, nothing is said about alerts with certain labels.
//!
//! A silence never changes a state. It begins and ends by the wall clock, as people mean it; once it is in
//! force its end is counted by the monotonic clock, so a step of the wall clock neither prolongs nor ends it.

use std::fmt::Write as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::selector::{Matcher, Selector};
use crate::series::Labels;

/// What is not to be talked about, who said so, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Its number; given by the engine.
    #[serde(default)]
    pub id: u64,
    /// What the labels must meet, all of it; `alertname` and `severity` are among the labels.
    #[serde(with = "written")]
    pub matchers: Vec<Matcher>,
    /// Who.
    pub author: String,
    /// Why.
    pub comment: String,
    /// When it begins, in milliseconds since 1970.
    pub starts_at_ms: i64,
    /// When it ends, in milliseconds since 1970.
    pub ends_at_ms: i64,
}

impl Silence {
    /// Whether it is about these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matchers.iter().all(|matcher| matcher.matches(labels))
    }
}

/// Why a silence is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SilenceError {
    /// It would hush everything.
    #[error("a silence needs at least one matcher")]
    NoMatchers,
    /// It has no author, or author or comment are too long.
    #[error("a silence needs an author, and author and comment have at most 1000 characters")]
    Author,
    /// It ends before it begins, or is over.
    #[error("a silence must end after it begins, and later than now")]
    Over,
    /// There are too many.
    #[error("there are {0} silences already, which is the limit")]
    TooMany(usize),
}

/// A silence with its times by the monotonic clock.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) silence: Silence,
    pub(super) starts: i64,
    pub(super) ends: i64,
}

impl Kept {
    pub(super) fn is_active(&self, now: i64) -> bool {
        (self.starts..self.ends).contains(&now)
    }
}

/// Matchers as the text that [`Selector::parse_matchers`] reads.
mod written {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        matchers: &[Matcher],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::text(matchers))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Matcher>, D::Error> {
        let text = String::deserialize(deserializer)?;
        Selector::parse_matchers(&text).map_err(serde::de::Error::custom)
    }
}

/// Writes matchers so that they read as the same.
fn text(matchers: &[Matcher]) -> String {
    let mut text = String::new();
    for (at, matcher) in matchers.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{}{}\"", matcher.label(), matcher.comparison().sign());
        for character in matcher.value().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_reads_as_it_was_written() {
        let matchers = r#"alertname="cache \\ \"x\"",severity=~"info|\\d+",team!="ä",b!~"c""#;
        let silence = Silence {
            id: 7,
            matchers: Selector::parse_matchers(matchers).expect("matchers"),
            author: "ada".to_owned(),
            comment: "moving house".to_owned(),
            starts_at_ms: 1,
            ends_at_ms: 2,
        };
        let json = serde_json::to_string(&silence).expect("json");
        assert_eq!(serde_json::from_str::<Silence>(&json).expect("a silence"), silence);
        assert!(serde_json::from_str::<Silence>(&json.replace("severity=~", "severity~")).is_err());
    }
}
