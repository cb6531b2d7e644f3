//! What can be wrong with rules, and how it is told: where, what was seen, what would be right.

use std::fmt;
use std::sync::Arc;

/// Everything that is wrong with a set of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleErrors {
    problems: Vec<RuleProblem>,
}

impl RuleErrors {
    pub(crate) fn new(mut problems: Vec<RuleProblem>) -> Self {
        problems.sort_by_key(|problem| problem.place.as_ref().map(|at| (at.line, at.column)));
        Self { problems }
    }

    /// Returns the problems in the order of their places.
    #[must_use]
    pub fn problems(&self) -> &[RuleProblem] {
        &self.problems
    }
}

impl fmt::Display for RuleErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "invalid rules, {count} problem{plural}:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for RuleErrors {}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleProblem {
    /// Where, if the rules come from a file.
    pub place: Option<Place>,
    /// The rule, empty if it is none of one rule.
    pub rule: String,
    /// The key, empty if it is none of one key.
    pub key: String,
    /// What is there.
    pub seen: String,
    /// What would be right.
    pub expected: String,
}

impl RuleProblem {
    pub(crate) fn new(rule: &str, key: &str, seen: &str, expected: String) -> Self {
        Self { place: None, rule: rule.into(), key: key.into(), seen: seen.into(), expected }
    }
}

impl fmt::Display for RuleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.rule.is_empty() {
            write!(f, "rule {}: ", self.rule)?;
        }
        match (self.key.is_empty(), self.seen.is_empty()) {
            (true, _) => {}
            (false, true) => write!(f, "{}: ", self.key)?,
            (false, false) => write!(f, "{} = {}: ", self.key, self.seen)?,
        }
        f.write_str(&self.expected)
    }
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The name of the file.
    pub file: Arc<str>,
    /// The line, from one.
    pub line: usize,
    /// The character in the line, from one.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}
