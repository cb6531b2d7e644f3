//! The set of backends as it is administered: who is in it, who gets traffic, and when that changes.
//!
//! Everything here happens under one lock and rarely. Each change ends in a [`Snapshot`], which picks
//! read without the lock. A member keeps its node, its checks and its ejections when the set is
//! replaced, and a member that left is remembered for a while, so a backend that flaps in discovery
//! comes back with its history.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Backend, BackendState, BackendStats};
use crate::builder::Settings;
use crate::event::{Change, EjectReason, Event};
use crate::health::{Checked, Ejection, WARMING_STEPS, nanos, warmth};
use crate::latency::{Averaging, Nanos};
use crate::node::{Node, UNLIMITED};
use crate::policy::{Level, Policy, Table, unit};

/// Backends that left and are remembered.
const DEPARTED_MAX: usize = 256;
/// The share of a zone's backends that must be ready for the zone to keep its traffic.
const ZONE_SHARE_MIN: f64 = 0.5;

/// What the picks read.
pub(crate) struct Snapshot {
    /// Everybody, ready or not.
    pub(crate) members: Arc<[Arc<Node>]>,
    /// Those that get traffic, the best first.
    pub(crate) levels: Box<[Level]>,
    /// The same, by name.
    pub(crate) ready: HashMap<Arc<str>, Arc<Node>>,
    /// Places of those that get traffic; `None` if one of them has no limit.
    pub(crate) capacity: Option<u64>,
    pub(crate) averaging: Option<Averaging>,
    /// Whether leases count for the bound of the hashing policies.
    pub(crate) bounded: bool,
}

/// A backend in the set.
struct Member {
    node: Arc<Node>,
    backend: Backend,
    draining: bool,
    /// The end of its suspension.
    suspended: Option<Nanos>,
    checked: Checked,
    ejection: Ejection,
    warming_since: Option<Nanos>,
    /// Its answers and failures at the start of the interval.
    seen: (u64, u64),
}

impl Member {
    fn new(node: Arc<Node>, backend: Backend) -> Self {
        let mut member = Self {
            node,
            backend,
            draining: false,
            suspended: None,
            checked: Checked::default(),
            ejection: Ejection::default(),
            warming_since: None,
            seen: (0, 0),
        };
        member.apply_limit();
        member
    }

    fn apply_limit(&mut self) {
        self.node.set_limit(self.backend.max_in_flight.unwrap_or(UNLIMITED));
    }

    /// Whether somebody wants it to get traffic.
    fn wanted(&self) -> bool {
        !self.draining && self.backend.weight > 0
    }

    /// Whether it is in a state to get some; `None` if that is not known.
    fn healthy(&self, checked: bool) -> Option<bool> {
        let sound = if checked { self.checked.healthy()? } else { true };
        Some(sound && self.ejection.until().is_none() && self.suspended.is_none())
    }

    fn weight_at(&self, now: Nanos, slow_start: Duration) -> f64 {
        let warm =
            self.warming_since.map_or(1.0, |since| warmth(now.saturating_sub(since), slow_start));
        f64::from(self.backend.weight) * warm
    }

    fn event(&self, change: Change) -> Event {
        Event { backend: Some(Arc::clone(&self.backend.id)), change }
    }
}

/// A table, and the members and weights it was made of.
type Keyed = (Vec<(Arc<str>, u32)>, Arc<Table>);

/// The members and what they have in common.
pub(crate) struct Set {
    settings: Arc<Settings>,
    policy: Policy,
    members: Vec<Member>,
    departed: VecDeque<Member>,
    panicking: bool,
    /// When success rates are compared next.
    compare_at: Nanos,
    /// The tables of the last snapshot and what they were made of.
    tables: Vec<Keyed>,
    draws: fastrand::Rng,
}

impl Set {
    pub(crate) fn new(settings: Arc<Settings>, policy: Policy, seed: u64) -> Self {
        let compare_at = nanos(settings.ejecting.interval);
        Self {
            settings,
            policy,
            members: Vec::new(),
            departed: VecDeque::new(),
            panicking: false,
            compare_at,
            tables: Vec::new(),
            draws: fastrand::Rng::with_seed(seed),
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    pub(crate) fn compare_at(&self) -> Nanos {
        self.compare_at
    }

    /// The backends in the order in which they are listed.
    pub(crate) fn backends(&self) -> Vec<Backend> {
        self.members.iter().map(|member| member.backend.clone()).collect()
    }

    /// Replaces the set; backends that stay keep what is known of them.
    pub(crate) fn replace(
        &mut self,
        backends: Vec<Backend>,
        now: Nanos,
        make: impl Fn(Arc<str>) -> Arc<Node>,
        events: &mut Vec<Event>,
    ) {
        let ids: HashSet<&str> = backends.iter().map(|backend| &*backend.id).collect();
        let (stay, leave): (Vec<_>, Vec<_>) = std::mem::take(&mut self.members)
            .into_iter()
            .partition(|member| ids.contains(&*member.backend.id));
        let had_some = !stay.is_empty();
        for member in leave {
            events.push(member.event(Change::Removed));
            if member.node.watch() == 0 {
                events.push(member.event(Change::Drained));
            }
            self.departed.push_back(member);
        }
        let mut stay: HashMap<Arc<str>, Member> =
            stay.into_iter().map(|member| (Arc::clone(&member.backend.id), member)).collect();
        for backend in backends {
            let member = match stay.remove(&backend.id) {
                Some(mut member) => {
                    note_changes(&member.backend, &backend, events);
                    member.backend = backend;
                    member.apply_limit();
                    member
                }
                None => self.join(backend, now, had_some, &make, events),
            };
            self.members.push(member);
        }
        while self.departed.len() > DEPARTED_MAX {
            self.departed.pop_front();
        }
    }

    fn join(
        &mut self,
        backend: Backend,
        now: Nanos,
        had_some: bool,
        make: impl Fn(Arc<str>) -> Arc<Node>,
        events: &mut Vec<Event>,
    ) -> Member {
        let at = self.departed.iter().position(|member| member.backend.id == backend.id);
        let known = at.and_then(|at| self.departed.remove(at));
        let was_known = known.is_some();
        let mut member = match known {
            Some(mut member) => {
                member.node.stop_watching();
                member.backend = backend;
                member.draining = false;
                member.suspended = None;
                // What its checks said is as old as its absence.
                member.checked = Checked::default();
                member.apply_limit();
                member
            }
            None => Member::new(make(Arc::clone(&backend.id)), backend),
        };
        // A set that is all new has nobody to take the traffic in the meantime.
        member.warming_since = had_some.then_some(now);
        events.push(member.event(Change::Added { known: was_known }));
        member
    }

    fn member(&mut self, id: &str) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| *member.backend.id == *id)
    }

    /// Changes one backend's description; returns whether it is there.
    pub(crate) fn adjust(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut Backend),
        events: &mut Vec<Event>,
    ) -> bool {
        let Some(member) = self.member(id) else { return false };
        let before = member.backend.clone();
        change(&mut member.backend);
        note_changes(&before, &member.backend, events);
        member.apply_limit();
        true
    }

    /// Gives a backend no new leases; returns whether it is there.
    pub(crate) fn drain(&mut self, id: &str, events: &mut Vec<Event>) -> bool {
        let Some(member) = self.member(id) else { return false };
        if !std::mem::replace(&mut member.draining, true) {
            events.push(member.event(Change::Draining));
            if member.node.watch() == 0 {
                events.push(member.event(Change::Drained));
            }
        }
        true
    }

    /// Ends the draining or the ejection of a backend; returns whether it is there.
    pub(crate) fn restore(&mut self, id: &str, now: Nanos, events: &mut Vec<Event>) -> bool {
        let Some(member) = self.member(id) else { return false };
        if std::mem::take(&mut member.draining) {
            member.node.stop_watching();
            events.push(member.event(Change::Resumed));
        }
        if member.ejection.end(now) {
            bring_back(member, now);
            events.push(member.event(Change::Restored { early: true }));
        }
        true
    }

    /// Ejects a backend because somebody said so; returns whether it is there.
    pub(crate) fn eject(
        &mut self,
        id: &str,
        time: Duration,
        now: Nanos,
        events: &mut Vec<Event>,
    ) -> bool {
        let Some(member) = self.member(id) else { return false };
        member.ejection.eject_for(now, time);
        events.push(member.event(Change::Ejected { reason: EjectReason::Manual, time }));
        true
    }

    /// Gives a backend nothing for `time`, panic or not; returns whether it is there.
    pub(crate) fn suspend(
        &mut self,
        id: &str,
        time: Duration,
        now: Nanos,
        events: &mut Vec<Event>,
    ) -> bool {
        let Some(member) = self.member(id) else { return false };
        let before = member.suspended.replace(now.saturating_add(nanos(time)));
        if before.is_none() {
            events.push(member.event(Change::Suspended { time }));
        }
        true
    }

    /// Ends the suspension of a backend; returns whether it is there.
    pub(crate) fn resume(&mut self, id: &str, now: Nanos, events: &mut Vec<Event>) -> bool {
        let Some(member) = self.member(id) else { return false };
        if member.suspended.take().is_some() {
            bring_back(member, now);
            events.push(member.event(Change::Resumed));
        }
        true
    }

    /// Takes the result of an active check; returns whether the backend is there.
    pub(crate) fn check(
        &mut self,
        id: &str,
        result: Result<(), &str>,
        now: Nanos,
        events: &mut Vec<Event>,
    ) -> bool {
        let Some(thresholds) = self.settings.checks else { return self.member(id).is_some() };
        let Some(member) = self.member(id) else { return false };
        let was_down = member.checked.healthy() == Some(false);
        if member.checked.observe(result.is_ok(), thresholds) {
            match result {
                Ok(()) => {
                    if was_down {
                        bring_back(member, now);
                    }
                    events.push(member.event(Change::Up));
                }
                Err(reason) => {
                    events.push(member.event(Change::Down { reason: reason.to_owned() }));
                }
            }
        }
        true
    }

    /// Installs another policy.
    pub(crate) fn set_policy(&mut self, policy: Policy, events: &mut Vec<Event>) {
        self.policy = policy;
        self.tables.clear();
        events.push(Event { backend: None, change: Change::Policy });
    }

    /// Looks at a failure, the `row`-th in a row of its backend; returns whether something changed.
    pub(crate) fn failed(
        &mut self,
        node: &Arc<Node>,
        row: u32,
        now: Nanos,
        events: &mut Vec<Event>,
    ) -> bool {
        let ejecting = self.settings.ejecting;
        let mut changed = false;
        if ejecting.consecutive_failures > 0 && row >= ejecting.consecutive_failures {
            let at = self.members.iter().position(|member| Arc::ptr_eq(&member.node, node));
            if let Some(at) = at {
                let reason = EjectReason::ConsecutiveFailures(row);
                changed |= self.try_eject(at, reason, now, events);
            }
        }
        if now >= self.compare_at {
            self.compare_at = now.saturating_add(nanos(ejecting.interval));
            changed |= self.compare(now, events);
        }
        changed
    }

    /// Ejects those that succeed less often than all others together.
    fn compare(&mut self, now: Nanos, events: &mut Vec<Event>) -> bool {
        let counts: Vec<(u64, u64)> = self
            .members
            .iter_mut()
            .map(|member| {
                let (answers, failures) = member.node.answers();
                let (answers_before, failures_before) =
                    std::mem::replace(&mut member.seen, (answers, failures));
                (answers.saturating_sub(answers_before), failures.saturating_sub(failures_before))
            })
            .collect();
        let sum = counts.iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        let rate = |(answers, failures): (u64, u64)| 1.0 - failures as f64 / answers as f64;
        let mut changed = false;
        for (at, (answers, failures)) in counts.into_iter().enumerate() {
            let others = (sum.0 - answers, sum.1.saturating_sub(failures));
            let fewest = u64::from(self.settings.ejecting.minimum_answers).max(1);
            if answers < fewest || others.0 < fewest {
                continue;
            }
            let (own, others) = (rate((answers, failures)), rate(others));
            if others - own >= self.settings.ejecting.success_rate_gap {
                changed |=
                    self.try_eject(at, EjectReason::SuccessRate { own, others }, now, events);
            }
        }
        changed
    }

    fn try_eject(
        &mut self,
        at: usize,
        reason: EjectReason,
        now: Nanos,
        events: &mut Vec<Event>,
    ) -> bool {
        if self.members[at].ejection.until().is_some() {
            return false;
        }
        let ejected = |member: &&Member| member.ejection.until().is_some();
        let most = self.settings.ejecting.most(self.members.len());
        if self.members.iter().filter(ejected).count() >= most {
            events.push(self.members[at].event(Change::NotEjected { reason }));
            return false;
        }
        let draw = unit(self.draws.u64(..));
        let member = &mut self.members[at];
        let time = member.ejection.eject(now, draw, &self.settings.ejecting);
        events.push(member.event(Change::Ejected { reason, time }));
        true
    }

    /// Ends what time alone ends.
    pub(crate) fn expire(&mut self, now: Nanos, events: &mut Vec<Event>) {
        for member in &mut self.members {
            if member.ejection.expire(now) {
                bring_back(member, now);
                events.push(member.event(Change::Restored { early: false }));
            }
            if member.suspended.is_some_and(|until| now >= until) {
                member.suspended = None;
                bring_back(member, now);
                events.push(member.event(Change::Resumed));
            }
            let warm = nanos(self.settings.slow_start);
            if member.warming_since.is_some_and(|since| now.saturating_sub(since) >= warm) {
                member.warming_since = None;
            }
        }
    }

    /// When time alone changes something next.
    pub(crate) fn next_change(&self, now: Nanos) -> Nanos {
        let step = (nanos(self.settings.slow_start) / WARMING_STEPS).max(1);
        let next = |member: &Member| {
            let warmer = member.warming_since.map(|since| {
                let steps = now.saturating_sub(since) / step + 1;
                since.saturating_add(steps.saturating_mul(step))
            });
            member.ejection.until().into_iter().chain(member.suspended).chain(warmer).min()
        };
        self.members.iter().filter_map(next).min().unwrap_or(Nanos::MAX)
    }

    /// Works out what the picks need to know.
    pub(crate) fn snapshot(&mut self, now: Nanos, events: &mut Vec<Event>) -> Snapshot {
        self.judge_panic(events);
        let checked = self.settings.checks.is_some();
        let serves = |member: &Member| {
            let health = member.healthy(checked);
            member.wanted()
                && member.suspended.is_none()
                && (health == Some(true) || self.panicking && health.is_some())
        };
        let serving: Vec<bool> = self.members.iter().map(serves).collect();
        for member in &self.members {
            if member.backend.weight > 0 {
                member.node.set_weight(member.weight_at(now, self.settings.slow_start));
            }
        }
        let priorities: BTreeSet<u32> =
            self.members.iter().map(|member| member.backend.priority).collect();
        let mut levels = Vec::new();
        let mut tables = Vec::new();
        for priority in priorities {
            let within = |at: &usize| self.members[*at].backend.priority == priority;
            let ready: Vec<usize> =
                (0..self.members.len()).filter(within).filter(|at| serving[*at]).collect();
            if ready.is_empty() {
                continue;
            }
            if self.policy.hashes() {
                let keyed: Vec<usize> = (0..self.members.len())
                    .filter(within)
                    .filter(|at| self.members[*at].backend.weight > 0)
                    .collect();
                let mut indices = vec![None; self.members.len()];
                for (at, index) in ready.iter().zip(0_u32..) {
                    indices[*at] = Some(index);
                }
                let places = keyed.iter().map(|at| indices[*at]).collect();
                let table = self.table(&keyed);
                tables.push(table.clone());
                let level = self.level(&ready, now, Some((table.1, places)));
                levels.push(level);
            } else {
                for group in self.by_zone(priority, ready) {
                    levels.push(self.level(&group, now, None));
                }
            }
        }
        self.tables = tables;
        let nodes = levels.iter().flat_map(Level::nodes);
        let limit = |node: &Arc<Node>| match node.limit() {
            UNLIMITED => None,
            limit => Some(u64::from(limit)),
        };
        Snapshot {
            capacity: nodes.clone().map(limit).sum(),
            members: self.members.iter().map(|member| Arc::clone(&member.node)).collect(),
            ready: nodes.map(|node| (Arc::clone(&node.id), Arc::clone(node))).collect(),
            levels: levels.into(),
            averaging: self.policy.averaging(),
            bounded: self.policy.hashes(),
        }
    }

    fn level(
        &mut self,
        group: &[usize],
        now: Nanos,
        keys: Option<(Arc<Table>, Vec<Option<u32>>)>,
    ) -> Level {
        let nodes = group.iter().map(|at| Arc::clone(&self.members[*at].node)).collect();
        let weight = |at: &usize| self.members[*at].weight_at(now, self.settings.slow_start);
        let weights: Vec<f64> = group.iter().map(weight).collect();
        Level::new(&self.policy, nodes, &weights, keys, self.draws.u32(..))
    }

    /// The table for members, the last one if it was made of the same.
    fn table(&self, keyed: &[usize]) -> Keyed {
        let of = |at: &usize| {
            let backend = &self.members[*at].backend;
            (Arc::clone(&backend.id), backend.weight)
        };
        let made_of: Vec<_> = keyed.iter().map(of).collect();
        if let Some(same) = self.tables.iter().find(|(before, _)| *before == made_of) {
            return same.clone();
        }
        let table = match self.policy {
            Policy::Maglev { .. } => Table::maglev(&made_of),
            _ => Table::ring(&made_of),
        };
        (made_of, Arc::new(table))
    }

    /// Puts the backends of the balancer's own zone first, while enough of them are ready.
    fn by_zone(&self, priority: u32, ready: Vec<usize>) -> Vec<Vec<usize>> {
        let Some(zone) = &self.settings.zone else { return vec![ready] };
        let is_local = |at: &usize| self.members[*at].backend.zone.as_ref() == Some(zone);
        let all = (0..self.members.len())
            .filter(|at| self.members[*at].backend.priority == priority)
            .filter(|at| is_local(at) && self.members[*at].wanted())
            .count();
        let (local, rest): (Vec<_>, Vec<_>) = ready.iter().copied().partition(|at| is_local(at));
        if local.is_empty() || rest.is_empty() || (local.len() as f64) < ZONE_SHARE_MIN * all as f64
        {
            return vec![ready];
        }
        vec![local, rest]
    }

    fn judge_panic(&mut self, events: &mut Vec<Event>) {
        let checked = self.settings.checks.is_some();
        let known: Vec<bool> = self
            .members
            .iter()
            .filter(|member| member.wanted())
            .filter_map(|member| member.healthy(checked))
            .collect();
        let healthy = known.iter().filter(|healthy| **healthy).count();
        let of = known.len();
        let panicking = (healthy as f64) < self.settings.panic_threshold * of as f64;
        if panicking != self.panicking {
            self.panicking = panicking;
            let change = match panicking {
                true => Change::PanicBegan { healthy, of },
                false => Change::PanicEnded,
            };
            events.push(Event { backend: None, change });
        }
    }

    pub(crate) fn panicking(&self) -> bool {
        self.panicking
    }

    /// Describes every backend.
    pub(crate) fn stats(&self, now: Nanos) -> Vec<BackendStats> {
        self.members.iter().map(|member| self.stats_of(member, now)).collect()
    }

    fn stats_of(&self, member: &Member, now: Nanos) -> BackendStats {
        let checked = self.settings.checks.is_some();
        let state = if !member.wanted() {
            BackendState::Draining
        } else if checked && member.checked.healthy().is_none() {
            BackendState::Unknown
        } else if checked && member.checked.healthy() == Some(false) {
            BackendState::Down
        } else if member.suspended.is_some() {
            BackendState::Suspended
        } else if member.ejection.until().is_some() {
            BackendState::Ejected
        } else if member.weight_at(now, self.settings.slow_start) < f64::from(member.backend.weight)
        {
            BackendState::SlowStart
        } else {
            BackendState::Ready
        };
        let node = &member.node;
        let (answered, failed) = node.answers();
        let latency = self.policy.averaging().and(node.latency.last());
        BackendStats {
            id: Arc::clone(&member.backend.id),
            state,
            weight: member.backend.weight,
            max_in_flight: member.backend.max_in_flight,
            zone: member.backend.zone.clone(),
            priority: member.backend.priority,
            in_flight: node.in_flight(),
            latency: latency.map(|nanos| Duration::from_nanos(nanos as u64)),
            leases: node.leases(),
            answered,
            failed,
            ejections: member.ejection.count(now, &self.settings.ejecting),
            ejected_for: member
                .ejection
                .until()
                .map(|until| Duration::from_nanos(until.saturating_sub(now))),
        }
    }
}

/// A backend that comes back starts as an ordinary one, and slowly if that is set.
fn bring_back(member: &mut Member, now: Nanos) {
    member.warming_since = Some(now);
    member.node.latency.clear();
    member.node.forgive();
}

fn note_changes(before: &Backend, after: &Backend, events: &mut Vec<Event>) {
    let mut note = |change| events.push(Event { backend: Some(Arc::clone(&after.id)), change });
    if before.weight != after.weight {
        note(Change::Weight { from: before.weight, to: after.weight });
    }
    if before.max_in_flight != after.max_in_flight {
        note(Change::MaxInFlight { from: before.max_in_flight, to: after.max_in_flight });
    }
}
