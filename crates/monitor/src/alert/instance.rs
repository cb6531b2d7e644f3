//! The state machine of one instance: levels, hysteresis, flapping, and what there is to say.
//!
//! Each level has a track of its own: *since* when its condition is met, whether that was long enough
//! (*reached*), and since when it is *clear* again. The highest reached level is the raw level; while the
//! instance flaps it is held at the worst level it had, which is the level that is shown.
//!
//! Messages do not follow the transitions. They follow the difference between the level that is shown and
//! the one that receivers were *told* of. So a message that was kept back, by a cooldown, a silence or a
//! delay, is neither lost nor sent when it is no longer true, and a resolve is sent exactly if a fire was.
//!
//! Times are milliseconds of the monotonic clock and may be negative: before the process began.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Moment, millis};
use crate::series::Labels;

use super::event::{
    Acknowledgement, AlertState, EventKind, Fingerprint, InstanceRecord, LevelRecord, Severity,
};
use super::rule::{Flap, Rule};

/// A moment in milliseconds by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) mono: i64,
    pub(super) unix_ms: i64,
}

impl Now {
    pub(super) fn of(moment: Moment) -> Self {
        Self { mono: millis(moment.monotonic), unix_ms: moment.unix_ms }
    }

    /// Returns what the wall clock shows, counted back from now, at a time of the monotonic one.
    pub(super) fn wall(self, mono: i64) -> i64 {
        self.unix_ms.saturating_sub(self.mono.saturating_sub(mono))
    }
}

/// What the samples say about one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The condition is met.
    Raised,
    /// Neither met nor clear: what is reached stays reached.
    Between,
    /// All is well.
    Cleared,
    /// There is nothing to judge by: all stays as it is.
    Unknown,
}

/// One level with what the samples say about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Judged {
    pub(super) severity: Severity,
    pub(super) verdict: Verdict,
    pub(super) hold: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Track {
    since: Option<i64>,
    reached: bool,
    clear_since: Option<i64>,
}

/// An alert that just ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ended {
    pub(super) starts_at_ms: i64,
    pub(super) active_ms: i64,
    pub(super) peak: Severity,
}

/// A message to be sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Message {
    pub(super) kind: EventKind,
    pub(super) severity: Severity,
    /// When the alert fired that the receivers know of.
    pub(super) starts_at_ms: i64,
    /// The number of the message of this instance.
    pub(super) number: u64,
}

/// The state of one instance.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Core {
    tracks: [Track; 4],
    /// The highest reached level, and the one that is shown.
    raw: Option<Severity>,
    level: Option<Severity>,
    state: AlertState,
    state_since: i64,
    /// When it fired, by both clocks.
    started: i64,
    started_ms: i64,
    peak: Severity,
    /// The level that receivers know of, and when the alert fired that they know of.
    told: Option<Severity>,
    told_since_ms: i64,
    last_message: Option<(i64, Severity)>,
    messages: u64,
    changes: VecDeque<i64>,
    /// Whether the last change made it worse.
    worsened: Option<bool>,
    flapping: Option<Severity>,
    flapping_told: bool,
    notify_until: Option<i64>,
    notify_factor: f64,
    acknowledged: Option<Acknowledgement>,
    dirty: bool,
}

impl Core {
    pub(super) fn new(now: Now) -> Self {
        Self {
            tracks: [Track::default(); 4],
            raw: None,
            level: None,
            state: AlertState::Ok,
            state_since: now.mono,
            started: now.mono,
            started_ms: now.unix_ms,
            peak: Severity::Info,
            told: None,
            told_since_ms: now.unix_ms,
            last_message: None,
            messages: 0,
            changes: VecDeque::new(),
            worsened: None,
            flapping: None,
            flapping_told: false,
            notify_until: None,
            notify_factor: 1.0,
            acknowledged: None,
            dirty: false,
        }
    }

    pub(super) fn level(&self) -> Option<Severity> {
        self.level
    }

    pub(super) fn state(&self) -> AlertState {
        self.state
    }

    pub(super) fn state_since(&self) -> i64 {
        self.state_since
    }

    pub(super) fn is_flapping(&self) -> bool {
        self.flapping.is_some()
    }

    pub(super) fn acknowledged(&self) -> Option<&Acknowledgement> {
        self.acknowledged.as_ref()
    }

    /// Returns when it fired by both clocks, if it fires.
    pub(super) fn started(&self) -> Option<(i64, i64)> {
        self.level.map(|_| (self.started, self.started_ms))
    }

    /// Returns the level it has, or that it is about to get, or that receivers know of.
    pub(super) fn shown(&self) -> Severity {
        let pending = |level: &Severity| self.tracks[*level as usize].since.is_some();
        let pending = || Severity::ALL.into_iter().find(pending);
        self.level.or_else(pending).or(self.told).unwrap_or_default()
    }

    /// Whether anything goes on, or somebody has to be told something.
    pub(super) fn is_live(&self) -> bool {
        self.state != AlertState::Ok || self.told.is_some() || self.flapping.is_some()
    }

    /// Whether nothing is left that a restart must not lose.
    pub(super) fn is_blank(&self, now: i64, rule: &Rule) -> bool {
        let cooled = |(at, _)| now.saturating_sub(at) >= millis(rule.cooldown);
        !self.is_live() && self.last_message.is_none_or(cooled) && self.changes.is_empty()
    }

    /// Returns whether the record changed since this was last asked.
    pub(super) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// Takes in what the samples say about each level; returns the alert that ended by it.
    pub(super) fn observe(&mut self, now: Now, judged: &[Judged], rule: &Rule) -> Option<Ended> {
        let idle = self.state == AlertState::Ok && self.changes.is_empty();
        let well = |judged: &Judged| matches!(judged.verdict, Verdict::Cleared | Verdict::Between);
        if idle && judged.iter().all(well) {
            return None;
        }
        let mut highest = None;
        for &Judged { severity, verdict, hold } in judged {
            if self.track(severity, verdict, hold, now.mono, millis(rule.keep_firing_for)) {
                highest = Some(severity);
            }
        }
        // Who is critical is also at least a warning, whatever that one still waits for.
        for Judged { severity, verdict, .. } in judged {
            if Some(*severity) < highest && *verdict == Verdict::Raised {
                self.tracks[*severity as usize].reached = true;
            }
        }
        self.settle(now, rule)
    }

    /// Moves one level on; returns whether it was reached just now.
    fn track(
        &mut self,
        severity: Severity,
        verdict: Verdict,
        hold: Duration,
        now: i64,
        keep: i64,
    ) -> bool {
        let before = self.tracks[severity as usize];
        let mut track = before;
        match verdict {
            Verdict::Unknown => {}
            Verdict::Raised => {
                track.clear_since = None;
                let since = *track.since.get_or_insert(now);
                track.reached |= now.saturating_sub(since) >= millis(hold);
            }
            Verdict::Between if track.reached => track.clear_since = None,
            Verdict::Cleared if track.reached => {
                let since = *track.clear_since.get_or_insert(now);
                if now.saturating_sub(since) >= keep {
                    track = Track::default();
                }
            }
            Verdict::Between | Verdict::Cleared => track.since = None,
        }
        self.dirty |= track != before;
        self.tracks[severity as usize] = track;
        track.reached && !before.reached
    }

    /// Drops what was pending: there were no samples for too long to go on counting.
    pub(super) fn drop_pending(&mut self, now: Now, rule: &Rule) -> Option<Ended> {
        for track in &mut self.tracks {
            if !track.reached && track.since.take().is_some() {
                self.dirty = true;
            }
        }
        self.settle(now, rule)
    }

    /// Ends everything; a condition that is still met begins anew.
    pub(super) fn reset(&mut self, now: Now, rule: &Rule) -> Option<Ended> {
        self.dirty |= self.is_live();
        self.tracks = [Track::default(); 4];
        self.changes.clear();
        self.flapping = None;
        self.raw = None;
        let ended = self.settle(now, rule);
        self.changes.clear();
        self.notify_until = None;
        ended
    }

    /// Computes the level that is shown from the tracks and the flap hold.
    fn settle(&mut self, now: Now, rule: &Rule) -> Option<Ended> {
        let reached = |level: &Severity| self.tracks[*level as usize].reached;
        let raw = Severity::ALL.into_iter().rev().find(reached);
        self.flaps(now.mono, raw, rule.flap);
        let level = match self.flapping {
            Some(held) => Some(held),
            None => raw,
        };
        let ended = match (self.level, level) {
            (Some(_), None) => Some(Ended {
                starts_at_ms: self.started_ms,
                active_ms: now.mono.saturating_sub(self.started),
                peak: self.peak,
            }),
            _ => None,
        };
        if level != self.level {
            self.dirty = true;
            if self.level.is_none() {
                (self.started, self.started_ms) = (now.mono, now.unix_ms);
                self.peak = Severity::Info;
            }
            self.delay(now.mono, level > self.level, rule);
            self.peak = self.peak.max(level.unwrap_or_default());
            self.level = level;
            if level.is_none() {
                self.acknowledged = None;
            }
        }
        let recovering = |level: Severity| self.tracks[level as usize].clear_since.is_some();
        let state = match level {
            Some(_) if self.flapping.is_some() => AlertState::Firing,
            Some(level) if recovering(level) => AlertState::Recovering,
            Some(_) => AlertState::Firing,
            None if self.tracks.iter().any(|track| track.since.is_some()) => AlertState::Pending,
            None => AlertState::Ok,
        };
        if state != self.state {
            (self.state, self.state_since) = (state, now.mono);
        }
        ended
    }

    /// Counts changes of the raw level, and begins and ends the flap hold.
    fn flaps(&mut self, now: i64, raw: Option<Severity>, flap: Option<Flap>) {
        let before = std::mem::replace(&mut self.raw, raw);
        let Some(flap) = flap else {
            self.changes.clear();
            self.flapping = None;
            return;
        };
        if raw != before {
            self.dirty = true;
            let worse = raw > before;
            // A further step in the same direction belongs to the change before it.
            if self.worsened == Some(worse) || self.changes.len() == Flap::CHANGES_MAX {
                let same = self.worsened == Some(worse);
                _ = if same { self.changes.pop_back() } else { self.changes.pop_front() };
            }
            self.worsened = Some(worse);
            self.changes.push_back(now);
        }
        match self.flapping {
            None => {
                let old = |at: &i64| now.saturating_sub(*at) > millis(flap.within);
                while self.changes.front().is_some_and(old) {
                    self.changes.pop_front();
                    self.dirty = true;
                }
                if raw != before && self.changes.len() >= flap.changes {
                    self.flapping = raw.max(before).max(self.level);
                    self.flapping_told = false;
                }
            }
            Some(held) => {
                let since = self.changes.back().map_or(i64::MAX, |last| now.saturating_sub(*last));
                if since >= millis(flap.hold) {
                    // The next change begins a new count: who was quiet has to flap anew.
                    self.changes.clear();
                    self.flapping = None;
                    self.dirty = true;
                } else {
                    self.flapping = raw.max(Some(held));
                }
            }
        }
    }

    /// Lets messages wait after a change, longer with each change while one waits.
    fn delay(&mut self, now: i64, worse: bool, rule: &Rule) {
        let notify = rule.notify;
        let waits = self.notify_until.is_some_and(|until| now < until);
        self.notify_factor = if waits { self.notify_factor * notify.multiplier } else { 1.0 };
        let base = if worse { notify.up } else { notify.down };
        let delay = (base.as_secs_f64() * self.notify_factor).min(notify.max.as_secs_f64());
        let until = now.saturating_add((delay * 1e3) as i64);
        self.notify_until = (delay > 0.0).then_some(until);
    }

    /// Returns what is to be said, and remembers that it was said.
    ///
    /// `hushed` holds everything back but a resolve: receivers that know of a fire must know of its end.
    pub(super) fn message(&mut self, now: Now, rule: &Rule, hushed: bool) -> Option<Message> {
        if self.told == self.level && !self.is_live() {
            return None;
        }
        if self.notify_until.is_some_and(|until| now.mono < until) {
            return None;
        }
        let (kind, severity) = self.due(now.mono, rule, hushed)?;
        if self.told.is_none() {
            self.told_since_ms = self.started_ms;
        }
        self.told = if kind == EventKind::Resolve { None } else { Some(severity) };
        self.flapping_told |= kind == EventKind::Flapping;
        self.last_message = Some((now.mono, severity));
        self.messages += 1;
        self.notify_until = None;
        self.dirty = true;
        Some(Message { kind, severity, starts_at_ms: self.told_since_ms, number: self.messages })
    }

    fn due(&self, now: i64, rule: &Rule, hushed: bool) -> Option<(EventKind, Severity)> {
        let level = match (self.told, self.level) {
            (None, None) => return None,
            (Some(told), None) => return Some((EventKind::Resolve, told)),
            (_, Some(level)) => level,
        };
        let noted = self.acknowledged.as_ref().is_some_and(|noted| level <= noted.level);
        if hushed || noted {
            return None;
        }
        if self.flapping.is_some() && !self.flapping_told {
            return Some((EventKind::Flapping, level));
        }
        let cooling = self.last_message.is_some_and(|(at, last)| {
            level <= last && now.saturating_sub(at) < millis(rule.cooldown)
        });
        match self.told {
            None => (!cooling).then_some((EventKind::Fire, level)),
            Some(told) if level > told => Some((EventKind::Escalate, level)),
            Some(told) if level < told => (!cooling).then_some((EventKind::DeEscalate, level)),
            Some(_) => {
                let every = millis(rule.repeat[level as usize]?);
                let (at, _) = self.last_message?;
                let due = now.saturating_sub(at) >= every && self.state == AlertState::Firing;
                due.then_some((EventKind::Repeat, level))
            }
        }
    }

    /// Notes that somebody saw it; returns whether it fires at all.
    pub(super) fn acknowledge(&mut self, by: &str, comment: &str, at_ms: i64) -> bool {
        let Some(level) = self.level else { return false };
        let (by, comment) = (by.to_owned(), comment.to_owned());
        self.acknowledged = Some(Acknowledgement { by, comment, at_ms, level });
        self.dirty = true;
        true
    }

    /// Forgets that somebody saw it; returns whether somebody had.
    pub(super) fn unacknowledge(&mut self) -> bool {
        let known = self.acknowledged.take().is_some();
        self.dirty |= known;
        known
    }

    /// Writes down what a restart must not lose.
    pub(super) fn record(
        &self,
        now: Now,
        rule: &Arc<str>,
        rule_hash: Fingerprint,
        fingerprint: Fingerprint,
        labels: &Labels,
        value: Option<f64>,
    ) -> InstanceRecord {
        let levels = Severity::ALL.into_iter().filter_map(|severity| {
            let track = self.tracks[severity as usize];
            Some(LevelRecord {
                severity,
                since_ms: now.wall(track.since?),
                reached: track.reached,
                clear_since_ms: track.clear_since.map(|at| now.wall(at)),
            })
        });
        InstanceRecord {
            version: InstanceRecord::VERSION,
            fingerprint,
            rule: rule.clone(),
            rule_hash,
            labels: labels.clone(),
            levels: levels.collect(),
            level: self.level,
            started_ms: self.level.map(|_| now.wall(self.started)),
            peak: self.level.map(|_| self.peak),
            told: self.told,
            told_since_ms: self.told.map(|_| self.told_since_ms),
            last_message: self.last_message.map(|(at, severity)| (now.wall(at), severity)),
            messages: self.messages,
            changes_ms: self.changes.iter().map(|&at| now.wall(at)).collect(),
            flapping: self.flapping,
            notify_hold: self.notify_until.map(|until| (now.wall(until), self.notify_factor)),
            acknowledged: self.acknowledged.clone(),
            value: value.filter(|value| value.is_finite()),
            written_ms: now.unix_ms,
        }
    }

    /// Goes on where a record stopped; `downtime` counts into no duration of a condition.
    pub(super) fn restore(record: &InstanceRecord, now: Now, downtime: i64, rule: &Rule) -> Self {
        let ago = |at_ms: i64| now.mono.saturating_sub(now.unix_ms.saturating_sub(at_ms).max(0));
        // As if the process had died just now: ages stay what they were.
        let died_ms = now.unix_ms.saturating_sub(downtime.max(0));
        let aged = |at_ms: i64| now.mono.saturating_sub(died_ms.saturating_sub(at_ms).max(0));
        let mut core = Self::new(now);
        for level in &record.levels {
            core.tracks[level.severity as usize] = Track {
                since: Some(aged(level.since_ms)),
                reached: level.reached,
                clear_since: level.clear_since_ms.map(aged),
            };
        }
        let reached = |level: &Severity| core.tracks[*level as usize].reached;
        core.raw = Severity::ALL.into_iter().rev().find(reached);
        core.changes = record.changes_ms.iter().map(|&at| ago(at)).collect();
        core.changes.truncate(Flap::CHANGES_MAX);
        core.changes.make_contiguous().sort_unstable();
        core.flapping = record.flapping.filter(|_| rule.flap.is_some());
        core.flapping_told = core.flapping.is_some() && record.told.is_some();
        core.level = core.flapping.or(core.raw);
        core.told = record.told;
        core.told_since_ms = record.told_since_ms.unwrap_or(record.written_ms);
        core.started_ms = record.started_ms.unwrap_or(now.unix_ms);
        core.started = ago(core.started_ms);
        core.peak = record.peak.max(core.level).unwrap_or_default();
        core.last_message = record.last_message.map(|(at, severity)| (ago(at), severity));
        core.messages = record.messages;
        if let Some((until_ms, factor)) = record.notify_hold {
            let left = until_ms.saturating_sub(died_ms).clamp(0, millis(rule.notify.max));
            core.notify_until = Some(now.mono.saturating_add(left));
            core.notify_factor = if factor.is_finite() { factor } else { 1.0 };
        }
        core.acknowledged = record.acknowledged.clone().filter(|_| core.level.is_some());
        core.state = match core.level {
            Some(level) if core.tracks[level as usize].clear_since.is_some() => {
                AlertState::Recovering
            }
            Some(_) => AlertState::Firing,
            None if core.tracks.iter().any(|track| track.since.is_some()) => AlertState::Pending,
            None => AlertState::Ok,
        };
        core
    }
}
