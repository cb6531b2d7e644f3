//! What can be wrong with a configuration, and how it is told.
//!
//! Each problem takes two lines: the key, the value seen and what would be right; then, indented,
//! where it came from.

use std::{error::Error, fmt, io, path::PathBuf};

use super::{Explanation, Origin};

/// Reports every problem of a configuration at once.
///
/// Its text has a line with their number and two lines for each. It holds no secrets. Its debug form is the same,
/// for that is what a `main` which returns it prints.
pub struct ConfigError {
    pub(super) problems: Vec<Problem>,
    pub(super) explanation: Explanation,
}

impl ConfigError {
    /// Returns the problems: those of the sources first, then those of the values by key.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the tree as far as it was understood, with the invalid values marked.
    #[must_use]
    pub fn explanation(&self) -> &Explanation {
        &self.explanation
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "invalid configuration, {count} problem{plural}:")?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
            match problem {
                Problem::Missing { ways, .. } => write!(f, "\n      as {}", ways.join(" or "))?,
                _ => {
                    if let Some(origin) = problem.origin() {
                        write!(f, "\n      from {origin}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for ConfigError {
    /// Returns the cause of the first problem that has one.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problems.iter().find_map(Error::source)
    }
}

/// Describes one thing that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A value has the wrong type, form or size, or does not go with another one.
    #[error("{path} = {value}: {expected}")]
    Invalid {
        /// The key.
        path: String,
        /// The value seen, in quotes if it is a text, without secrets.
        value: String,
        /// What would be right.
        expected: String,
        /// Where the value came from.
        origin: Origin,
    },
    /// A source names a key that does not exist.
    #[error("{}: unknown key{}", shortened(name), did_you_mean(nearest.as_deref()))]
    Unknown {
        /// The name seen, as the source spells it.
        name: String,
        /// The existing name that is most likely meant, in the same spelling.
        nearest: Option<String>,
        /// Where the name came from.
        origin: Origin,
    },
    /// A key that the caller needs has no value.
    #[error("{path}: must be set to {expected}")]
    Missing {
        /// The key.
        path: String,
        /// What would be right.
        expected: String,
        /// How it can be set.
        ways: Vec<String>,
    },
    /// A file is no TOML.
    #[error("not valid TOML: {message}")]
    Syntax {
        /// What the parser says.
        message: String,
        /// The place.
        origin: Origin,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read, {}", path.display(), reason(source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Problem {
    /// Returns where the problem came from, if it is at a place in a source.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        match self {
            Self::Invalid { origin, .. }
            | Self::Unknown { origin, .. }
            | Self::Syntax { origin, .. } => Some(origin),
            Self::Missing { .. } | Self::Unreadable { .. } => None,
        }
    }
}

/// A name on one line, of which a long one is cut off.
fn shortened(name: &str) -> String {
    let mut characters = name.chars();
    let shown: String = characters.by_ref().take(100).flat_map(char::escape_debug).collect();
    format!("{shown}{}", if characters.next().is_some() { "..." } else { "" })
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |nearest| format!(", did you mean {nearest}?"))
}

/// The kind of an error in words; the error itself is the source.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::FileTooLarge => "it is larger than 1 MiB".to_owned(),
        kind => kind.to_string(),
    }
}
