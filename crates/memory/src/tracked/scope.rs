//! Scopes: names to which a thread's allocations count while it is inside.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::block::{Block, Counters, Frame};
use super::{LOCAL, MODE, OFF};
use crate::interner::SymbolTable;

/// The most scopes there can be, the two built-in ones included.
pub(super) const SCOPES_MAX: usize = 1_024;
/// Bytes that the names can take together.
const NAMES_BYTES_MAX: usize = 64 << 10;
/// Scopes without a name in the table.
const BUILT_IN: usize = 2;

/// A name to which allocations count, in two bytes.
///
/// Scopes are the program's own, as names of routes and tasks are: there are at most
/// [`Scope::MAX`], they are never removed, and what comes later counts as `(other)`. A name is not
/// made up of what a client sends.
///
/// A nested scope counts for itself: what it allocates is not in the scope around it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope(u16);

/// What a scope allocated, over all threads, from [`Scope::report`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScopeReport {
    /// Allocations; a reallocation is one.
    pub allocs: u64,
    /// Bytes allocated.
    pub bytes: u64,
    /// Bytes allocated less bytes freed: see [`Tracked`](super::Tracked) and
    /// [`TrackedExact`](super::TrackedExact) for whose frees count.
    pub net: i64,
    /// The most bytes that one entry of the scope had allocated and not freed at one time; each poll
    /// of a future is an entry.
    pub peak: u64,
}

fn names() -> &'static SymbolTable {
    static NAMES: OnceLock<SymbolTable> = OnceLock::new();
    NAMES.get_or_init(|| {
        SymbolTable::new((SCOPES_MAX - BUILT_IN) as u32, NAMES_BYTES_MAX)
            .expect("the caps are above 0")
    })
}

impl Scope {
    /// The most scopes there can be, `(none)` and `(other)` included.
    pub const MAX: usize = SCOPES_MAX;
    /// Where allocations count outside of all scopes: `(none)`.
    pub const ROOT: Self = Self(Self::ROOT_ID);
    /// Where allocations count in scopes beyond the cap: `(other)`.
    pub const OTHER: Self = Self(1);

    pub(super) const ROOT_ID: u16 = 0;

    /// Returns the scope of this name, making it if it is new; `(other)` beyond the cap.
    ///
    /// # Cost
    ///
    /// As [`SymbolTable::intern`]: keep the result where the name is always the same.
    pub fn named(name: &str) -> Self {
        names().intern(name).map_or(Self::OTHER, |symbol| {
            Self(u16::try_from(symbol.index() + BUILT_IN).expect("the table is capped below"))
        })
    }

    /// Counts what this thread allocates to a scope until the guard drops.
    ///
    /// Takes a name or a [`Scope`]. Guards are dropped in reverse order, as scopes of the language
    /// are; a future goes through [`in_scope`](ScopeExt::in_scope) instead, because a guard across an
    /// `.await` would count what other tasks do on this thread.
    pub fn enter(scope: impl Into<Self>) -> ScopeGuard {
        scope.into().enter_self()
    }

    #[inline]
    pub(super) fn enter_self(self) -> ScopeGuard {
        LOCAL.with(|local| {
            let previous = (local.scope.get(), local.counters.get());
            let counters = (MODE.load(Relaxed) != OFF)
                .then(|| local.running())
                .flatten()
                // What this allocates counts to the scope around.
                .map(|block| block.counters(self.0));
            local.scope.set(self.0);
            local.counters.set(counters);
            let entry = counters.map(|counters| (counters, counters.enter()));
            ScopeGuard { previous, entry, thread: PhantomData }
        })
    }

    /// Returns the name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ROOT => "(none)",
            Self::OTHER => "(other)",
            Self(id) => names()
                .by_index(usize::from(id) - BUILT_IN)
                .expect("scopes with other numbers are made by `named`"),
        }
    }

    /// Returns what was allocated in this scope so far, in all threads.
    ///
    /// # Cost
    ///
    /// Reads one line of each thread's counters.
    pub fn report(self) -> ScopeReport {
        Block::sum(self.0)
    }

    /// Returns every scope, in order of first appearance.
    pub fn all() -> impl Iterator<Item = Self> {
        let named = names().stats().symbols as usize;
        (0..(named + BUILT_IN) as u16).map(Self)
    }

    /// Returns the `most` scopes with the highest net, and what they allocated, highest first.
    pub fn top(most: usize) -> Vec<(Self, ScopeReport)> {
        let mut all: Vec<_> = Self::all().map(|scope| (scope, scope.report())).collect();
        all.retain(|(_, report)| report.allocs > 0 || report.net != 0);
        all.sort_by_key(|(scope, report)| (std::cmp::Reverse(report.net), scope.0));
        all.truncate(most);
        all
    }

    pub(super) fn of(id: u16) -> Self {
        Self(id)
    }
}

impl From<&str> for Scope {
    fn from(name: &str) -> Self {
        Self::named(name)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({:?})", self.name())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Counts a thread's allocations to a scope while it lives, from [`Scope::enter`].
///
/// It belongs to its thread.
#[must_use = "the scope is left when the guard drops"]
pub struct ScopeGuard {
    previous: (u16, Option<&'static Counters>),
    /// Absent where tracking was off.
    entry: Option<(&'static Counters, Frame)>,
    /// The counters are this thread's.
    thread: PhantomData<*const ()>,
}

impl ScopeGuard {
    /// Returns what this entry alone has counted so far; zeros where tracking was off when it began.
    ///
    /// Scopes inside of it count for themselves. Ask for it while no guard of the same scope is inside.
    #[must_use]
    pub fn so_far(&self) -> ScopeReport {
        let of = |(counters, frame): &(&'static Counters, Frame)| counters.since(frame);
        self.entry.as_ref().map(of).unwrap_or_default()
    }
}

impl Drop for ScopeGuard {
    #[inline]
    fn drop(&mut self) {
        LOCAL.with(|local| {
            local.scope.set(self.previous.0);
            if local.block.get().is_none() {
                // The block is gone, and with it the counters of this thread.
                local.counters.set(None);
                return;
            }
            if let Some((counters, frame)) = self.entry {
                counters.leave(frame);
            }
            // Without tracking, or if it began inside, the next count looks them up.
            local.counters.set(self.previous.1);
        });
    }
}

impl fmt::Debug for ScopeGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeGuard").finish_non_exhaustive()
    }
}

/// Adds [`in_scope`](ScopeExt::in_scope) to every future.
pub trait ScopeExt: Future + Sized {
    /// Counts what this future allocates to a scope, wherever it is polled.
    ///
    /// Takes a name or a [`Scope`]. What it frees when it is dropped counts to the scope as well.
    fn in_scope(self, scope: impl Into<Scope>) -> InScope<Self> {
        InScope { future: Some(self), scope: scope.into() }
    }
}

impl<F: Future> ScopeExt for F {}

pin_project! {
    /// A future whose allocations count to a scope, from [`ScopeExt::in_scope`].
    #[must_use = "a future does nothing until it is polled"]
    pub struct InScope<F> {
        // Taken out only when this drops.
        #[pin]
        future: Option<F>,
        scope: Scope,
    }

    impl<F> PinnedDrop for InScope<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _scope = this.scope.enter_self();
            this.future.set(None);
        }
    }
}

impl<F: Future> Future for InScope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _scope = this.scope.enter_self();
        this.future.as_pin_mut().expect("there until it drops").poll(context)
    }
}

impl<F> fmt::Debug for InScope<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InScope").field("scope", &self.scope).finish_non_exhaustive()
    }
}
