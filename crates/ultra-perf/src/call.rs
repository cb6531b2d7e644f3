//! What the attributes call: keys, caches, lanes and guards of functions.
//!
//! `#[optimize]` and its siblings turn a function into calls of what is here; nothing of it is for use by
//! hand, except [`TaskError`], which is at the root of the crate. Every function has a [`Site`] in the
//! program, by which each handle keeps what belongs to it: its cache, its figures. So two handles know nothing
//! of each other, and there is no state beside the handles.

#[cfg(feature = "cache")]
mod cached;
#[cfg(feature = "resilience")]
mod guard;
#[cfg(feature = "cache")]
mod invalidation;
#[cfg(feature = "cache")]
mod key;
pub mod kind;
#[cfg(feature = "scheduler")]
mod lane;
mod measure;
#[cfg(feature = "cache")]
pub mod share;
mod time;

use std::any::type_name;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::OnceLock;

#[cfg(feature = "cache")]
pub use cache_tiered::{Hit, Tag};
#[cfg(feature = "scheduler")]
pub use scheduler::Priority;

#[cfg(feature = "cache")]
pub use cached::{
    InMemory, Load, Made, Opening, Settings, Tiered, find, load, load_sync, look_up, opening,
    refresh,
};
#[cfg(feature = "resilience")]
pub use guard::{guarded, guarded_sync, name_of, retried};
#[cfg(feature = "cache")]
pub use invalidation::{Invalidation, Target};
#[cfg(feature = "cache")]
pub use key::{CallKey, CallKeyBuf};
pub use kind::{
    ErrorsToo, Kind, NoneToo, Present, Probe, Success, Value, demand_kind, demand_result,
    demand_task_error, never, passed, raise,
};
#[cfg(all(feature = "scheduler", feature = "memory"))]
pub use lane::on_cpu_in_scope;
#[cfg(feature = "scheduler")]
pub use lane::{Terms, on_cpu, on_io};
pub use measure::{Meter, measured, measured_sync, meter, meter_with};
pub use time::limited;

use crate::UltraPerf;

/// Why a call under `#[optimize]` ended before its body had an answer.
///
/// The error of a function with a lane, a time limit or a breaker is made of it:
///
/// ```
/// #[derive(Debug, thiserror::Error)]
/// enum LoadError {
///     #[error("the database failed")]
///     Database,
///     #[error(transparent)]
///     Task(#[from] ultra_perf::TaskError),
/// }
/// ```
///
/// It is one pointer wide, so that the result of a hit stays in registers; [`kind`](Self::kind) tells what
/// happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct TaskError(Box<TaskErrorKind>);

/// What ended a call; see [`TaskError`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskErrorKind {
    /// It took longer than its `timeout`.
    #[error("{function} took longer than {limit:?}")]
    TimedOut {
        /// The function.
        function: &'static str,
        /// Its limit.
        limit: std::time::Duration,
    },
    /// The lane had no room for it.
    #[cfg(feature = "scheduler")]
    #[error("{function} was not taken")]
    Refused {
        /// The function.
        function: &'static str,
        /// Why, and when to come back.
        #[source]
        source: scheduler::Refusal,
    },
    /// The lane gave it up while it waited.
    #[cfg(feature = "scheduler")]
    #[error("{function} was given up while it waited")]
    Shed {
        /// The function.
        function: &'static str,
        /// Why, and when to come back.
        #[source]
        source: scheduler::TaskError,
    },
    /// Its task was cancelled, or its lane has closed.
    #[error("{function} was cancelled")]
    Cancelled {
        /// The function.
        function: &'static str,
    },
    /// Its body panicked on the lane.
    #[error("{function} panicked: {message}")]
    Panicked {
        /// The function.
        function: &'static str,
        /// What the panic said.
        message: String,
    },
    /// Its breaker is open.
    #[cfg(feature = "resilience")]
    #[error("the circuit breaker {breaker} is open")]
    BreakerOpen {
        /// The breaker.
        breaker: String,
        /// Until when.
        #[source]
        source: resilience::Open,
    },
}

impl From<TaskErrorKind> for TaskError {
    #[cold]
    fn from(kind: TaskErrorKind) -> Self {
        Self(Box::new(kind))
    }
}

impl TaskError {
    /// Returns what happened.
    #[must_use]
    pub fn kind(&self) -> &TaskErrorKind {
        &self.0
    }

    /// Returns when it may be worth another try, where that can be told.
    #[must_use]
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        match self.kind() {
            #[cfg(feature = "scheduler")]
            TaskErrorKind::Refused { source, .. } => source.retry_after,
            #[cfg(feature = "scheduler")]
            TaskErrorKind::Shed {
                source: scheduler::TaskError::Shed { retry_after, .. }, ..
            } => *retry_after,
            #[cfg(feature = "resilience")]
            TaskErrorKind::BreakerOpen { source, .. } => Some(source.retry_after),
            _ => None,
        }
    }
}

/// Which function a call is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    path: &'static str,
    /// Line and column: of two types in one module, each may have a function of this path.
    place: (u32, u32),
    name: Option<&'static str>,
}

impl Identity {
    /// Names a function by its path and, if the program says so, otherwise.
    #[must_use]
    pub const fn new(path: &'static str, place: (u32, u32), name: Option<&'static str>) -> Self {
        Self { path, place, name }
    }

    /// What the function is called in figures and errors.
    fn label(self) -> &'static str {
        self.name.unwrap_or(self.path)
    }
}

/// The place of a function in the program.
#[derive(Debug)]
pub struct Site {
    identity: Identity,
    #[cfg(feature = "cache")]
    cached: crate::Site,
    measured: crate::Site,
}

impl Site {
    /// Makes the place of a function, for a `static`.
    #[must_use]
    pub const fn new(identity: Identity) -> Self {
        Self {
            identity,
            #[cfg(feature = "cache")]
            cached: crate::Site::new(),
            measured: crate::Site::new(),
        }
    }
}

/// One instance of a function.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    site: &'static Site,
    /// The types of a generic function or of a method's receiver; empty for a plain function.
    instance: &'static str,
}

impl Call {
    /// Names an instance.
    #[must_use]
    #[inline]
    pub fn new(site: &'static Site, instance: &'static str) -> Self {
        Self { site, instance }
    }

    #[cfg_attr(not(any(feature = "scheduler", feature = "monitor")), allow(dead_code))]
    fn label(self) -> &'static str {
        self.site.identity.label()
    }
}

/// Stands for the type of a value.
pub fn marker<T: ?Sized>(_: &T) -> PhantomData<T> {
    PhantomData
}

/// Names the type that a method belongs to.
#[inline]
pub fn owner<T: ?Sized>() -> &'static str {
    type_name::<T>()
}

/// Names the types of an instance.
#[inline]
pub fn instance<M>(_: M) -> &'static str {
    type_name::<M>()
}

/// Says what a future returns, so that `?` in it knows.
#[inline]
pub fn typed<R, F: Future<Output = R>>(future: F) -> F {
    future
}

/// Says that a closure runs once, so that it may give away what it was moved.
#[inline]
pub fn once<R>(run: impl FnOnce() -> R) -> R {
    run()
}

/// A body around which nothing can go wrong.
pub async fn only<R, X, F: Future<Output = R>>(body: F) -> Result<R, X> {
    Ok(body.await)
}

/// A body around which nothing can go wrong.
///
/// # Errors
///
/// None.
pub fn only_sync<R, X, F: FnOnce() -> R>(body: F) -> Result<R, X> {
    Ok(body())
}

/// Makes a tag of what stands in `tags`.
#[cfg(feature = "cache")]
pub fn tag(tag: impl Into<Tag>) -> Tag {
    tag.into()
}

/// What each instance of a generic function has for itself, in the order of their first calls.
#[derive(Debug)]
struct Instances<T>(OnceLock<Box<Instance<T>>>);

impl<T> Default for Instances<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

#[derive(Debug)]
struct Instance<T> {
    name: &'static str,
    value: T,
    next: Instances<T>,
}

impl<T> Instances<T> {
    #[inline]
    fn find(&self, name: &'static str) -> Option<&T> {
        let mut here = self;
        loop {
            let instance = here.0.get()?;
            // Of one type there may be several copies of the name, hence the second comparison.
            if std::ptr::eq(instance.name, name) || instance.name == name {
                return Some(&instance.value);
            }
            here = &instance.next;
        }
    }

    fn get_or_make(&self, name: &'static str, make: impl Fn() -> T) -> &T {
        let mut here = self;
        loop {
            let new = || Box::new(Instance { name, value: make(), next: Self::default() });
            let instance = here.0.get_or_init(new);
            match here.find(name) {
                Some(value) => return value,
                None => here = &instance.next,
            }
        }
    }
}

/// Returns what a handle keeps for an instance of a function, if it has been there.
#[cfg(feature = "cache")]
#[inline]
fn found<'a, T: Send + Sync + 'static>(
    perf: &'a UltraPerf,
    site: &crate::Site,
    instance: &'static str,
) -> Option<&'a T> {
    if instance.is_empty() {
        return perf.found_slot(site);
    }
    perf.found_slot::<Instances<T>>(site)?.find(instance)
}

/// Returns what a handle keeps for an instance of a function, making it at the first call.
#[inline]
fn slot<'a, T: Send + Sync + 'static>(
    perf: &'a UltraPerf,
    site: &crate::Site,
    instance: &'static str,
    make: impl Fn() -> T,
) -> &'a T {
    if instance.is_empty() {
        return perf.slot(site, make);
    }
    perf.slot(site, Instances::default).get_or_make(instance, make)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_of_a_function_are_told_apart_by_their_types() {
        let instances = Instances::default();
        let name = |marker: &'static str| marker;
        assert_eq!(*instances.get_or_make(name("one"), || 1), 1);
        assert_eq!(*instances.get_or_make(name("two"), || 2), 2);
        assert_eq!(*instances.get_or_make(String::from("one").leak(), || 3), 1);
    }
}
