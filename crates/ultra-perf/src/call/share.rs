//! How what is not kept gets from the call that made it to those that waited for it.

use std::error::Error;
use std::fmt;

use cache_tiered::LoadError;

use super::kind::Probe;

/// Hands what was passed on to those who wait: as clones, or not at all.
#[derive(Debug)]
pub struct Share<P> {
    publish: fn(&P) -> Box<dyn Error + Send + Sync>,
    recover: fn(&LoadError) -> Option<P>,
}

impl<P> Clone for Share<P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Share<P> {}

impl<P> Share<P> {
    pub(super) fn publish(&self, passed: &P) -> Box<dyn Error + Send + Sync> {
        (self.publish)(passed)
    }

    pub(super) fn recover(&self, error: &LoadError) -> Option<P> {
        (self.recover)(error)
    }
}

/// What the leader of a flight was returned.
struct Published<P>(P);

impl<P> fmt::Debug for Published<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Published")
    }
}

impl<P> fmt::Display for Published<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the function returned nothing that is kept")
    }
}

impl<P> Error for Published<P> {}

/// Found for what can be cloned.
pub trait Shared<P> {
    /// Returns how it is handed on.
    fn share(&self) -> Share<P>;
}

impl<P: Clone + Send + Sync + 'static> Shared<P> for Probe<P> {
    fn share(&self) -> Share<P> {
        Share {
            publish: |passed| Box::new(Published(passed.clone())),
            recover: |error| error.downcast_ref::<Published<P>>().map(|it| it.0.clone()),
        }
    }
}

/// Found for everything else.
pub trait Unshared<P> {
    /// Returns how it is handed on.
    fn share(&self) -> Share<P>;
}

impl<P> Unshared<P> for &Probe<P> {
    fn share(&self) -> Share<P> {
        Share { publish: |_| Box::new(Published(())), recover: |_| None }
    }
}
