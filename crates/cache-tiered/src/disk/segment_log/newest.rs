//! Showing the newest entries in the order in which they were written, for memory to begin warm.
//!
//! First the segments are gone through from the newest back, by the index and the hashes that each
//! has noted, until as many entries are counted as are wanted; that tells at which record to begin.
//! Then the log is read from there to its flushed end, front to back, in large chunks. Nothing is
//! locked meanwhile, so a record may be replaced, removed or evicted between being read and being
//! used: whoever uses it asks again whether it is current.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::index::Slot;
use super::record::{HEADER_LEN, Header, Kind};
use super::recovery::Window;
use super::segment::Segment;
use super::{SegmentLog, count};
use crate::disk::engine::{DiskError, Newest, Visited};

/// Where to begin, and what is expected from there on.
struct Plan {
    /// Oldest first.
    segments: Vec<Arc<Segment>>,
    /// In the first of them.
    offset: u32,
    bytes: u64,
}

impl SegmentLog {
    pub(super) fn show_newest(
        &self,
        wanted: Newest,
        now_ms: u64,
        each: &mut dyn FnMut(Visited<'_>) -> ControlFlow<()>,
    ) -> Result<(), DiskError> {
        self.learn_time(now_ms);
        let Plan { segments, offset, bytes } = self.plan(wanted, now_ms);
        let mut from = offset;
        for segment in segments {
            if self.show(&segment, from, bytes, now_ms, each)?.is_break() {
                break;
            }
            from = 0;
        }
        Ok(())
    }

    fn plan(&self, wanted: Newest, now_ms: u64) -> Plan {
        let all: Vec<_> = self.segments.read().iter().cloned().collect();
        let mut plan = Plan { segments: Vec::new(), offset: 0, bytes: 0 };
        let mut entries = 0;
        for segment in all.into_iter().rev() {
            let mut slots = self.current_slots(&segment, now_ms);
            let bytes: u64 = slots.iter().map(|slot| u64::from(slot.len)).sum();
            let fits = entries + slots.len() as u64 <= wanted.entries
                && plan.bytes + bytes <= wanted.bytes;
            if fits {
                entries += slots.len() as u64;
                plan.bytes += bytes;
                plan.segments.push(segment);
                continue;
            }
            slots.sort_unstable_by_key(|slot| std::cmp::Reverse(slot.offset));
            let mut begin = None;
            for slot in slots {
                if entries == wanted.entries || plan.bytes + u64::from(slot.len) > wanted.bytes {
                    break;
                }
                entries += 1;
                plan.bytes += u64::from(slot.len);
                begin = Some(slot.offset);
            }
            if let Some(begin) = begin {
                plan.segments.push(segment);
                plan.offset = begin;
            }
            break;
        }
        plan.segments.reverse();
        plan
    }

    /// The entries whose newest record is in the flushed part of this segment.
    fn current_slots(&self, segment: &Segment, now_ms: u64) -> Vec<Slot> {
        let flushed = segment.flushed();
        let here = |slot: &Slot| {
            slot.segment == segment.id as u32
                && slot.offset + slot.len <= flushed
                && !slot.expired(now_ms)
        };
        let hashes = segment.some_hashes(0, usize::MAX);
        let mut slots: Vec<_> =
            hashes.into_iter().filter_map(|hash| self.index.get(hash)).filter(here).collect();
        // A key that was removed and put again has been noted twice.
        slots.sort_unstable_by_key(|slot| slot.offset);
        slots.dedup_by_key(|slot| slot.offset);
        slots
    }

    /// Shows what is current in one segment, from a record on.
    fn show(
        &self,
        segment: &Segment,
        from: u32,
        total_bytes: u64,
        now_ms: u64,
        each: &mut dyn FnMut(Visited<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, DiskError> {
        let len = segment.flushed();
        let Some(file) = segment.file() else { return Ok(ControlFlow::Continue(())) };
        let mut window = Window::new(file, len);
        let failed = |source| {
            count(&self.counters.io_errors, 1);
            DiskError::io("read", &segment.path, source)
        };
        let mut at = from;
        while at + HEADER_LEN as u32 <= len {
            let place = self.place(segment, at);
            let header = Header::decode(window.at(at, HEADER_LEN).map_err(failed)?, place);
            let fits = |header: &Header| header.record_len() <= u64::from(len - at);
            let Some(header) = header.filter(fits) else {
                // Damage; reading the entry by its key will notice it, too, and count it.
                at = window.next_header(at, place).map_err(failed)?;
                continue;
            };
            let (offset, record_len) = (at, header.record_len() as u32);
            at += record_len;
            let is_current = || {
                let slot = self.index.get(header.hash);
                slot.is_some_and(|it| it.segment == segment.id as u32 && it.offset == offset)
            };
            let expired = header.expires_at_ms != 0 && header.expires_at_ms <= now_ms;
            if header.kind != Kind::Put || !header.live || expired || !is_current() {
                continue;
            }
            let record = window.at(offset, record_len as usize).map_err(failed)?;
            if !header.matches(&record[HEADER_LEN..]) {
                continue;
            }
            let (key, value) = record[HEADER_LEN..].split_at(header.key_len as usize);
            let visited = Visited {
                key,
                value,
                expires_at_ms: header.expires_at_ms,
                bytes: record_len.into(),
                total_bytes,
                is_current: &is_current,
            };
            if each(visited).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
