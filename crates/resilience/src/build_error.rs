//! What is wrong with the settings of a builder: every problem at once, so that one round fixes them.

use std::fmt;

/// Why something could not be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Some settings cannot be used; all of them are listed.
    #[error(
        "invalid {what} {name:?}, {} problem{}:{}",
        problems.len(),
        if problems.len() == 1 { "" } else { "s" },
        Lines(problems)
    )]
    Invalid {
        /// What was to be built, as `circuit breaker`.
        what: &'static str,
        /// Its name.
        name: String,
        /// The problems, in the order of the settings.
        problems: Vec<Problem>,
    },
}

impl BuildError {
    /// Makes an error of the problems, if there are any.
    pub(crate) fn unless_none(
        what: &'static str,
        name: &str,
        problems: Vec<Problem>,
    ) -> Result<(), Self> {
        if problems.is_empty() {
            return Ok(());
        }
        Err(Self::Invalid { what, name: name.to_owned(), problems })
    }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The name of the setting: the builder's method, and its argument if it has several.
    pub setting: &'static str,
    /// The value seen.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.setting, self.value, self.expected)
    }
}

/// The problems found so far.
#[derive(Default)]
pub(crate) struct Problems {
    pub(crate) found: Vec<Problem>,
}

impl Problems {
    /// Notes a problem unless the setting `holds`.
    pub(crate) fn check(
        &mut self,
        holds: bool,
        setting: &'static str,
        value: &dyn fmt::Debug,
        expected: &'static str,
    ) {
        if !holds {
            self.found.push(Problem { setting, value: format!("{value:?}"), expected });
        }
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}
