//! The backends: how one is written, as a text or as a table, and what is wrong with a list of them.
//!
//! As a text a backend is its URL, and what else is known of it follows in any order:
//! `http://127.0.0.1:8001,weight=2,max=8`. A list is such texts one after the other, for a part with
//! `://` begins the next backend. A file may have a table for each instead, `[[backend]]`.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{
    setting::{KeyType, Raw},
    url::{BackendUrl, redact_malformed},
};

pub(super) const WEIGHT_MAX: u32 = 1_000_000;
pub(super) const MAX_IN_FLIGHT_MAX: u32 = 65_536;
pub(super) const PRIORITY_MAX: u32 = 1_000;

/// Describes one backend: where it is, and how much of the traffic it takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Backend {
    /// Where it is.
    pub url: BackendUrl,
    /// Its share of the traffic against the others'; 0 gives it none.
    pub weight: u32,
    /// Most requests that it gets at a time; `None` is `server.upstream_connections`.
    pub max_in_flight: Option<u32>,
    /// Zone that it is in; see `balancer.zone`.
    pub zone: Option<String>,
    /// Lowest first: the next priority gets what finds no backend of this one ready with room.
    pub priority: u32,
}

/// Lists the backends that are made fast, each of which is there once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends(Vec<Backend>);

impl Backends {
    /// The most backends of a configuration.
    pub const MAX: usize = 256;

    /// Returns them in the order in which they are written; there is one at least.
    pub fn iter(&self) -> std::slice::Iter<'_, Backend> {
        self.0.iter()
    }

    /// Returns how many they are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is one at least")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl<'a> IntoIterator for &'a Backends {
    type Item = &'a Backend;
    type IntoIter = std::slice::Iter<'a, Backend>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One backend's own settings, by their names in a table and in a text.
pub(super) const FIELDS: [(&str, &str); 4] =
    [("weight", "weight"), ("max_in_flight", "max"), ("zone", "zone"), ("priority", "priority")];

impl Backend {
    pub(super) fn new(url: BackendUrl) -> Self {
        Self { url, weight: 1, max_in_flight: None, zone: None, priority: 0 }
    }

    /// Sets one of [`FIELDS`], by either name; the error says what would be right.
    pub(super) fn set(&mut self, field: &str, text: &str) -> Result<(), String> {
        let number = |least: u32, most: u32| {
            let number = text.trim().parse().ok().filter(|it| (least..=most).contains(it));
            number.ok_or_else(|| format!("must be a whole number from {least} to {most}"))
        };
        match field {
            "weight" => self.weight = number(0, WEIGHT_MAX)?,
            "max" | "max_in_flight" => self.max_in_flight = Some(number(1, MAX_IN_FLIGHT_MAX)?),
            "priority" => self.priority = number(0, PRIORITY_MAX)?,
            "zone" => {
                zone_name(text.trim())?;
                self.zone = Some(text.trim().to_owned());
            }
            _ => return Err("must be weight, max, zone or priority".to_owned()),
        }
        Ok(())
    }
}

/// Checks the name of a zone.
pub(super) fn zone_name(name: &str) -> Result<(), String> {
    let of_name = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if (1..=64).contains(&name.len()) && name.bytes().all(of_name) {
        Ok(())
    } else {
        Err("must be 1 to 64 letters, digits or characters of \"-_.\"".to_owned())
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.url)?;
        if self.weight != 1 {
            write!(f, ",weight={}", self.weight)?;
        }
        if let Some(max) = self.max_in_flight {
            write!(f, ",max={max}")?;
        }
        if let Some(zone) = &self.zone {
            write!(f, ",zone={zone}")?;
        }
        if self.priority != 0 {
            write!(f, ",priority={}", self.priority)?;
        }
        Ok(())
    }
}

impl fmt::Display for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, backend) in self.0.iter().enumerate() {
            write!(f, "{}{backend}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Serialize for Backends {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Takes one backend's text apart; adds what is wrong with it to `problems`.
fn parse(text: &str, problems: &mut Vec<String>) -> Option<Backend> {
    let mut parts = text.split(',');
    let url = parts.next().unwrap_or_default().trim().parse();
    let mut backend = match url {
        Ok(url) => Backend::new(url),
        Err(error) => {
            problems.push(format!("{error}"));
            return None;
        }
    };
    let before = problems.len();
    let mut seen: Vec<&str> = Vec::new();
    for part in parts {
        let Some((field, value)) = part.split_once('=') else {
            problems.push(
                "what follows the URL must be weight=N, max=N, zone=NAME or priority=N".to_owned(),
            );
            continue;
        };
        let field = field.trim();
        if seen.contains(&field) {
            problems.push(format!("{field} must be named once"));
        } else if let Err(expected) = backend.set(field, value) {
            let known = FIELDS.iter().any(|(table, text)| [*table, *text].contains(&field));
            let what = if known { field } else { "what follows the URL" };
            problems.push(format!("{what} {expected}"));
        }
        seen.push(field);
    }
    (problems.len() == before).then_some(backend)
}

/// The texts of the backends in a list that is one text.
fn split(text: &str) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for part in text.split(',') {
        match texts.last_mut() {
            Some(last) if !part.contains("://") => {
                last.push(',');
                last.push_str(part);
            }
            _ => texts.push(part.to_owned()),
        }
    }
    texts
}

/// Says of which backend a problem tells, where there are several.
fn numbered(at: usize, of: usize, problem: &str) -> String {
    if of == 1 { problem.to_owned() } else { format!("number {}: {problem}", at + 1) }
}

/// What is wrong with a list of backends that are each right.
pub(super) fn duplicates(backends: &[Backend]) -> Vec<(usize, String)> {
    let again = |(at, backend): (usize, &Backend)| {
        let first = backends[..at].iter().position(|before| before.url == backend.url)?;
        Some((at, format!("must be another URL than that of number {}", first + 1)))
    };
    backends.iter().enumerate().filter_map(again).collect()
}

impl KeyType for Backends {
    fn schema(_: Option<&str>, _: Option<&str>) -> Value {
        let one = json!({ "type": "string", "pattern": "^\\s*[Hh][Tt][Tt][Pp]://" });
        let list = json!({ "type": "array", "items": one, "minItems": 1, "maxItems": Self::MAX });
        json!({ "anyOf": [one, list] })
    }

    fn kind() -> String {
        "an http:// URL such as \"http://127.0.0.1:8000\", or a list of them".to_owned()
    }

    fn label() -> String {
        "URL or list of them".to_owned()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        let refusal = || format!("must be {}", Self::kind());
        let texts = match raw {
            Raw::Text(text) | Raw::String(text) => split(text),
            Raw::List(items) => items.clone(),
            _ => return Err(refusal()),
        };
        if texts.is_empty() {
            return Err(refusal());
        }
        if texts.len() > Self::MAX {
            return Err(format!("must be {} backends at most", Self::MAX));
        }
        let mut told = Vec::new();
        let mut backends = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            let mut problems = Vec::new();
            backends.extend(parse(text, &mut problems));
            told.extend(problems.iter().map(|problem| numbered(at, texts.len(), problem)));
        }
        if told.is_empty() {
            told.extend(
                duplicates(&backends)
                    .iter()
                    .map(|(at, problem)| numbered(*at, texts.len(), problem)),
            );
        }
        if told.is_empty() { Ok(Self(backends)) } else { Err(told.join("; ")) }
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn redact(text: &str) -> String {
        if !text.contains('@') {
            return text.to_owned();
        }
        let shown = |one: &String| match one.contains('@') {
            true => redact_malformed(one),
            false => one.clone(),
        };
        split(text).iter().map(shown).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Backends, String> {
        Backends::read(&Raw::Text(text.to_owned()))
    }

    #[test]
    fn backends_are_read_and_printed_the_same() {
        for (text, printed) in [
            ("http://a", "http://a"),
            (" http://A:80/x/ ", "http://a/x"),
            ("http://a,weight=2,max=8", "http://a,weight=2,max=8"),
            ("http://a, max_in_flight=8 , weight=1", "http://a,max=8"),
            (
                "http://a:1,zone=west-1,http://b:2,priority=1,weight=0,http://c:3",
                "http://a:1,zone=west-1,http://b:2,weight=0,priority=1,http://c:3",
            ),
        ] {
            let backends = read(text).expect(text);
            assert_eq!(backends.to_string(), printed, "{text}");
            assert_eq!(read(printed), Ok(backends), "{text}");
        }
        let list = Raw::List(vec!["http://a,weight=3".to_owned(), "http://b".to_owned()]);
        let backends = Backends::read(&list).expect("a list");
        assert_eq!((backends.len(), backends.iter().next().map(|it| it.weight)), (2, Some(3)));
    }

    #[test]
    fn everything_that_is_wrong_with_a_list_is_told_at_once() {
        for (text, expected) in [
            ("http://a,weight=-1", "weight must be a whole number from 0 to 1000000"),
            ("http://a,max=0", "max must be a whole number from 1 to 65536"),
            (
                "http://a,fast",
                "what follows the URL must be weight=N, max=N, zone=NAME or priority=N",
            ),
            ("http://a,wait=1", "what follows the URL must be weight, max, zone or priority"),
            ("http://a,max=1,max=2", "max must be named once"),
            ("http://a,zone=a b", "zone must be 1 to 64 letters, digits or characters of \"-_.\""),
            (
                "http://a,weight=x,max=0,https://b,http://c,priority=1001",
                "number 1: weight must be a whole number from 0 to 1000000; \
                 number 1: max must be a whole number from 1 to 65536; \
                 number 2: must be an http:// URL such as \"http://127.0.0.1:8000\"; \
                 number 3: priority must be a whole number from 0 to 1000",
            ),
            (
                "http://a,http://b,http://A:80/",
                "number 3: must be another URL than that of number 1",
            ),
        ] {
            assert_eq!(read(text).expect_err(text), expected, "{text}");
        }
        assert!(Backends::read(&Raw::List(Vec::new())).is_err());
        let many = (0..=Backends::MAX).map(|at| format!("http://b{at}")).collect();
        assert_eq!(Backends::read(&Raw::List(many)).unwrap_err(), "must be 256 backends at most");
    }

    #[test]
    fn a_password_is_not_shown() {
        let text = "http://a,weight=2,http://me:hunter2@b";
        assert_eq!(Backends::redact(text), "http://a,weight=2,http://***");
    }
}
