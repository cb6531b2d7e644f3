//! What can go wrong where a caller can do something about it: while building.

use std::fmt;

/// One setting that cannot be used as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The setting.
    pub setting: &'static str,
    /// The value seen.
    pub found: String,
    /// What would be right.
    pub expected: &'static str,
}

impl Problem {
    pub(crate) fn new(
        setting: &'static str,
        found: impl fmt::Debug,
        expected: &'static str,
    ) -> Self {
        Self { setting, found: format!("{found:?}"), expected }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.setting, self.found, self.expected)
    }
}

/// Settings that cannot be used, all of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {of}, {}", list(problems))]
#[non_exhaustive]
pub struct BuildError {
    /// What was to be built.
    pub of: &'static str,
    /// Every problem found.
    pub problems: Vec<Problem>,
}

impl BuildError {
    /// Fails if there are problems.
    pub(crate) fn check(of: &'static str, problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { of, problems }) }
    }
}

fn list(problems: &[Problem]) -> String {
    let plural = if problems.len() == 1 { "" } else { "s" };
    let mut text = format!("{} problem{plural}:", problems.len());
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    text
}
