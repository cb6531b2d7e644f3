//! Who decides which policy runs: the user, or the election where they chose [`Policy::Adaptive`].
//!
//! One lock guards the election and the curve. Readers and writers only ever try it: who does not get
//! it goes on, and its samples wait for the next time. While it is held the shards are switched, so two
//! decisions cannot end up in different shards; a shard's lock is never held when it is taken.

use parking_lot::Mutex;

use super::locals::Locals;
use crate::policy::curve::{Curve, MissRatioCurve};
use crate::policy::election::{Election, PolicyReport};
use crate::policy::{Kind, Policy};

#[derive(Debug)]
pub(super) struct Director(Mutex<State>);

#[derive(Debug)]
struct State {
    policy: Policy,
    /// What the shards run.
    kind: Kind,
    election: Option<Election>,
    curve: Option<Curve>,
    capacity: u64,
    entries: u64,
    /// What the threads were told to sample.
    threshold: u64,
}

impl State {
    /// Tells the threads how many keys to sample from now on, if that has changed.
    fn set_threshold(&mut self, locals: &Locals) {
        let election = self.election.as_ref().map_or(0, Election::threshold);
        let threshold = election.max(self.curve.as_ref().map_or(0, Curve::threshold));
        if threshold != self.threshold {
            self.threshold = threshold;
            locals.set_threshold(threshold);
        }
    }

    fn run(&mut self, kind: Kind, switch: impl FnOnce(Kind)) {
        if self.kind != kind {
            self.kind = kind;
            if let Some(curve) = &mut self.curve {
                curve.switch(kind);
            }
            switch(kind);
        }
    }
}

impl Director {
    pub(super) fn new(policy: Policy, curve: bool, capacity: u64, entries: u64) -> Self {
        let kind = policy.kind();
        let adaptive = policy == Policy::Adaptive;
        Self(Mutex::new(State {
            policy,
            kind,
            election: adaptive.then(|| Election::new(capacity, entries, kind)),
            curve: curve.then(|| Curve::new(capacity, entries, kind)),
            capacity,
            entries,
            threshold: 0,
        }))
    }

    /// Tells the threads how many keys to sample at first.
    pub(super) fn begin(&self, locals: &Locals) {
        self.0.lock().set_threshold(locals);
    }

    pub(super) fn policy(&self) -> Policy {
        self.0.lock().policy
    }

    pub(super) fn set_policy(&self, policy: Policy, locals: &Locals, switch: impl FnOnce(Kind)) {
        let mut state = self.0.lock();
        if state.policy == policy {
            return;
        }
        state.policy = policy;
        if policy == Policy::Adaptive {
            // Whatever runs is where the election starts.
            state.election = Some(Election::new(state.capacity, state.entries, state.kind));
        } else {
            state.election = None;
            state.run(policy.kind(), switch);
        }
        state.set_threshold(locals);
    }

    /// Goes on with what `wanted` tells: the capacity, and about how many entries that is.
    pub(super) fn resize(&self, wanted: impl FnOnce() -> (u64, usize), locals: &Locals) {
        let mut state = self.0.lock();
        let (capacity, entries) = wanted();
        let entries = entries as u64;
        (state.capacity, state.entries) = (capacity, entries);
        if let Some(election) = &mut state.election {
            election.resize(capacity, entries);
        }
        if let Some(curve) = &mut state.curve {
            curve.resize(capacity, entries);
        }
        state.set_threshold(locals);
    }

    /// Hands over the samples of a thread, and has the shards switch if that decides an election.
    pub(super) fn consult(&self, locals: &Locals, thread: usize, switch: impl FnOnce(Kind)) {
        let Some(mut state) = self.0.try_lock() else { return };
        let State { election, curve, .. } = &mut *state;
        let dropped = locals.drain(thread, |id, weight| {
            if let Some(election) = election {
                election.request(id, weight);
            }
            if let Some(curve) = curve {
                curve.request(id, weight);
            }
        });
        let counts = locals.counts();
        if let Some(curve) = curve {
            curve.observe(counts, dropped);
        }
        let decided = election.as_mut().and_then(|election| election.decide(counts, dropped));
        if let Some(decided) = decided {
            state.run(decided.to, switch);
        }
        state.set_threshold(locals);
    }

    pub(super) fn report(&self) -> PolicyReport {
        let state = self.0.lock();
        match &state.election {
            Some(election) => election.report(),
            None => PolicyReport::of_static(state.kind),
        }
    }

    pub(super) fn curve(&self) -> Option<MissRatioCurve> {
        self.0.lock().curve.as_ref()?.estimate()
    }
}
