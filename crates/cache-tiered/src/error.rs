//! What can go wrong where a caller can do something about it: while building, and in a loader.
//!
//! Nothing else is an error. A tier that fails is a counted miss.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// One setting that cannot be used as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The setting, as a dotted path: `memory.entries`.
    pub path: String,
    /// The value seen.
    pub found: String,
    /// What would be right.
    pub expected: String,
}

impl Problem {
    pub(crate) fn new(
        path: impl Into<String>,
        found: impl fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self { path: path.into(), found: found.to_string(), expected: expected.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?}: {}", self.path, self.found, self.expected)
    }
}

/// A cache that cannot be built as it was described.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Settings that cannot be used, all of them.
    #[error("cache {cache:?}: {}", list(problems))]
    Invalid {
        /// The cache's name.
        cache: String,
        /// Every problem found.
        problems: Vec<Problem>,
    },
    /// The disk tier's directory cannot be opened.
    #[cfg(feature = "disk")]
    #[error("cache {cache:?}: the disk tier cannot be opened")]
    Disk {
        /// The cache's name.
        cache: String,
        /// Why, and what would help.
        #[source]
        source: crate::disk::OpenError,
    },
    /// The operating system refused a thread.
    #[error("cache {cache:?}: a thread cannot be started")]
    Thread {
        /// The cache's name.
        cache: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

pub(crate) fn list(problems: &[Problem]) -> String {
    let plural = if problems.len() == 1 { "" } else { "s" };
    let mut text = format!("{} problem{plural}:", problems.len());
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    text
}

/// A value that could not be loaded; everybody who waited for it gets a copy.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LoadError {
    /// The loader returned this error. It is not cached: the next call loads again.
    Loader(Arc<dyn Error + Send + Sync>),
}

impl LoadError {
    /// Returns the loader's own error, if it is an `E`.
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        let Self::Loader(error) = self;
        error.downcast_ref()
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the loader failed")
    }
}

impl Error for LoadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let Self::Loader(error) = self;
        Some(&**error)
    }
}
