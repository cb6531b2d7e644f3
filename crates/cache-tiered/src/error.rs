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
    /// The loader did not fail and has nothing to keep, for this reason; see [`NotKept`].
    NotKept(Arc<dyn Error + Send + Sync>),
}

/// What a loader returns as its error where nothing went wrong and there is nothing to keep.
///
/// An error proper may be covered by an older value
/// ([`stale_if_error`](crate::CacheBuilder::stale_if_error)). This is an answer: the older value is wrong by
/// now, so it is removed, and whoever waits is told [`LoadError::NotKept`].
///
/// # Examples
///
/// ```
/// use cache_tiered::{Cache, LoadError, NotKept};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let users = Cache::<u64, String>::builder("users").build()?;
/// let gone = users.get_or_load(&7, || async { Err::<String, _>(NotKept::new("no such user")) }).await;
/// assert!(matches!(gone, Err(LoadError::NotKept(_))));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct NotKept(Box<dyn Error + Send + Sync>);

impl NotKept {
    /// Says why there is nothing to keep.
    pub fn new(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }

    pub(crate) fn into_reason(self) -> Box<dyn Error + Send + Sync> {
        self.0
    }
}

impl fmt::Display for NotKept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is nothing to keep")
    }
}

impl Error for NotKept {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

impl LoadError {
    /// Returns the loader's own error, or its reason, if it is an `E`.
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.inner().downcast_ref()
    }

    fn inner(&self) -> &(dyn Error + Send + Sync + 'static) {
        match self {
            Self::Loader(error) | Self::NotKept(error) => &**error,
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loader(_) => "the loader failed",
            Self::NotKept(_) => "the loader has nothing to keep",
        })
    }
}

impl Error for LoadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.inner())
    }
}
