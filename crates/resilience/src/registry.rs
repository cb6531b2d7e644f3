//! Breakers by key: made when first asked for, from a template, and never more than a bound.
//!
//! The table is behind a reader-writer lock that is held for a look-up and never across a call. A
//! look-up of a known key takes it for reading; it notes the time of use in the entry. When a new key
//! meets a full table, a sixteenth of the entries goes at once, so that the scan for them is paid for
//! by the inserts that follow: breakers at rest (closed, and not forced) first, and of those the
//! longest unused. Handles to a breaker that went keep working; the next look-up of its key makes a
//! new one.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use crate::build_error::{BuildError, Problem, Problems};
use crate::nanos::nanos;
use crate::{CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerStats, State};

/// One in so many entries goes when the table is full.
const SHARE_TO_EVICT: usize = 16;

/// A bounded table of breakers, one for each key. Clones share it.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use resilience::{CircuitBreaker, Registry};
///
/// let breakers = Registry::<String>::builder("upstreams")
///     .defaults(CircuitBreaker::builder("default").consecutive_failures(3))
///     .overriding("billing".into(), CircuitBreaker::builder("billing").failure_rate(0.2))
///     .breakers_max(1_000)
///     .build()?;
///
/// let permit = breakers.get("search").try_acquire()?;
/// # drop(permit);
/// assert_eq!(breakers.list().len(), 1);
/// breakers.reset_all();
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct Registry<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    name: String,
    epoch: Instant,
    defaults: CircuitBreakerBuilder,
    overrides: HashMap<K, CircuitBreakerBuilder>,
    breakers_max: usize,
    table: RwLock<HashMap<K, Entry>>,
    made: AtomicU64,
    evicted: AtomicU64,
}

struct Entry {
    breaker: CircuitBreaker,
    used: AtomicU64,
}

impl<K: Eq + Hash + Clone + fmt::Display> Registry<K> {
    /// Starts the settings of a registry.
    pub fn builder(name: impl Into<String>) -> RegistryBuilder<K> {
        RegistryBuilder {
            name: name.into(),
            defaults: CircuitBreaker::builder("default"),
            overrides: HashMap::new(),
            breakers_max: 10_000,
        }
    }

    /// Returns the breaker of a key, making it if there is none; its name is the key as text.
    ///
    /// # Cost
    ///
    /// A known key: a lock for reading, one hash, a clock read. A new one: an allocation, a lock for
    /// writing, and now and then a look at every entry.
    pub fn get<Q>(&self, key: &Q) -> CircuitBreaker
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        self.get_at(key, Instant::now())
    }

    /// Returns the breaker of a key at `now`, making it if there is none.
    pub fn get_at<Q>(&self, key: &Q, now: Instant) -> CircuitBreaker
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        let shared = &*self.shared;
        let used = nanos(now.saturating_duration_since(shared.epoch));
        if let Some(entry) = shared.read().get(key) {
            entry.used.fetch_max(used, Ordering::Relaxed);
            return entry.breaker.clone();
        }
        let template = shared.overrides.get(key).unwrap_or(&shared.defaults);
        let owned = key.to_owned();
        let breaker = template.make_named(owned.to_string(), now);
        let mut table = shared.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = table.get(key) {
            return entry.breaker.clone();
        }
        if table.len() >= shared.breakers_max {
            shared.evict(&mut table, now);
        }
        shared.made.fetch_add(1, Ordering::Relaxed);
        table.insert(owned, Entry { breaker: breaker.clone(), used: AtomicU64::new(used) });
        breaker
    }

    /// Returns the breaker of a key, if there is one.
    pub fn find<Q>(&self, key: &Q) -> Option<CircuitBreaker>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.shared.read().get(key).map(|entry| entry.breaker.clone())
    }

    /// Forgets the breaker of a key; says whether there was one. Its handles keep working.
    pub fn remove<Q>(&self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let mut table = self.shared.table.write().unwrap_or_else(PoisonError::into_inner);
        table.remove(key).is_some()
    }

    /// Resets every breaker; see [`CircuitBreaker::reset`].
    pub fn reset_all(&self) {
        self.reset_all_at(Instant::now());
    }

    /// Resets every breaker at `now`.
    pub fn reset_all_at(&self, now: Instant) {
        // Listeners run outside of the lock, since they may ask the registry.
        let all: Vec<_> = self.shared.read().values().map(|it| it.breaker.clone()).collect();
        all.iter().for_each(|breaker| breaker.reset_at(now));
    }

    /// Reads the stats of every breaker, in no particular order.
    pub fn list(&self) -> Vec<(K, CircuitBreakerStats)> {
        self.list_at(Instant::now())
    }

    /// Reads the stats of every breaker at `now`, in no particular order.
    pub fn list_at(&self, now: Instant) -> Vec<(K, CircuitBreakerStats)> {
        let table = self.shared.read();
        table.iter().map(|(key, entry)| (key.clone(), entry.breaker.stats_at(now))).collect()
    }

    /// Counts the breakers.
    pub fn stats(&self) -> RegistryStats {
        RegistryStats {
            breakers: self.shared.read().len(),
            made: self.shared.made.load(Ordering::Relaxed),
            evicted: self.shared.evicted.load(Ordering::Relaxed),
        }
    }
}

impl<K> Clone for Registry<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K> fmt::Debug for Registry<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("name", &self.shared.name)
            .field("breakers", &self.shared.read().len())
            .finish_non_exhaustive()
    }
}

impl<K> Shared<K> {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<K, Entry>> {
        // Nothing is left half done under the lock, so a panic elsewhere does not spoil the table.
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone> Shared<K> {
    /// Removes a sixteenth of the entries: those at rest before the others, then the longest unused.
    #[cold]
    fn evict(&self, table: &mut HashMap<K, Entry>, now: Instant) {
        let mut order: Vec<(bool, u64, K)> = table
            .iter()
            .map(|(key, entry)| {
                let stats = entry.breaker.stats_at(now);
                let busy = stats.state != State::Closed || stats.forced;
                (busy, entry.used.load(Ordering::Relaxed), key.clone())
            })
            .collect();
        let goes = (self.breakers_max / SHARE_TO_EVICT).max(1);
        order.sort_unstable_by_key(|(busy, used, _)| (*busy, *used));
        for (_, _, key) in order.into_iter().take(goes) {
            table.remove(&key);
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Collects the settings of a [`Registry`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct RegistryBuilder<K> {
    name: String,
    defaults: CircuitBreakerBuilder,
    overrides: HashMap<K, CircuitBreakerBuilder>,
    breakers_max: usize,
}

impl<K: Eq + Hash + Clone + fmt::Display> RegistryBuilder<K> {
    /// Sets what a breaker is made from; the builder's defaults unless told.
    ///
    /// With a seed, every breaker draws open times of its own from the seed and its key.
    pub fn defaults(mut self, template: CircuitBreakerBuilder) -> Self {
        self.defaults = template;
        self
    }

    /// Sets what the breaker of one key is made from, instead of the defaults.
    pub fn overriding(mut self, key: K, template: CircuitBreakerBuilder) -> Self {
        self.overrides.insert(key, template);
        self
    }

    /// Sets how many breakers there may be: 1 to 1,000,000; 10,000 unless told.
    pub fn breakers_max(mut self, breakers: usize) -> Self {
        self.breakers_max = breakers;
        self
    }

    /// Checks the settings, those of every template among them, and makes an empty registry.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem in the settings; a template's has the template's name in its
    /// value.
    pub fn build(self) -> Result<Registry<K>, BuildError> {
        self.build_at(Instant::now())
    }

    /// Checks the settings and makes an empty registry whose time begins at `now`.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_at(self, now: Instant) -> Result<Registry<K>, BuildError> {
        BuildError::unless_none("registry", &self.name, self.problems())?;
        let shared = Shared {
            name: self.name,
            epoch: now,
            defaults: self.defaults,
            overrides: self.overrides,
            breakers_max: self.breakers_max,
            table: RwLock::default(),
            made: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        };
        Ok(Registry { shared: Arc::new(shared) })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        problems.check(!self.name.is_empty(), "name", &self.name, "must not be empty");
        problems.check(
            (1..=1_000_000).contains(&self.breakers_max),
            "breakers_max",
            &self.breakers_max,
            "must be from 1 to 1000000",
        );
        let mut found = problems.found;
        found.extend(self.defaults.problems());
        let mut overrides: Vec<_> =
            self.overrides.iter().map(|(key, template)| (key.to_string(), template)).collect();
        overrides.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        for (key, template) in overrides {
            found.extend(template.problems().into_iter().map(|problem| Problem {
                value: format!("{} (of {key:?})", problem.value),
                ..problem
            }));
        }
        found
    }
}

/// How many breakers a registry has and had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegistryStats {
    /// Breakers in the table.
    pub breakers: usize,
    /// Breakers made since the registry was built.
    pub made: u64,
    /// Breakers that made room for others.
    pub evicted: u64,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::Outcome;

    fn registry(max: usize, now: Instant) -> Registry<String> {
        Registry::builder("test")
            .defaults(CircuitBreaker::builder("any").consecutive_failures(2).seed(3))
            .overriding(
                "touchy".to_owned(),
                CircuitBreaker::builder("touchy").consecutive_failures(1),
            )
            .breakers_max(max)
            .build_at(now)
            .expect("the test's settings are valid")
    }

    fn fail(registry: &Registry<String>, key: &str, now: Instant) -> State {
        let breaker = registry.get_at(key, now);
        breaker.try_acquire_at(now).expect("it is closed").complete_at(Outcome::Failure, now);
        breaker.state_at(now)
    }

    #[test]
    fn a_key_has_one_breaker_and_overrides_hold() {
        let now = Instant::now();
        let breakers = registry(8, now);
        assert_eq!(fail(&breakers, "a", now), State::Closed);
        assert_eq!(fail(&breakers, "b", now), State::Closed);
        assert_eq!(fail(&breakers, "a", now), State::Open);
        assert_eq!(fail(&breakers, "touchy", now), State::Open);
        assert_eq!(breakers.get_at("a", now).name(), "a");
        assert!(breakers.find("nobody").is_none());
        assert_eq!(breakers.stats(), RegistryStats { breakers: 3, made: 3, evicted: 0 });
    }

    #[test]
    fn a_reset_of_all_closes_all() {
        let now = Instant::now();
        let breakers = registry(8, now);
        for key in ["a", "b"] {
            breakers.get_at(key, now).force_open_at(now);
        }
        breakers.reset_all_at(now);
        let states: Vec<_> =
            breakers.list_at(now).into_iter().map(|(_, stats)| stats.state).collect();
        assert_eq!(states, [State::Closed; 2]);
    }

    #[test]
    fn breakers_of_one_template_do_not_open_for_the_same_time() {
        let now = Instant::now();
        let breakers = registry(8, now);
        let times = ["a", "b"].map(|key| {
            fail(&breakers, key, now);
            fail(&breakers, key, now);
            breakers.get_at(key, now).stats_at(now).retry_after
        });
        assert_ne!(times[0], times[1]);
    }

    #[test]
    fn an_open_breaker_outlives_those_at_rest() {
        let start = Instant::now();
        let breakers = registry(4, start);
        fail(&breakers, "touchy", start);
        for (index, key) in ["b", "c", "d", "e", "f", "g"].into_iter().enumerate() {
            breakers.get_at(key, start + Duration::from_millis(1 + index as u64));
        }
        assert!(breakers.find("touchy").is_some());
        assert_eq!(breakers.stats(), RegistryStats { breakers: 4, made: 7, evicted: 3 });
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let error = Registry::<String>::builder("")
            .breakers_max(0)
            .defaults(CircuitBreaker::builder("any").minimum_calls(0))
            .overriding("x".to_owned(), CircuitBreaker::builder("x").failure_rate(2.0))
            .build()
            .expect_err("four settings cannot be used");
        assert_eq!(
            error.to_string(),
            "invalid registry \"\", 4 problems:\n  \
             name = \"\": must not be empty\n  \
             breakers_max = 0: must be from 1 to 1000000\n  \
             minimum_calls = 0: must be at least 1\n  \
             failure_rate = 2.0 (of \"x\"): must be above 0 and at most 1"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 200 }, ..ProptestConfig::default() })]

        /// With a table of at most 15 entries one goes at a time, so a list of uses is the model.
        #[test]
        fn the_longest_unused_goes(max in 1_usize..15, keys in prop::collection::vec(0_u8..25, 1..200)) {
            let start = Instant::now();
            let breakers = registry(max, start);
            let mut model = BTreeMap::new();
            for (index, key) in keys.into_iter().enumerate() {
                let key = key.to_string();
                let now = start + Duration::from_nanos(index as u64);
                if !model.contains_key(&key) && model.len() == max {
                    let oldest = model.iter().min_by_key(|(_, used)| **used);
                    let oldest: String = oldest.map(|(key, _): (&String, &usize)| key.clone()).expect("full");
                    model.remove(&oldest);
                }
                model.insert(key.clone(), index);
                breakers.get_at(&key, now);
                let mut there: Vec<_> =
                    breakers.list_at(now).into_iter().map(|(key, _)| key).collect();
                there.sort_unstable();
                prop_assert_eq!(there, model.keys().cloned().collect::<Vec<_>>());
            }
        }
    }
}
