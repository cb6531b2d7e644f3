//! Copying forward: what was read lately does not leave with the oldest segment.
//!
//! A log that only evicts its oldest segment forgets popular entries as soon as it has come round. So
//! while the space for the last segment's worth of blocks is being used up, entries of the oldest segment
//! that were read since they were written are appended again, like any other record. That is second
//! chance, or CLOCK: the copy begins without its mark and has to be read again to stay another round.
//! The cleaner of a log-structured store moves all that is alive; here what is alive and unread may go.
//!
//! At most [`super::SegmentLogOptions::forward_percent`] of a segment's bytes are copied, so n percent make
//! 100 / (100 - n) bytes of writes out of one; by default no more than 1.34. An entry keeps its expiry,
//! and one that has expired is not copied. What is copied is verified first, and only if the index still
//! points at it when its place in the log is taken: a put or a removal meanwhile wins.
//!
//! The work is done in small steps by the thread that has just written a block, at twice the pace at
//! which blocks use up the space. It is an effort: what is not copied when the segment goes is evicted.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::record::HEADER_LEN;
use super::segment::Segment;
use super::{Found, OVERHEAD, SegmentLog, Slot, count};

/// How far the copying has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The segment that goes next.
    segment: u64,
    /// The next of its hashes to look at.
    next: usize,
    /// Bytes copied out of it.
    copied: u64,
}

/// What became of an entry that was to be appended again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    /// It is in the log a second time, and the index points there.
    Done,
    /// Its time has come.
    Expired,
    /// It was changed meanwhile, or cannot be read.
    Gone,
}

impl SegmentLog {
    /// Does the next step, if the oldest segment is about to go and nobody else does it.
    pub(super) fn forward(&self) {
        if self.forward_percent == 0 {
            return;
        }
        let Some(mut progress) = self.forward.try_lock() else { return };
        let Some(oldest) = self.oldest_if_nearly_full() else { return };
        if progress.segment != oldest.id || progress.next == 0 {
            *progress = Progress { segment: oldest.id, next: 0, copied: 0 };
        }
        let bound = u64::from(oldest.flushed()) * u64::from(self.forward_percent) / 100;
        let step = oldest.hash_count() * 2 * self.buffer_bytes / self.segment_bytes as usize + 1;
        let now_ms = self.latest_now_ms.load(Relaxed);
        for hash in oldest.some_hashes(progress.next, step) {
            progress.next += 1;
            let Some(slot) = self.index.get_used(hash) else { continue };
            let fits = progress.copied + u64::from(slot.len) <= bound;
            if !fits || slot.segment != oldest.id as u32 || slot.expired(now_ms) {
                continue;
            }
            // What cannot be read goes with its segment.
            if self.append_copy(&slot, now_ms) == Copied::Done {
                progress.copied += u64::from(slot.len);
                count(&self.counters.copied, 1);
                count(&self.counters.copied_bytes, slot.len.into());
            }
        }
    }

    /// Returns the oldest segment if less than a segment's worth of space is left.
    fn oldest_if_nearly_full(&self) -> Option<Arc<Segment>> {
        let (used, oldest, newest) = {
            let segments = self.segments.read();
            let used: u64 = segments.iter().map(|segment| segment.disk_bytes()).sum();
            (used, segments.front().cloned()?, segments.back()?.id)
        };
        let nearly_full = used + u64::from(self.segment_bytes) > self.capacity - OVERHEAD
            || self.index.size().0 + oldest.hash_count() as u64 > self.max_entries;
        (nearly_full && oldest.id != newest).then_some(oldest)
    }

    /// Appends an entry again, if it is still current, whole and unexpired.
    pub(super) fn append_copy(&self, slot: &Slot, now_ms: u64) -> Copied {
        let Ok(Found::Bytes(segment, bytes)) = self.read(slot) else { return Copied::Gone };
        let Some(header) = self.verify(slot, segment, &bytes) else { return Copied::Gone };
        if header.expires_at_ms != 0 && header.expires_at_ms <= now_ms {
            return Copied::Expired;
        }
        let (key, value) = bytes[HEADER_LEN..].split_at(header.key_len as usize);
        let (mut tail, owes_write) = self.tail_with_room(slot.len);
        let copy = Slot { segment: tail.segment.id as u32, offset: tail.end(), ..*slot };
        let is_current = self.index.replace(slot, copy);
        if is_current {
            self.append(&mut tail, &header, key, value);
            // If the copy is dropped, the original must not outlive what replaces the copy.
            tail.supersede(slot);
            tail.segment.note(slot.hash);
        }
        drop(tail);
        if owes_write {
            self.write_pending();
        }
        if is_current { Copied::Done } else { Copied::Gone }
    }
}
