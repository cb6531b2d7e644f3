//! The records of the journal and what they come to.
//!
//! [`Kept::apply`] is the only way in which the state changes, live and at a restart alike, and it decides
//! nothing: limits and filters are applied before a record is made, so that a journal reads the same under
//! any configuration.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::alert::event::{AlertEvent, EndedAlert, EventKind, Fingerprint, InstanceRecord};
use crate::alert::handler::Message;
use crate::alert::silence::Silence;
use crate::series::Labels;

/// Ended alerts that are remembered.
pub(in crate::alert) const ENDED_MAX: usize = 1_000;
/// Dead letters of a handler; the oldest go first.
pub(in crate::alert) const DEAD_MAX: usize = 200;

/// An event and who gets it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::alert) struct Routed {
    pub(in crate::alert) event: Arc<AlertEvent>,
    /// The handlers whose queue it enters.
    pub(in crate::alert) to: Vec<Arc<str>>,
    /// The handlers whose queue is full: a dead letter at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::alert) full: Vec<Arc<str>>,
}

/// A message that a handler did not take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The handler.
    pub handler: Arc<str>,
    /// The message.
    pub message: Message,
    /// What became of the last try.
    pub error: String,
    /// When it was given up, in milliseconds since 1970.
    pub at_ms: i64,
}

/// Something to be remembered over a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "r", rename_all = "snake_case")]
pub(in crate::alert) enum Record {
    /// Begins a file.
    Journal { version: u32, at_ms: i64 },
    /// The process is alive, so that the length of an absence is known.
    Alive { at_ms: i64 },
    /// What an evaluation came to: states and the messages about them.
    Outcome {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        changed: Vec<InstanceRecord>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        removed: Vec<Fingerprint>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ended: Vec<EndedAlert>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        events: Vec<Routed>,
        at_ms: i64,
    },
    /// A silence began, or was changed.
    Silence { silence: Silence },
    /// A silence was taken back or is long over.
    Unsilence { id: u64 },
    /// Events that waited became a message.
    Formed { handler: Arc<str>, key: String, group: Labels, events: Vec<String> },
    /// A try failed, and there will be another.
    Tried { handler: Arc<str>, key: String },
    /// A message was taken.
    Sent { handler: Arc<str>, key: String },
    /// A message was given up.
    Dead { handler: Arc<str>, key: String, error: String, at_ms: i64 },
    /// A dead letter is to be tried again.
    Revived { handler: Arc<str>, key: String },
    /// An event waits (in a snapshot).
    Waiting { handler: Arc<str>, event: Arc<AlertEvent> },
    /// A message waits (in a snapshot).
    Message { handler: Arc<str>, message: Message },
    /// A message is dead (in a snapshot).
    Letter { letter: DeadLetter },
    /// A handler was told of an alert that has not ended (in a snapshot).
    Told { handler: Arc<str>, event: Arc<AlertEvent> },
}

/// What waits for one handler, and what it knows.
#[derive(Debug, Clone, PartialEq, Default)]
pub(in crate::alert) struct Outbox {
    /// Events that are not in a message yet, the oldest first.
    pub(in crate::alert) waiting: VecDeque<Arc<AlertEvent>>,
    /// Messages that are not taken yet, the oldest first.
    pub(in crate::alert) messages: VecDeque<Message>,
    /// Messages that were given up, the oldest first.
    pub(in crate::alert) dead: VecDeque<DeadLetter>,
    /// The last event of each alert that it was told of and that has not ended.
    pub(in crate::alert) told: BTreeMap<Fingerprint, Arc<AlertEvent>>,
}

impl Outbox {
    /// Events that wait, in messages or not.
    pub(in crate::alert) fn len(&self) -> usize {
        let in_messages: usize = self.messages.iter().map(|message| message.events.len()).sum();
        self.waiting.len() + in_messages
    }

    fn bury(&mut self, letter: DeadLetter) {
        self.dead.push_back(letter);
        if self.dead.len() > DEAD_MAX {
            self.dead.pop_front();
        }
    }

    fn take(&mut self, key: &str) -> Option<Message> {
        let at = self.messages.iter().position(|message| message.key == key)?;
        self.messages.remove(at)
    }
}

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Default)]
pub(in crate::alert) struct Kept {
    /// The version of the file it was read from.
    pub(in crate::alert) version: Option<u32>,
    /// The last time that any record names.
    pub(in crate::alert) at_ms: Option<i64>,
    pub(in crate::alert) instances: BTreeMap<Fingerprint, InstanceRecord>,
    pub(in crate::alert) silences: BTreeMap<u64, Silence>,
    /// The oldest first.
    pub(in crate::alert) ended: VecDeque<EndedAlert>,
    pub(in crate::alert) outboxes: BTreeMap<Arc<str>, Outbox>,
}

impl Kept {
    fn outbox(&mut self, handler: &Arc<str>) -> &mut Outbox {
        self.outboxes.entry(Arc::clone(handler)).or_default()
    }

    /// Changes the state as a record says.
    pub(in crate::alert) fn apply(&mut self, record: &Record) {
        match record {
            Record::Journal { version, at_ms } => {
                self.version = Some(*version);
                self.at_ms = Some(*at_ms);
            }
            Record::Alive { at_ms } => self.at_ms = Some(*at_ms),
            Record::Outcome { changed, removed, ended, events, at_ms } => {
                self.at_ms = Some(*at_ms);
                for instance in changed {
                    self.instances.insert(instance.fingerprint, instance.clone());
                }
                for fingerprint in removed {
                    self.instances.remove(fingerprint);
                }
                self.ended.extend(ended.iter().cloned());
                let over = self.ended.len().saturating_sub(ENDED_MAX);
                self.ended.drain(..over);
                for routed in events {
                    self.enqueue(routed);
                }
            }
            Record::Silence { silence } => {
                self.silences.insert(silence.id, silence.clone());
            }
            Record::Unsilence { id } => {
                self.silences.remove(id);
            }
            Record::Formed { handler, key, group, events } => {
                let outbox = self.outbox(handler);
                let (mut taken, mut left) = (Vec::new(), VecDeque::new());
                for event in outbox.waiting.drain(..) {
                    match events.contains(&event.key) {
                        true => taken.push(event),
                        false => left.push_back(event),
                    }
                }
                outbox.waiting = left;
                if !taken.is_empty() {
                    let (key, group) = (key.clone(), group.clone());
                    let message = Message { key, group, events: taken, attempts: 0 };
                    outbox.messages.push_back(message);
                }
            }
            Record::Tried { handler, key } => {
                let outbox = self.outbox(handler);
                if let Some(message) = outbox.messages.iter_mut().find(|it| it.key == *key) {
                    message.attempts += 1;
                }
            }
            Record::Sent { handler, key } => {
                self.outbox(handler).take(key);
            }
            Record::Dead { handler, key, error, at_ms } => {
                let outbox = self.outbox(handler);
                if let Some(mut message) = outbox.take(key) {
                    message.attempts += 1;
                    let (handler, error) = (Arc::clone(handler), error.clone());
                    outbox.bury(DeadLetter { handler, message, error, at_ms: *at_ms });
                }
            }
            Record::Revived { handler, key } => {
                let outbox = self.outbox(handler);
                if let Some(at) = outbox.dead.iter().position(|it| it.message.key == *key) {
                    let letter = outbox.dead.remove(at).expect("it was found there");
                    outbox.messages.push_back(Message { attempts: 0, ..letter.message });
                }
            }
            Record::Waiting { handler, event } => {
                self.outbox(handler).waiting.push_back(Arc::clone(event));
            }
            Record::Message { handler, message } => {
                self.outbox(handler).messages.push_back(message.clone());
            }
            Record::Letter { letter } => self.outbox(&letter.handler).bury(letter.clone()),
            Record::Told { handler, event } => {
                self.outbox(handler).told.insert(event.fingerprint, Arc::clone(event));
            }
        }
    }

    fn enqueue(&mut self, routed: &Routed) {
        let Routed { event, to, full } = routed;
        if event.kind == EventKind::Resolve {
            // Whoever knows of it, also if the message is not for them or they are not served now.
            for outbox in self.outboxes.values_mut() {
                outbox.told.remove(&event.fingerprint);
            }
        } else {
            for handler in to.iter().chain(full) {
                self.outbox(handler).told.insert(event.fingerprint, Arc::clone(event));
            }
        }
        for handler in to {
            self.outbox(handler).waiting.push_back(Arc::clone(event));
        }
        for handler in full {
            let message = Message {
                key: message_key(handler, std::slice::from_ref(&event.key)),
                group: Labels::default(),
                events: vec![Arc::clone(event)],
                attempts: 0,
            };
            let error = "too many events were waiting".to_owned();
            let (handler, at_ms) = (Arc::clone(handler), event.at_ms);
            self.outbox(&handler).bury(DeadLetter { handler, message, error, at_ms });
        }
    }

    /// The records that make this state out of nothing.
    pub(in crate::alert) fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        let at_ms = self.at_ms.unwrap_or(0);
        for instance in self.instances.values() {
            let changed = vec![instance.clone()];
            let (removed, ended, events) = (Vec::new(), Vec::new(), Vec::new());
            records.push(Record::Outcome { changed, removed, ended, events, at_ms });
        }
        for ended in &self.ended {
            let ended = vec![ended.clone()];
            let (changed, removed, events) = (Vec::new(), Vec::new(), Vec::new());
            records.push(Record::Outcome { changed, removed, ended, events, at_ms });
        }
        let silences = self.silences.values().cloned();
        records.extend(silences.map(|silence| Record::Silence { silence }));
        for (handler, outbox) in &self.outboxes {
            let told = outbox.told.values().cloned();
            records.extend(told.map(|event| Record::Told { handler: handler.clone(), event }));
            let messages = outbox.messages.iter().cloned();
            records.extend(
                messages.map(|message| Record::Message { handler: handler.clone(), message }),
            );
            let waiting = outbox.waiting.iter().cloned();
            records
                .extend(waiting.map(|event| Record::Waiting { handler: handler.clone(), event }));
            records.extend(outbox.dead.iter().cloned().map(|letter| Record::Letter { letter }));
        }
        if let Some(at_ms) = self.at_ms {
            records.push(Record::Alive { at_ms });
        }
        records
    }
}

/// The key of a message of these events for a handler.
///
/// An event is in one message of a handler only, so the first and the number tell it from all others.
pub(in crate::alert) fn message_key(handler: &str, events: &[String]) -> String {
    let first = events.first().map_or("", String::as_str);
    match events.len() {
        0 | 1 => format!("{handler}/{first}"),
        more => format!("{handler}/{first}+{}", more - 1),
    }
}
