//! What of a result is kept: told by its type, not by how the program spells it.
//!
//! A function's return type is looked at by method resolution: [`ViaResult`] is found for a `Result` under
//! whatever name, else [`ViaOption`] for an `Option`, else [`ViaValue`]. The same trick tells whether an
//! error can be cloned to those who wait for it ([`share`](super::share)).

use std::convert::Infallible;
use std::marker::PhantomData;
use std::time::Duration;

/// How a result `R` is split into what is kept and what is passed on.
#[diagnostic::on_unimplemented(
    message = "this option does not go with a function that returns `{R}`",
    label = "`cache_errors` is for a `Result`, `cache_none` for an `Option`"
)]
pub trait Kind<R>: Copy + Send + Sync + 'static {
    /// What a cache holds.
    type Kept;
    /// What it does not.
    type Passed;

    /// Splits a result.
    fn split(&self, returned: R) -> Result<Self::Kept, Self::Passed>;
    /// Makes a result of what was kept.
    fn kept(&self, kept: Self::Kept) -> R;
    /// Makes a result of what was not.
    fn passed(&self, passed: Self::Passed) -> R;
    /// Whether the call failed.
    fn failed(&self, returned: &R) -> bool;
    /// How long this value is kept, if not as long as all.
    fn life(&self, _kept: &Self::Kept) -> Option<Duration> {
        None
    }
}

/// `Ok` is kept.
#[derive(Debug, Clone, Copy)]
pub struct Success;

/// `Some` is kept.
#[derive(Debug, Clone, Copy)]
pub struct Present;

/// Everything is kept.
#[derive(Debug, Clone, Copy)]
pub struct Value;

/// `Err` is kept, too.
#[derive(Debug, Clone, Copy)]
pub struct ErrorsToo {
    /// For how long.
    pub ttl: Option<Duration>,
}

/// `None` is kept, too.
#[derive(Debug, Clone, Copy)]
pub struct NoneToo {
    /// For how long.
    pub ttl: Option<Duration>,
}

impl<T, E> Kind<Result<T, E>> for Success {
    type Kept = T;
    type Passed = E;

    #[inline]
    fn split(&self, returned: Result<T, E>) -> Result<T, E> {
        returned
    }

    #[inline]
    fn kept(&self, kept: T) -> Result<T, E> {
        Ok(kept)
    }

    fn passed(&self, passed: E) -> Result<T, E> {
        Err(passed)
    }

    fn failed(&self, returned: &Result<T, E>) -> bool {
        returned.is_err()
    }
}

impl<T> Kind<Option<T>> for Present {
    type Kept = T;
    type Passed = ();

    #[inline]
    fn split(&self, returned: Option<T>) -> Result<T, ()> {
        returned.ok_or(())
    }

    #[inline]
    fn kept(&self, kept: T) -> Option<T> {
        Some(kept)
    }

    fn passed(&self, (): ()) -> Option<T> {
        None
    }

    fn failed(&self, _: &Option<T>) -> bool {
        false
    }
}

impl<T> Kind<T> for Value {
    type Kept = T;
    type Passed = Infallible;

    #[inline]
    fn split(&self, returned: T) -> Result<T, Infallible> {
        Ok(returned)
    }

    #[inline]
    fn kept(&self, kept: T) -> T {
        kept
    }

    fn passed(&self, passed: Infallible) -> T {
        match passed {}
    }

    fn failed(&self, _: &T) -> bool {
        false
    }
}

impl<T, E> Kind<Result<T, E>> for ErrorsToo {
    type Kept = Result<T, E>;
    // What the time limit, the breaker or the lane ended a call with is not the function's own answer.
    type Passed = E;

    fn split(&self, returned: Result<T, E>) -> Result<Result<T, E>, E> {
        Ok(returned)
    }

    #[inline]
    fn kept(&self, kept: Result<T, E>) -> Result<T, E> {
        kept
    }

    fn passed(&self, passed: E) -> Result<T, E> {
        Err(passed)
    }

    fn failed(&self, returned: &Result<T, E>) -> bool {
        returned.is_err()
    }

    fn life(&self, kept: &Result<T, E>) -> Option<Duration> {
        self.ttl.filter(|_| kept.is_err())
    }
}

impl<T> Kind<Option<T>> for NoneToo {
    type Kept = Option<T>;
    type Passed = Infallible;

    fn split(&self, returned: Option<T>) -> Result<Option<T>, Infallible> {
        Ok(returned)
    }

    #[inline]
    fn kept(&self, kept: Option<T>) -> Option<T> {
        kept
    }

    fn passed(&self, passed: Infallible) -> Option<T> {
        match passed {}
    }

    fn failed(&self, _: &Option<T>) -> bool {
        false
    }

    fn life(&self, kept: &Option<T>) -> Option<Duration> {
        self.ttl.filter(|_| kept.is_none())
    }
}

/// Stands for a type that is asked about.
#[derive(Debug)]
pub struct Probe<R: ?Sized>(PhantomData<R>);

impl<R: ?Sized> Default for Probe<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: ?Sized> Probe<R> {
    /// Asks about a type.
    #[must_use]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

/// Found first.
pub trait ViaResult {
    /// Returns how the type is split.
    fn kind(&self) -> Success {
        Success
    }
}

impl<T, E> ViaResult for &Probe<Result<T, E>> {}

/// Found first for what is no `Result`.
pub trait ViaOption {
    /// Returns how the type is split.
    fn kind(&self) -> Present {
        Present
    }
}

impl<T> ViaOption for &Probe<Option<T>> {}

/// Found for everything else.
pub trait ViaValue {
    /// Returns how the type is split.
    fn kind(&self) -> Value {
        Value
    }
}

impl<T> ViaValue for Probe<T> {}

/// Asks about what a result's kind passes on.
pub fn passed<K: Kind<R>, R>(_: &K, _: PhantomData<fn() -> R>) -> Probe<K::Passed> {
    Probe::new()
}

/// Checks that a kind goes with a result.
pub fn demand_kind<K: Kind<R>, R>(kind: K) -> K {
    kind
}

/// A result that says whether the call failed.
#[diagnostic::on_unimplemented(
    message = "`retry` needs a function that returns a `Result`, and this one returns `{Self}`",
    label = "nothing tells whether the call failed"
)]
pub trait Fallible {
    /// What it fails with.
    type Error;
    /// Returns that, if it did.
    fn error(&self) -> Option<&Self::Error>;
}

impl<T, E> Fallible for Result<T, E> {
    type Error = E;

    fn error(&self) -> Option<&E> {
        self.as_ref().err()
    }
}

/// Checks that a call can fail.
pub fn demand_result<R: Fallible>() {}

/// A result that can say what ended a call from outside.
#[diagnostic::on_unimplemented(
    message = "a lane, a time limit or a breaker may end the call, and `{Self}` cannot say so",
    label = "the function has to return a `Result` whose error is `From<ultra_perf::TaskError>`"
)]
pub trait TakesTaskError {
    /// Makes a result of an error.
    fn of(error: super::TaskError) -> Self;
}

impl<T, E: From<super::TaskError>> TakesTaskError for Result<T, E> {
    fn of(error: super::TaskError) -> Self {
        Err(error.into())
    }
}

/// Checks that a call can be ended from outside.
pub fn demand_task_error<R: TakesTaskError>() {}

/// What can go wrong around a body, and how a result says so.
pub trait Fault<R>: Send {
    /// Makes a result of it.
    fn into_result(self) -> R;
    /// The same as an error of a task, if it is one.
    fn is_final(&self) -> bool;
}

impl<R> Fault<R> for Infallible {
    fn into_result(self) -> R {
        match self {}
    }

    fn is_final(&self) -> bool {
        match *self {}
    }
}

impl<R: TakesTaskError> Fault<R> for super::TaskError {
    fn into_result(self) -> R {
        R::of(self)
    }

    fn is_final(&self) -> bool {
        true
    }
}

/// Makes what is passed on of an error of a task.
pub fn raise<E: From<super::TaskError>>(fault: super::TaskError) -> E {
    fault.into()
}

/// There is nothing to make anything of.
pub fn never<P>(fault: Infallible) -> P {
    match fault {}
}
