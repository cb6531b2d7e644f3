//! What keeps messages back: silences, inhibitions and acknowledgements. None of them changes a state.

use std::collections::HashSet;
use std::sync::Arc;

use crate::clock::Moment;
use crate::selector::Matcher;
use crate::series::Labels;

use super::super::event::{Fingerprint, Outcome};
use super::super::instance::{Core, Now};
use super::super::rule::{Inhibit, Rule};
use super::super::silence::{Kept, Silence, SilenceError};
use super::Engine;
use super::state::Instance;

/// Characters of an author, a comment and whoever takes note of something.
const WORDS_MAX: usize = 1_000;

/// Why an acknowledgement is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcknowledgeError {
    /// Nothing of this fingerprint fires.
    #[error("no such alert fires")]
    NoSuchAlert,
    /// Nobody is named, or the texts are too long.
    #[error("an acknowledgement names who gives it, and has at most 1000 characters")]
    Words,
}

impl Engine {
    /// Finds out whose messages are kept back.
    pub(super) fn hush(&mut self, now: i64) {
        let matchers = !self.silences.is_empty() || !self.set.inhibits.is_empty();
        let live: Vec<(usize, usize)> = self
            .rules
            .iter()
            .enumerate()
            .filter(|(_, state)| state.busy)
            .flat_map(|(rule, state)| {
                let instances = state.instances.iter().enumerate();
                let live = instances.filter(|(_, instance)| {
                    instance.core.is_live()
                        || !instance.silenced_by.is_empty()
                        || instance.inhibited
                });
                live.map(move |(instance, _)| (rule, instance))
            })
            .collect();
        let of_overflow = 0..self.overflow.instances.len();
        for &(rule, instance) in &live {
            let state = &mut self.rules[rule];
            if matchers {
                state.instances[instance].matched(&state.rule);
            }
        }
        for instance in &mut self.overflow.instances {
            instance.matched(&self.overflow.rule);
        }
        let firing: Vec<(&Arc<Rule>, &Instance)> = self
            .rules
            .iter()
            .flat_map(|state| state.instances.iter().map(move |one| (&state.rule, one)))
            .filter(|(_, instance)| instance.core.level().is_some())
            .filter(|(rule, _)| matchers || self.inhibitors.contains(&rule.id))
            .collect();
        let inhibitions: Vec<Inhibition<'_>> =
            self.set.inhibits.iter().map(|inhibit| Inhibition::new(inhibit, &firing)).collect();
        let silenced = |instance: &Instance| {
            let labels = instance.match_labels();
            let active = self.silences.iter().filter(|kept| kept.is_active(now));
            let ours = active.filter(|kept| kept.silence.matches(labels));
            ours.map(|kept| kept.silence.id).collect::<Vec<u64>>()
        };
        let inhibited = |rule: &Rule, instance: &Instance| {
            inhibitions.iter().any(|inhibition| inhibition.strikes(instance.match_labels()))
                || !rule.inhibited_by.is_empty()
                    && firing.iter().any(|(source, other)| {
                        rule.inhibited_by.contains(&source.id)
                            && source.id != rule.id
                            && agree(&other.labels, &instance.labels)
                    })
        };
        let found: Vec<(Vec<u64>, bool)> = live
            .iter()
            .map(|&(rule, instance)| {
                let state = &self.rules[rule];
                let instance = &state.instances[instance];
                (silenced(instance), inhibited(&state.rule, instance))
            })
            .collect();
        let overflowing: Vec<Vec<u64>> =
            of_overflow.map(|at| silenced(&self.overflow.instances[at])).collect();
        for (&(rule, instance), (silenced_by, inhibited)) in live.iter().zip(found) {
            let instance = &mut self.rules[rule].instances[instance];
            (instance.silenced_by, instance.inhibited) = (silenced_by, inhibited);
        }
        for (instance, silenced_by) in self.overflow.instances.iter_mut().zip(overflowing) {
            instance.silenced_by = silenced_by;
        }
    }

    /// Notes that somebody saw an alert: nothing more is said until it gets worse or ends.
    ///
    /// # Errors
    ///
    /// If no alert of this fingerprint fires, or the texts are too long.
    pub fn acknowledge(
        &mut self,
        fingerprint: Fingerprint,
        by: &str,
        comment: &str,
        now: Moment,
    ) -> Result<Outcome, AcknowledgeError> {
        if by.is_empty() || by.len().max(comment.len()) > WORDS_MAX {
            return Err(AcknowledgeError::Words);
        }
        self.change(fingerprint, now, |core, now| core.acknowledge(by, comment, now.unix_ms))
    }

    /// Takes an acknowledgement back.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn unacknowledge(
        &mut self,
        fingerprint: Fingerprint,
        now: Moment,
    ) -> Result<Outcome, AcknowledgeError> {
        self.change(fingerprint, now, |core, _| core.unacknowledge())
    }

    fn change(
        &mut self,
        fingerprint: Fingerprint,
        now: Moment,
        change: impl FnOnce(&mut Core, Now) -> bool,
    ) -> Result<Outcome, AcknowledgeError> {
        let now = Now::of(now);
        let mut outcome = Outcome::default();
        let mut states = self.rules.iter_mut().chain([&mut self.overflow]);
        let found = states.find_map(|state| {
            let mut instances = state.instances.iter();
            let at = instances.position(|instance| instance.fingerprint == fingerprint)?;
            Some((state, at))
        });
        let (state, at) = found.ok_or(AcknowledgeError::NoSuchAlert)?;
        if !change(&mut state.instances[at].core, now) {
            return Err(AcknowledgeError::NoSuchAlert);
        }
        state.busy = true;
        let instance = &mut state.instances[at];
        instance.core.take_dirty();
        instance.recorded = true;
        outcome.changed.push(state.instances[at].record(now, state));
        Ok(outcome)
    }

    /// Adds a silence and returns it with its number.
    ///
    /// # Errors
    ///
    /// Why it is not taken.
    pub fn silence(&mut self, silence: Silence, now: Moment) -> Result<Silence, SilenceError> {
        let id = self.last_silence + 1;
        let silence = Silence { id, ..silence };
        self.keep_silence(&silence, Now::of(now))?;
        Ok(silence)
    }

    fn keep_silence(&mut self, silence: &Silence, now: Now) -> Result<(), SilenceError> {
        if silence.matchers.is_empty() {
            return Err(SilenceError::NoMatchers);
        }
        let words = silence.author.len().max(silence.comment.len());
        if silence.author.is_empty() || words > WORDS_MAX {
            return Err(SilenceError::Author);
        }
        let left = silence.ends_at_ms.saturating_sub(now.unix_ms);
        if left <= 0 || silence.ends_at_ms <= silence.starts_at_ms {
            return Err(SilenceError::Over);
        }
        self.silences.retain(|kept| kept.ends > now.mono);
        if self.silences.len() >= self.options.silences {
            return Err(SilenceError::TooMany(self.options.silences));
        }
        let until_start = silence.starts_at_ms.saturating_sub(now.unix_ms).max(0);
        let kept = Kept {
            silence: silence.clone(),
            starts: now.mono.saturating_add(until_start),
            ends: now.mono.saturating_add(left),
        };
        self.silences.push(kept);
        self.last_silence = self.last_silence.max(silence.id);
        for state in &mut self.rules {
            state.busy = true;
        }
        Ok(())
    }

    /// Ends a silence and returns it, if it is there.
    pub fn unsilence(&mut self, id: u64) -> Option<Silence> {
        let at = self.silences.iter().position(|kept| kept.silence.id == id)?;
        Some(self.silences.remove(at).silence)
    }

    /// Returns the silences that are not over, in the order of their numbers.
    #[must_use]
    pub fn silences(&self) -> Vec<Silence> {
        self.silences.iter().map(|kept| kept.silence.clone()).collect()
    }

    /// Takes back the silences of an earlier process, without those that are over.
    pub fn restore_silences(&mut self, silences: impl IntoIterator<Item = Silence>, now: Moment) {
        for silence in silences {
            self.last_silence = self.last_silence.max(silence.id);
            let known = self.silences.iter().any(|kept| kept.silence.id == silence.id);
            if !known {
                // What is over or does not fit is let go.
                let _ = self.keep_silence(&silence, Now::of(now));
            }
        }
    }
}

/// An inhibition with the label values of the alerts that do it.
struct Inhibition<'a> {
    inhibit: &'a Inhibit,
    sources: HashSet<Vec<&'a str>>,
    /// Those that are no targets themselves: alerts that are both do not inhibit each other.
    pure_sources: HashSet<Vec<&'a str>>,
}

impl<'a> Inhibition<'a> {
    fn new(inhibit: &'a Inhibit, firing: &[(&'a Arc<Rule>, &'a Instance)]) -> Self {
        let mut sources = HashSet::new();
        let mut pure_sources = HashSet::new();
        for (_, instance) in firing {
            let labels = instance.match_labels();
            if all(&inhibit.source, labels) {
                let values = values(labels, &inhibit.equal);
                if !all(&inhibit.target, labels) {
                    pure_sources.insert(values.clone());
                }
                sources.insert(values);
            }
        }
        Self { inhibit, sources, pure_sources }
    }

    fn strikes(&self, labels: &Labels) -> bool {
        if self.sources.is_empty() || !all(&self.inhibit.target, labels) {
            return false;
        }
        let sources = match all(&self.inhibit.source, labels) {
            true => &self.pure_sources,
            false => &self.sources,
        };
        sources.contains(&values(labels, &self.inhibit.equal))
    }
}

fn all(matchers: &[Matcher], labels: &Labels) -> bool {
    matchers.iter().all(|matcher| matcher.matches(labels))
}

fn values<'a>(labels: &'a Labels, names: &[Arc<str>]) -> Vec<&'a str> {
    names.iter().map(|name| labels.get(name).unwrap_or_default()).collect()
}

/// Whether two sets of labels have the same values where both have the name.
fn agree(left: &Labels, right: &Labels) -> bool {
    left.iter().all(|(name, value)| right.get(name).is_none_or(|other| other == value))
}
