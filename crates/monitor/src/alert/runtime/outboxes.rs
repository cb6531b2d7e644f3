//! The outboxes of all handlers: what goes to whom, in which messages, when, and what becomes of it.
//!
//! There is no clock, no thread and no network here. Whoever sends asks [`next`](Outboxes::next) for a
//! handler and says what came of it; the time comes in with each call. What must outlive the process is in
//! [`Kept`] and changes through records alone, each written before it has an effect. What need not - when
//! the next try is due, how many messages went out in this minute - is in a [`Lane`], and starts anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::alert::delivery::DeliveryOptions;
use crate::alert::event::{AlertEvent, Fingerprint, Outcome};
use crate::alert::handler::{HandlerError, Message};
use crate::alert::journal::{Journal, Kept, Outbox, Record, Routed, message_key};
use crate::clock::Moment;
use crate::registry::{Counter, Registry};
use crate::series::Labels;

/// The longest wait before another try.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What a handler should do now.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Send this, then say what came of it.
    Message(Message),
    /// Repeat what goes on.
    Refresh(Vec<Arc<AlertEvent>>),
    /// Nothing before this much time has passed.
    Wait(Duration),
    /// Nothing until something is enqueued.
    Idle,
    /// There is no such handler any more.
    Gone,
}

/// How one handler is served; forgotten when the process ends.
struct Lane {
    options: DeliveryOptions,
    /// Wakes whoever serves it.
    wake: Arc<Notify>,
    /// How often it wants to repeat what goes on, and when it does so next.
    refresh: Option<(Duration, Duration)>,
    /// No message is sent before.
    not_before: Duration,
    /// Messages that may go out now, and when that was counted.
    tokens: f64,
    counted: Duration,
    groups: HashMap<Labels, Group>,
    sent: Counter,
    retried: Counter,
    dead: Counter,
}

#[derive(Default)]
struct Group {
    /// Since when its first event waits.
    first: Option<Duration>,
    /// When its last message was made.
    last: Option<Duration>,
}

/// What goes into an outbox with the record that is being made.
#[derive(Default)]
struct More {
    events: usize,
    told: BTreeSet<Fingerprint>,
}

/// The outboxes, their journal and their lanes.
pub(super) struct Outboxes {
    pub(super) kept: Kept,
    pub(super) journal: Journal,
    lanes: BTreeMap<Arc<str>, Lane>,
    /// Who is being served; each asks [`next`](Self::next) until it hears that the handler is gone.
    serving: BTreeSet<Arc<str>>,
    /// Whether nothing waits for the rest of its group any more.
    closing: bool,
    registry: Registry,
    /// The wait before the first repetition; it grows fourfold with each.
    pause: Duration,
    random: fastrand::Rng,
}

impl Outboxes {
    pub(super) fn new(
        kept: Kept,
        journal: Journal,
        registry: Registry,
        pause: Duration,
        seed: u64,
    ) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self {
            kept,
            journal,
            lanes: BTreeMap::new(),
            serving: BTreeSet::new(),
            closing: false,
            registry,
            pause,
            random,
        }
    }

    /// Sets who is served from now on, with how often each wants to repeat what goes on.
    ///
    /// What waits for a handler that is not among them becomes dead letters; those who stay keep their
    /// waits. Returns those whom nobody serves yet, with what wakes them.
    pub(super) fn serve(
        &mut self,
        handlers: &[(DeliveryOptions, Option<Duration>)],
        now: Moment,
    ) -> Vec<(Arc<str>, Arc<Notify>)> {
        let mut before = std::mem::take(&mut self.lanes);
        for (options, every) in handlers {
            let id = Arc::clone(&options.id);
            let labels: [(&str, &str); 1] = [("handler", &id)];
            let counter = |name| self.registry.counter(name, &labels);
            let mut lane = before.remove(&id).unwrap_or_else(|| Lane {
                options: options.clone(),
                wake: Arc::default(),
                refresh: None,
                not_before: Duration::ZERO,
                tokens: f64::from(options.per_minute),
                counted: now.monotonic,
                groups: HashMap::new(),
                sent: counter("monitor_alerts_sent_total"),
                retried: counter("monitor_alerts_retried_total"),
                dead: counter("monitor_alerts_dead_total"),
            });
            lane.options = options.clone();
            lane.refresh = every.map(|every| (every, now.monotonic));
            self.lanes.insert(id, lane);
        }
        let mut records = Vec::new();
        for (handler, outbox) in &self.kept.outboxes {
            if self.lanes.contains_key(handler) {
                continue;
            }
            for event in &outbox.waiting {
                let key = message_key(handler, std::slice::from_ref(&event.key));
                let (group, events) = (Labels::default(), vec![event.key.clone()]);
                let handler = Arc::clone(handler);
                records.push(Record::Formed { handler, key, group, events });
            }
            let formed = outbox
                .waiting
                .iter()
                .map(|event| message_key(handler, std::slice::from_ref(&event.key)));
            let keys: Vec<_> =
                outbox.messages.iter().map(|it| it.key.clone()).chain(formed).collect();
            records.extend(keys.into_iter().map(|key| Record::Dead {
                handler: Arc::clone(handler),
                key,
                error: HandlerError::Unknown(handler.to_string()).to_string(),
                at_ms: now.unix_ms,
            }));
        }
        self.commit(&records);
        // Those who are gone are told so, and those who stay may have other options.
        before.values().chain(self.lanes.values()).for_each(|lane| lane.wake.notify_one());
        let unserved = self.lanes.iter().filter(|(id, _)| self.serving.insert(Arc::clone(id)));
        unserved.map(|(id, lane)| (Arc::clone(id), Arc::clone(&lane.wake))).collect()
    }

    /// Lets everybody look for something to do.
    pub(super) fn wake(&self) {
        self.lanes.values().for_each(|lane| lane.wake.notify_one());
    }

    /// Sends what waits for the rest of its group at once from now on.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.wake();
    }

    /// Writes records down and does what they say.
    pub(super) fn commit(&mut self, records: &[Record]) {
        if records.is_empty() {
            return;
        }
        self.journal.append(records);
        for record in records {
            self.kept.apply(record);
        }
    }

    /// Takes what an evaluation came to.
    pub(super) fn take(&mut self, outcome: Outcome, at_ms: i64) {
        if outcome.is_empty() {
            return;
        }
        let Outcome { changed, removed, events, ended } = outcome;
        let mut more = HashMap::new();
        let events: Vec<_> = events.into_iter().map(|event| self.route(event, &mut more)).collect();
        let sends = !events.is_empty();
        self.commit(&[Record::Outcome { changed, removed, ended, events, at_ms }]);
        if sends {
            self.wake();
        }
    }

    /// Says who gets an event. `more` is what was routed to each but is not in its outbox yet.
    fn route(&self, event: AlertEvent, more: &mut HashMap<Arc<str>, More>) -> Routed {
        let (mut to, mut full) = (Vec::new(), Vec::new());
        for id in &event.handlers {
            let Some(lane) = self.lanes.get(id) else { continue };
            let outbox = self.kept.outboxes.get(id);
            let more = more.entry(Arc::clone(id)).or_default();
            let told = outbox.is_some_and(|it| it.told.contains_key(&event.fingerprint))
                || more.told.contains(&event.fingerprint);
            if !lane.options.wants(&event, told) || to.contains(id) || full.contains(id) {
                continue;
            }
            more.told.insert(event.fingerprint);
            if outbox.map_or(0, Outbox::len) + more.events < lane.options.queue {
                more.events += 1;
                to.push(Arc::clone(id));
            } else {
                lane.dead.increment(1);
                full.push(Arc::clone(id));
            }
        }
        Routed { event: Arc::new(event), to, full }
    }

    /// Says what a handler should do now.
    pub(super) fn next(&mut self, id: &Arc<str>, now: Duration) -> Next {
        let Some(lane) = self.lanes.get_mut(id) else {
            self.serving.remove(id);
            return Next::Gone;
        };
        let Some(outbox) = self.kept.outboxes.get(id) else { return Next::Idle };
        let refresh = match &mut lane.refresh {
            Some(_) if outbox.told.is_empty() => None,
            Some((every, due)) => {
                // After a change of the interval, or a long sleep.
                *due = (*due).min(now + *every);
                Some(*due)
            }
            None => None,
        };
        let message = lane.when(outbox, now, self.closing);
        match (message, refresh) {
            (Some(due), _) if due.at <= now => {
                lane.spend(now);
                match due.events {
                    Some((group, events)) => self.form(id, group, events, now),
                    None => self.oldest(id),
                }
            }
            (_, Some(refresh)) if refresh <= now => {
                let told = outbox.told.values().cloned().collect();
                if let Some((every, due)) = &mut lane.refresh {
                    *due = now + *every;
                }
                Next::Refresh(told)
            }
            (Some(due), refresh) => {
                Next::Wait(refresh.map_or(due.at, |refresh| refresh.min(due.at)) - now)
            }
            (None, Some(refresh)) => Next::Wait(refresh - now),
            (None, None) => Next::Idle,
        }
    }

    /// Makes a message of events that wait, so that every try has the same ones and the same key.
    fn form(&mut self, id: &Arc<str>, group: Labels, events: Vec<String>, now: Duration) -> Next {
        if let Some(lane) = self.lanes.get_mut(id) {
            let interval = lane.options.group_interval;
            lane.groups.retain(|_, group| {
                group.first.is_some() || group.last.is_some_and(|last| last + interval > now)
            });
            if !lane.options.group_by.is_empty() {
                lane.groups.insert(group.clone(), Group { first: None, last: Some(now) });
            }
        }
        let (handler, key) = (Arc::clone(id), message_key(id, &events));
        self.commit(&[Record::Formed { handler, key, group, events }]);
        self.oldest(id)
    }

    fn oldest(&self, id: &Arc<str>) -> Next {
        let messages = self.kept.outboxes.get(id).map(|outbox| &outbox.messages);
        messages.and_then(|it| it.front()).map_or(Next::Idle, |it| Next::Message(it.clone()))
    }

    /// A message was taken.
    pub(super) fn succeeded(&mut self, id: &Arc<str>, key: &str) {
        if let Some(lane) = self.lanes.get_mut(id) {
            lane.sent.increment(1);
            lane.not_before = Duration::ZERO;
        }
        self.commit(&[Record::Sent { handler: Arc::clone(id), key: key.to_owned() }]);
    }

    /// A message was not taken: it is tried again later, or given up.
    pub(super) fn failed(&mut self, id: &Arc<str>, key: &str, error: &HandlerError, now: Moment) {
        let outbox = self.kept.outboxes.get(id);
        let message = outbox.and_then(|it| it.messages.iter().find(|it| it.key == key));
        let (Some(message), Some(lane)) = (message, self.lanes.get_mut(id)) else { return };
        let (handler, key) = (Arc::clone(id), key.to_owned());
        if error.may_retry() && message.attempts < lane.options.retries {
            let fourfold = 4_u32.saturating_pow(message.attempts.min(8));
            let longest = self.pause.saturating_mul(fourfold).min(PAUSE_MAX);
            let pause = longest.mul_f64(0.5 + 0.5 * self.random.f64());
            let asked = match error {
                HandlerError::Failed { retry_after: Some(after), .. } => *after,
                _ => Duration::ZERO,
            };
            lane.not_before = now.monotonic + pause.max(asked);
            lane.retried.increment(1);
            self.commit(&[Record::Tried { handler, key }]);
        } else {
            tracing::error!(handler = %handler, key, %error, "an alert's message was given up");
            lane.not_before = Duration::ZERO;
            lane.dead.increment(1);
            let (error, at_ms) = (error.to_string(), now.unix_ms);
            self.commit(&[Record::Dead { handler, key, error, at_ms }]);
        }
    }

    /// A repetition of what goes on failed; the next one will tell.
    pub(super) fn refresh_failed(&mut self, id: &Arc<str>) {
        if let Some(lane) = self.lanes.get_mut(id) {
            lane.retried.increment(1);
        }
    }

    /// Puts dead letters back, of one handler or of all that are served; returns how many.
    pub(super) fn revive(&mut self, handler: Option<&str>) -> usize {
        let served = |id: &&Arc<str>| self.lanes.contains_key(*id);
        let asked = |id: &&Arc<str>| handler.is_none_or(|handler| handler == &***id);
        let ids: Vec<_> = self.kept.outboxes.keys().filter(served).filter(asked).cloned().collect();
        let mut records = Vec::new();
        for id in ids {
            let letters = &self.kept.outboxes[&id].dead;
            records.extend(letters.iter().map(|letter| Record::Revived {
                handler: Arc::clone(&id),
                key: letter.message.key.clone(),
            }));
        }
        self.commit(&records);
        self.wake();
        records.len()
    }

    /// Whether nothing waits for anybody who is served.
    pub(super) fn is_drained(&self) -> bool {
        let empty = |id| self.kept.outboxes.get(id).is_none_or(|outbox| outbox.len() == 0);
        self.lanes.keys().all(empty)
    }

    /// Returns the names of those who are served.
    pub(super) fn served(&self) -> impl Iterator<Item = &Arc<str>> {
        self.lanes.keys()
    }
}

/// A message that can be sent from some moment on.
struct Due {
    at: Duration,
    /// The events to make it of, with their group; nothing if it is there already.
    events: Option<(Labels, Vec<String>)>,
}

impl Lane {
    /// When the next message of an outbox is due.
    fn when(&mut self, outbox: &Outbox, now: Duration, closing: bool) -> Option<Due> {
        let mut due = if outbox.messages.is_empty() {
            let due = self.group(outbox, now)?;
            Due { at: if closing { now } else { due.at }, ..due }
        } else {
            Due { at: now, events: None }
        };
        due.at = due.at.max(self.not_before).max(now + self.until_token(now));
        Some(due)
    }

    /// Which events that wait become the next message, and when.
    fn group(&mut self, outbox: &Outbox, now: Duration) -> Option<Due> {
        let first = outbox.waiting.front()?;
        if self.options.group_by.is_empty() {
            let group = self.options.group(first);
            return Some(Due { at: now, events: Some((group, vec![first.key.clone()])) });
        }
        let mut by_group: Vec<(Labels, Vec<String>)> = Vec::new();
        for event in &outbox.waiting {
            let label = self.options.group(event);
            match by_group.iter_mut().find(|(other, _)| *other == label) {
                Some((_, events)) if events.len() >= self.options.events_max.max(1) => {}
                Some((_, events)) => events.push(event.key.clone()),
                None => by_group.push((label, vec![event.key.clone()])),
            }
        }
        let due = by_group.into_iter().map(|(label, events)| {
            let group = self.groups.entry(label.clone()).or_default();
            let waited = *group.first.get_or_insert(now) + self.options.group_wait;
            let last = group.last.map(|last| last + self.options.group_interval);
            Due { at: waited.max(last.unwrap_or_default()), events: Some((label, events)) }
        });
        due.min_by_key(|due| due.at)
    }

    /// How long until another message may go out.
    fn until_token(&mut self, now: Duration) -> Duration {
        let a_second = f64::from(self.options.per_minute.max(1)) / 60.0;
        let passed = now.saturating_sub(self.counted).as_secs_f64();
        self.counted = now;
        self.tokens = (self.tokens + passed * a_second).min(a_second * 60.0);
        match self.tokens {
            enough if enough >= 1.0 => Duration::ZERO,
            part => Duration::from_secs_f64((1.0 - part) / a_second),
        }
    }

    fn spend(&mut self, now: Duration) {
        self.until_token(now);
        self.tokens -= 1.0;
    }
}

#[cfg(test)]
mod tests;
