//! Beginning warm: the newest entries of the disk tier come into memory before they are asked for.
//!
//! The log is read front to back on a thread for blocking work, from the entry at which what follows
//! just fits into the memory that is free. Where memory counts bytes, a few of the newest entries are
//! weighed first, because a value in memory is longer than its record on the disk, or shorter.
//!
//! An entry is put into memory like one that a look-up found there: after a ticket for its key was
//! taken, if the disk has it still and its key is not in memory, and unless the key is written before
//! it is in. So what is written, removed or cleared meanwhile wins.

use std::hash::{BuildHasher, Hash};
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};

use crate::cache::{Cache, Inner, LowerTiers};
use crate::lower::{Shown, Tier, Wanted};

/// The newest entries that are weighed.
const WEIGHED: u64 = 256;
/// Entries between two reports, and between two looks at how full memory is.
const STRIDE: u64 = 1_024;
/// Of the room that is there, what is left free where it is only estimated how much fits: one part in
/// so many.
const MARGIN: u64 = 16;

/// How far [`Cache::warm_from_disk`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WarmProgress {
    /// Entries that were put into memory.
    pub entries: u64,
    /// Entries left out: in memory already, written meanwhile, or not readable for this cache.
    pub skipped: u64,
    /// Bytes that these entries take on the disk.
    pub bytes: u64,
    /// What `bytes` will be in the end; about.
    pub total: u64,
}

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    /// Fills memory with the newest entries of the disk tier, as many as there is room for.
    ///
    /// They keep the time to live that they have left. What memory holds, and what is written or
    /// removed meanwhile, is not touched; when memory has become full by others, this ends. So it can
    /// run beside requests: spawn it, or let [`warm_up`](crate::CacheBuilder::warm_up) do that.
    /// `progress` is called now and then, on another thread. Without a disk tier, and with sled, which
    /// does not know what is new, nothing is done.
    ///
    /// Redis is not asked. Where other machines have written to it while this one was away, what comes
    /// up from the disk is older, and a look-up would have found the newer value in Redis first: warm up
    /// only if that may be served for its time to live.
    ///
    /// # Cancel safety
    ///
    /// When dropped, it goes on to its end. Closing the cache, or dropping its last handle, ends it.
    ///
    /// # Cost
    ///
    /// Reads the log in large chunks, decodes each value and takes three short locks for it, on a thread
    /// for blocking work.
    pub async fn warm_from_disk(
        &self,
        progress: impl FnMut(WarmProgress) + Send + 'static,
    ) -> WarmProgress {
        let inner = self.inner();
        let (lower, inner) = (Arc::clone(&inner.lower), Arc::downgrade(inner));
        match tokio::task::spawn_blocking(move || warm_up(&lower, &inner, progress)).await {
            Ok(done) => done,
            // The work is never aborted, so it panicked: a user's code did, and the caller is told so.
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }

    /// Begins to fill memory; it ends by itself, at the latest with the last handle.
    pub(crate) fn begin_to_warm_up(&self) {
        let inner = self.inner();
        let (lower, inner) = (Arc::clone(&inner.lower), Arc::downgrade(inner));
        tokio::task::spawn_blocking(move || {
            let WarmProgress { entries, skipped, bytes, .. } = warm_up(&lower, &inner, |_| ());
            tracing::debug!(entries, skipped, bytes, "memory was warmed up from the disk tier");
        });
    }
}

fn warm_up<K, V, S>(
    lower: &LowerTiers<K, V>,
    inner: &Weak<Inner<K, V, S>>,
    mut progress: impl FnMut(WarmProgress),
) -> WarmProgress
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher + Clone + Send + Sync + 'static,
{
    let mut state = WarmProgress::default();
    let Some(disk) = lower.tiers.iter().find(|tier| tier.tier() == Tier::Disk) else {
        return state;
    };
    let Some(wanted) = inner.upgrade().and_then(|inner| {
        let room = inner.room_in_memory();
        if !inner.weighs_bytes {
            return (room > 0).then_some(Wanted { entries: room, bytes: u64::MAX });
        }
        let (mut bytes, mut weight) = (0, 0);
        disk.visit_newest(Wanted { entries: WEIGHED, bytes: u64::MAX }, &mut |shown| {
            if let Some((key, found)) = shown.found {
                bytes += u128::from(shown.bytes);
                weight += u128::from(
                    inner.memory.entry(&key, found.value, found.expires_at, None, true).weight,
                );
            }
            ControlFlow::Continue(())
        });
        let room = u128::from(room - room / MARGIN);
        let bytes = u64::try_from((room * bytes).checked_div(weight)?).unwrap_or(u64::MAX);
        Some(Wanted { entries: u64::MAX, bytes })
    }) else {
        return state;
    };
    disk.visit_newest(wanted, &mut |shown: Shown<'_, K, V>| {
        let Some(inner) = inner.upgrade() else { return ControlFlow::Break(()) };
        (state.bytes, state.total) = (state.bytes + shown.bytes, shown.total_bytes);
        let warmed =
            shown.found.is_some_and(|(key, found)| inner.warm(key, found, shown.is_current));
        *if warmed { &mut state.entries } else { &mut state.skipped } += 1;
        if (state.entries + state.skipped).is_multiple_of(STRIDE) {
            progress(state);
            if inner.room_in_memory() == 0 {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    });
    progress(state);
    state
}
