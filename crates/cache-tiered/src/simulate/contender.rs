//! What can be measured on a trace, by the names that the command line knows.
//!
//! The crate's own cache takes part as it is sold: through [`Cache`], with its shards, one call for the
//! read and one for the insert. Only its hasher is another, one without a random seed, so that a
//! measurement can be repeated on the same machine; the number of shards follows the number of cores.

use std::fmt;
use std::sync::Arc;

use super::mix::BuildMix;
use super::{Capacity, Simulated, Textbook};
use crate::{Cache, Engine, Policy};

const CLOCK_PRO: &str = "clock-pro";
const BELADY: &str = "belady";

/// A cache that can be made at any capacity, or the optimum that none can pass.
#[derive(Clone)]
pub struct Contender {
    name: String,
    make: Option<Make>,
}

type Make = Arc<dyn Fn(Capacity) -> Box<dyn Simulated> + Send + Sync>;

/// A name that no contender has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no such policy: {0:?}; expected {list}, or the beginning of some and `*`", list = names())]
pub struct UnknownContender(String);

fn names() -> String {
    let all = Contender::all();
    let names: Vec<_> = all.iter().map(Contender::name).collect();
    names.join(", ")
}

impl Contender {
    /// Names something that can be simulated, and tells how to make it.
    ///
    /// `make` runs once for each capacity, on the thread that then simulates.
    pub fn new(
        name: impl Into<String>,
        make: impl Fn(Capacity) -> Box<dyn Simulated> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), make: Some(Arc::new(make)) }
    }

    /// This crate's cache under one of its policies.
    #[must_use]
    pub fn policy(policy: Policy) -> Self {
        Self::new(policy.as_str(), move |capacity| live(capacity, Engine::Switchable, policy))
    }

    /// This crate's cache with the engine that has a policy of its own.
    #[must_use]
    pub fn clock_pro() -> Self {
        let make = |capacity| live(capacity, Engine::ClockPro, Policy::default());
        Self::new(CLOCK_PRO, make)
    }

    /// A policy of the literature.
    #[must_use]
    pub fn textbook(policy: Textbook) -> Self {
        Self::new(policy.as_str(), move |capacity| policy.cache(capacity))
    }

    /// The optimum, which knows what comes; see [`Future`](super::Future).
    #[must_use]
    pub fn optimum() -> Self {
        Self { name: BELADY.to_owned(), make: None }
    }

    /// Every contender that this crate has.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all: Vec<_> = Policy::ALL.into_iter().map(Self::policy).collect();
        all.push(Self::clock_pro());
        all.extend(Textbook::ALL.into_iter().map(Self::textbook));
        all.push(Self::optimum());
        all
    }

    /// The contenders of a name, or of a beginning of names that ends in `*`.
    ///
    /// # Errors
    ///
    /// [`UnknownContender`] when there is none.
    pub fn matching(pattern: &str) -> Result<Vec<Self>, UnknownContender> {
        let mut found = Self::all();
        match pattern.strip_suffix('*') {
            Some(beginning) => found.retain(|contender| contender.name.starts_with(beginning)),
            None => found.retain(|contender| contender.name == pattern),
        }
        if found.is_empty() { Err(UnknownContender(pattern.to_owned())) } else { Ok(found) }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it knows what comes, and so shows only what is possible.
    #[must_use]
    pub fn is_optimum(&self) -> bool {
        self.make.is_none()
    }

    /// Makes an empty cache, or nothing for the optimum.
    pub(super) fn make(&self, capacity: Capacity) -> Option<Box<dyn Simulated>> {
        self.make.as_ref().map(|make| make(capacity))
    }
}

impl fmt::Debug for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Contender").field(&self.name).finish()
    }
}

/// A cache whose values are what its entries weigh.
struct Live(Cache<u64, u32, BuildMix>);

impl Simulated for Live {
    fn request(&mut self, key: u64, weight: u32) -> bool {
        let hit = self.0.get_in_memory(&key).is_some();
        if !hit {
            self.0.insert(key, weight);
        }
        hit
    }
}

/// A cache that has no room, which the builder would refuse to make.
struct Nothing;

impl Simulated for Nothing {
    fn request(&mut self, _: u64, _: u32) -> bool {
        false
    }
}

fn live(capacity: Capacity, engine: Engine, policy: Policy) -> Box<dyn Simulated> {
    if capacity.limit() == 0 {
        return Box::new(Nothing);
    }
    let builder = Cache::builder("simulation").engine(engine).policy(policy).hasher(BuildMix);
    let builder = if capacity.weighs() {
        builder.bytes(capacity.limit(), |_, weight| u64::from(*weight))
    } else {
        builder.entries(capacity.limit())
    };
    let cache = builder.build().expect("the name and the bound are good, and threads can be made");
    Box::new(Live(cache))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Workload, run};

    fn names_of(pattern: &str) -> Vec<String> {
        let found = Contender::matching(pattern).unwrap();
        found.into_iter().map(|contender| contender.name).collect()
    }

    #[test]
    fn a_name_or_a_beginning_finds_contenders() {
        assert_eq!(names_of("arc"), ["arc"]);
        assert_eq!(names_of("s*"), ["s3-fifo"]);
        assert_eq!(names_of("textbook-*").len(), Textbook::ALL.len());
        assert_eq!(names_of("*").len(), Policy::ALL.len() + Textbook::ALL.len() + 2);
    }

    #[test]
    fn a_name_that_nobody_has_is_refused_with_those_that_there_are() {
        let error = Contender::matching("lruu").unwrap_err().to_string();
        assert!(error.starts_with("no such policy: \"lruu\"; expected lru, lfu, arc,"), "{error}");
        assert!(error.contains("textbook-sieve") && error.contains("belady"), "{error}");
        Contender::matching("x*").unwrap_err();
    }

    #[test]
    fn only_the_optimum_cannot_be_made() {
        for contender in Contender::all() {
            let made = contender.make(Capacity::entries(10)).is_some();
            assert_eq!(made, contender.name() != BELADY, "{contender:?}");
            assert_eq!(made, !contender.is_optimum(), "{contender:?}");
        }
    }

    #[test]
    fn every_contender_hits_what_fits_and_misses_everything_without_room() {
        // Small enough for the fullest of the shards.
        let trace = Workload::Loop { keys: 50 }.trace(500, 1);
        for contender in Contender::all() {
            for (capacity, hits) in [(Capacity::entries(10_000), 450), (Capacity::entries(0), 0)] {
                if let Some(mut cache) = contender.make(capacity) {
                    assert_eq!(run(&trace, &mut *cache).hits, hits, "{contender:?} {capacity:?}");
                }
            }
        }
    }

    #[test]
    fn a_bound_in_weight_holds_fewer_of_what_is_heavy() {
        let weighing = |weight| {
            let keys = Workload::Loop { keys: 50 }.trace(500, 1);
            crate::simulate::Trace::weighted("t", keys.keys().iter().map(|key| (*key, weight)))
        };
        let capacity = Capacity::weight(1_000_000, 1_000);
        for contender in Contender::all() {
            if let Some(mut light) = contender.make(capacity) {
                assert_eq!(run(&weighing(1_000), &mut *light).hits, 450, "{contender:?}");
            }
            if let Some(mut heavy) = contender.make(capacity) {
                assert!(run(&weighing(100_000), &mut *heavy).hits < 450, "{contender:?}");
            }
        }
    }
}
