//! What happened: a bounded list with a number for each event, so that a reader sees what it missed.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use super::Level;

/// Events that are kept; older ones are forgotten.
const KEPT: usize = 256;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Counts up by one from 1; a gap means that events were forgotten.
    pub number: u64,
    /// When.
    pub at: Instant,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// The level changed.
    LevelChanged {
        /// The level before.
        from: Level,
        /// The level from now on.
        to: Level,
    },
    /// A limit lies below what is in use already; said once for each limit.
    LimitBelowUse {
        /// The limit in bytes.
        limit_bytes: u64,
        /// The use in bytes.
        used_bytes: u64,
    },
    /// A file that was read before cannot be read any more; the others go on.
    SourceLost {
        /// The file.
        path: PathBuf,
    },
    /// Reclaimers ran.
    Reclaimed {
        /// What they said they freed, in bytes.
        claimed_bytes: u64,
        /// By how much the resident bytes fell meanwhile, the allocator's part included.
        observed_bytes: u64,
    },
    /// The allocator was asked to give free memory back to the system.
    GaveBack {
        /// By how much the resident bytes fell.
        observed_bytes: u64,
    },
    /// A reclaimer panicked; it goes on being asked, after a pause.
    ReclaimerPanicked {
        /// Its name.
        name: String,
    },
    /// A reclaimer has been at work for far longer than it may; others run without it.
    ReclaimerStuck {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    kept: VecDeque<Event>,
    count: u64,
}

impl Events {
    pub(crate) fn push(&mut self, at: Instant, kind: EventKind) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.count += 1;
        self.kept.push_back(Event { number: self.count, at, kind });
    }

    pub(crate) fn list(&self) -> Vec<Event> {
        self.kept.iter().cloned().collect()
    }
}
