//! The budget that retries and hedges share, so that extra calls cannot make an overload worse.
//!
//! A window of ten seconds counts calls and the extra calls made for them. An extra call is given
//! while there have been fewer of them than a share of the calls (20 % unless told), plus a floor per
//! second (3 unless told) that lets a quiet client retry at all. Finagle's `RetryBudget` and the retry
//! budgets of the Kubernetes Gateway API (GEP-3388) have the same form.
//!
//! Counting a call is lock-free. Giving an extra one is rare and takes a short lock, so that threads
//! that ask at once are not all given the last one.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::build_error::{BuildError, Problem, Problems};
use crate::correlator::Member;
use crate::nanos::nanos;
use crate::window::{Ended, Window};

/// How far back the budget looks.
const WINDOW: Duration = Duration::from_secs(10);
/// What is left of the budget in an incident: one in so many.
const CUT: f64 = 4.0;

/// Bounds the extra calls of all its holders together. Clones are one budget.
///
/// # Examples
///
/// ```
/// use std::time::Instant;
/// use resilience::{Extra, RetryBudget};
///
/// let now = Instant::now();
/// let budget = RetryBudget::builder("search").share(0.2).per_second(0.0).build_at(now)?;
/// (0..10).for_each(|_| budget.call_at(now));
/// let given = (0..10).filter(|_| budget.try_spend_at(Extra::Retry, now)).count();
/// assert_eq!(given, 2);
/// # Ok::<_, resilience::BuildError>(())
/// ```
#[derive(Clone)]
pub struct RetryBudget {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    epoch: Instant,
    share: f64,
    floor: f64,
    window: Window,
    spending: Mutex<()>,
    member: Option<Member>,
    given: AtomicU64,
    refused: AtomicU64,
}

/// What an extra call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extra {
    /// The call before has failed.
    Retry,
    /// The call before has not answered yet.
    Hedge,
}

impl RetryBudget {
    /// Starts the settings of a budget.
    pub fn builder(name: impl Into<String>) -> RetryBudgetBuilder {
        RetryBudgetBuilder { name: name.into(), share: 0.2, per_second: 3.0, member: None }
    }

    /// Counts a call: one that is neither a retry nor a hedge.
    ///
    /// # Cost
    ///
    /// One uncontended compare-exchange.
    pub fn call_at(&self, now: Instant) {
        self.shared.window.record(0, Ended::Succeeded, false, self.shared.nanos(now), || true);
    }

    /// Asks for an extra call at `now`.
    pub fn try_spend_at(&self, extra: Extra, now: Instant) -> bool {
        let shared = &*self.shared;
        let incident = shared.member.as_ref().is_some_and(Member::in_incident);
        let given = !(incident && extra == Extra::Hedge) && {
            let nanos = shared.nanos(now);
            let _guard = shared.spending.lock().unwrap_or_else(PoisonError::into_inner);
            let totals = shared.window.totals(0, nanos);
            let full = shared.share * totals.succeeded as f64 + shared.floor;
            let allowed = if incident { full / CUT } else { full };
            // A floor of 3 per second is 30 in the window; the product must not lose the thirtieth.
            let fits = (totals.failed + 1) as f64 <= allowed + 1e-9;
            if fits {
                shared.window.record(0, Ended::Failed, false, nanos, || true);
            }
            fits
        };
        let counter = if given { &shared.given } else { &shared.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        given
    }

    /// Reads the counts at `now`.
    pub fn stats_at(&self, now: Instant) -> RetryBudgetStats {
        let totals = self.shared.window.totals(0, self.shared.nanos(now));
        RetryBudgetStats {
            calls: totals.succeeded,
            extra: totals.failed,
            given: self.shared.given.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
        }
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBudget").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl Shared {
    fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }
}

/// Collects the settings of a [`RetryBudget`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct RetryBudgetBuilder {
    name: String,
    share: f64,
    per_second: f64,
    member: Option<Member>,
}

impl RetryBudgetBuilder {
    /// Sets how many extra calls there may be for each call: 0 to 1; 0.2 unless told.
    pub fn share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// Sets how many extra calls per second there may be in any case: 0 to 1,000,000; 3 unless told.
    ///
    /// They count over ten seconds, so thirty of them may come at once.
    pub fn per_second(mut self, calls: f64) -> Self {
        self.per_second = calls;
        self
    }

    /// Cuts the budget to a quarter, and hedges out of it, while the member is in an incident.
    pub fn member(mut self, member: Member) -> Self {
        self.member = Some(member);
        self
    }

    /// Checks the settings and makes a budget.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem in the settings.
    pub fn build(self) -> Result<RetryBudget, BuildError> {
        self.build_at(Instant::now())
    }

    /// Checks the settings and makes a budget whose time begins at `now`.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_at(self, now: Instant) -> Result<RetryBudget, BuildError> {
        BuildError::unless_none("retry budget", &self.name, self.problems())?;
        let shared = Shared {
            name: self.name,
            epoch: now,
            share: self.share,
            floor: self.per_second * WINDOW.as_secs_f64(),
            window: Window::new(nanos(WINDOW)),
            spending: Mutex::new(()),
            member: self.member,
            given: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        Ok(RetryBudget { shared: Arc::new(shared) })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        problems.check(!self.name.is_empty(), "name", &self.name, "must not be empty");
        problems.check(
            (0.0..=1.0).contains(&self.share),
            "share",
            &self.share,
            "must be from 0 to 1",
        );
        problems.check(
            (0.0..=1e6).contains(&self.per_second),
            "per_second",
            &self.per_second,
            "must be from 0 to 1000000",
        );
        problems.found
    }
}

/// What a budget has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryBudgetStats {
    /// Calls in the window.
    pub calls: u64,
    /// Extra calls in the window.
    pub extra: u64,
    /// Extra calls given since the budget was built.
    pub given: u64,
    /// Extra calls refused since then.
    pub refused: u64,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn budget(share: f64, per_second: f64, now: Instant) -> RetryBudget {
        let builder = RetryBudget::builder("test").share(share).per_second(per_second);
        builder.build_at(now).expect("the test's settings are valid")
    }

    fn spend(budget: &RetryBudget, asked: usize, now: Instant) -> usize {
        (0..asked).filter(|_| budget.try_spend_at(Extra::Retry, now)).count()
    }

    #[test]
    fn a_quiet_client_may_retry_three_times_a_second_and_no_more() {
        let start = Instant::now();
        let budget = budget(0.2, 3.0, start);
        let given: usize =
            (0..100).map(|second| spend(&budget, 50, start + Duration::from_secs(second))).sum();
        assert_eq!(given, 300);
    }

    #[test]
    fn a_fifth_of_the_calls_may_be_extra() {
        let now = Instant::now();
        let budget = budget(0.2, 0.0, now);
        (0..1_000).for_each(|_| budget.call_at(now));
        assert_eq!(spend(&budget, 1_000, now), 200);
        let stats = budget.stats_at(now);
        assert_eq!((stats.calls, stats.extra, stats.given, stats.refused), (1_000, 200, 200, 800));
    }

    #[test]
    fn threads_that_ask_at_once_share_what_there_is() {
        let now = Instant::now();
        let budget = budget(0.2, 10.0, now);
        let given = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| given.fetch_add(spend(&budget, 80, now) as u64, Ordering::Relaxed));
            }
        });
        assert_eq!(given.into_inner(), 100);
    }

    #[test]
    fn settings_that_cannot_be_used_are_problems() {
        let error = RetryBudget::builder("")
            .share(1.5)
            .per_second(f64::NAN)
            .build()
            .expect_err("three settings cannot be used");
        assert_eq!(
            error.to_string(),
            "invalid retry budget \"\", 3 problems:\n  \
             name = \"\": must not be empty\n  \
             share = 1.5: must be from 0 to 1\n  \
             per_second = NaN: must be from 0 to 1000000"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 300 }, ..ProptestConfig::default() })]

        /// Against two lists of slots: a tenth of the window each.
        #[test]
        fn the_budget_does_what_two_lists_do(
            share in 0.0_f64..=1.0,
            per_second in 0.0_f64..5.0,
            steps in prop::collection::vec((0_u64..3_000, any::<bool>()), 1..300),
        ) {
            let start = Instant::now();
            let budget = budget(share, per_second, start);
            let (mut calls, mut extra) = (Vec::<u64>::new(), Vec::<u64>::new());
            let mut millis = 0;
            for (pass, is_call) in steps {
                millis += if pass < 2_000 { 0 } else { pass };
                let now = start + Duration::from_millis(millis);
                let slot = millis / 1_000;
                let inside = |list: &[u64]| list.iter().filter(|it| **it + 10 > slot).count() as f64;
                if is_call {
                    budget.call_at(now);
                    calls.push(slot);
                } else {
                    let allowed = share * inside(&calls) + per_second * 10.0;
                    let fits = inside(&extra) + 1.0 <= allowed + 1e-9;
                    prop_assert_eq!(budget.try_spend_at(Extra::Retry, now), fits);
                    if fits {
                        extra.push(slot);
                    }
                }
            }
        }
    }
}
