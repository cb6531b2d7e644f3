//! What a backend is before it is in a set, and what it looks like from outside when it is.

use std::sync::Arc;

use crate::builder::Problem;

/// A place that calls can go to.
///
/// The id is its identity: a set that names it again keeps its counts, latency and ejections. It is
/// usually the address, which the checks of this crate take it for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub(crate) id: Arc<str>,
    pub(crate) weight: u32,
    pub(crate) max_in_flight: Option<u32>,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) priority: u32,
}

/// The largest weight.
pub(crate) const WEIGHT_MAX: u32 = 1_000_000;

impl Backend {
    /// Describes a backend of weight 1 without a limit, in no zone and of the first priority.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self { id: id.into(), weight: 1, max_in_flight: None, zone: None, priority: 0 }
    }

    /// Sets its share of the traffic against the others': 0 to 1,000,000; 1 unless told.
    ///
    /// A backend of weight 0 gets nothing and keeps the leases it has.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets how many leases it can have at once, at least 1; without a limit unless told.
    #[must_use]
    pub fn max_in_flight(mut self, leases: u32) -> Self {
        self.max_in_flight = Some(leases);
        self
    }

    /// Sets the zone it is in; see [`BalancerBuilder::zone`](crate::BalancerBuilder::zone).
    #[must_use]
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets its priority, lowest first; 0 unless told.
    ///
    /// A priority gets traffic when no backend of those before it is ready and has room.
    #[must_use]
    pub fn priority(mut self, priority: u32) -> Self {
        self.priority = priority;
        self
    }

    /// Returns its identity.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Adds what is wrong with it.
    pub(crate) fn check(&self, problems: &mut Vec<Problem>) {
        let mut wrong = |what: &str, value: &dyn std::fmt::Debug, expected| {
            let setting = format!("backend {:?}{what}", self.id);
            problems.push(Problem { setting, value: format!("{value:?}"), expected });
        };
        if self.id.is_empty() {
            wrong("", &self.id, "must not be empty");
        }
        if self.weight > WEIGHT_MAX {
            wrong(".weight", &self.weight, "must be at most 1000000");
        }
        if self.max_in_flight == Some(0) {
            wrong(".max_in_flight", &0, "must be at least 1 (weight 0 gives it no traffic)");
        }
    }
}

/// What a backend is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendState {
    /// It gets traffic.
    Ready,
    /// It gets a growing part of its traffic.
    SlowStart,
    /// Its checks have not come to an opinion.
    Unknown,
    /// It gets no traffic for a while, because it failed or because somebody said so.
    Ejected,
    /// Its checks found it down.
    Down,
    /// It gets nothing until somebody resumes it or a time is over.
    Suspended,
    /// It gets no new leases.
    Draining,
}

impl BackendState {
    /// Returns the name in metrics and answers, such as `slow_start`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::SlowStart => "slow_start",
            Self::Unknown => "unknown",
            Self::Ejected => "ejected",
            Self::Down => "down",
            Self::Suspended => "suspended",
            Self::Draining => "draining",
        }
    }
}

/// A backend of a set, as it is at a moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BackendStats {
    /// Its identity.
    pub id: Arc<str>,
    /// What it is doing.
    pub state: BackendState,
    /// Its weight.
    pub weight: u32,
    /// Its limit of leases.
    pub max_in_flight: Option<u32>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Its priority.
    pub priority: u32,
    /// Leases that are out.
    pub in_flight: u32,
    /// Its average latency, as the policy last saw it; `None` where the policy takes none.
    pub latency: Option<std::time::Duration>,
    /// Leases since it was first added.
    pub leases: u64,
    /// Calls that succeeded or failed.
    pub answered: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Ejections in a row that are not forgiven yet.
    pub ejections: u32,
    /// The rest of its ejection.
    pub ejected_for: Option<std::time::Duration>,
}
