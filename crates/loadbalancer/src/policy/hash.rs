//! Tables that say which backend owns a key: a ring of points, and Maglev's.
//!
//! Both depend on the names and weights of the members alone, so balancers in different processes
//! agree, and a backend that is ejected for a while owns the same keys when it is back. The hash is
//! FNV-1a with the last step of SplitMix64; its values are part of what users rely on.

use std::sync::Arc;

/// Owners of keys, as indices of members.
#[derive(Debug)]
pub(crate) enum Table {
    /// Points in the order of their hashes.
    Ring {
        points: Box<[(u64, u32)]>,
        members: usize,
    },
    Maglev {
        owners: Box<[u32]>,
        members: usize,
    },
}

/// Points of a ring for each member of average weight.
const POINTS: usize = 160;
/// The most points of a ring; more members have fewer points each.
const POINTS_MAX: usize = 1 << 18;
/// Sizes of a Maglev table, both prime; the larger one from so many members on.
const MAGLEV: (usize, usize, usize) = (65_537, 655_373, 656);

impl Table {
    /// Makes a ring of members with their weights, which are above zero.
    pub(crate) fn ring(members: &[(Arc<str>, u32)]) -> Self {
        let sum: f64 = members.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let all = (members.len() * POINTS).min(POINTS_MAX) as f64;
        let mut points = Vec::with_capacity(all as usize);
        for ((id, weight), index) in members.iter().zip(0..) {
            let share = (all * f64::from(*weight) / sum).round().max(1.0);
            let start = hash(id.as_bytes());
            points.extend((0..share as u64).map(|point| (mix(start ^ mix(point)), index)));
        }
        points.sort_unstable();
        Self::Ring { points: points.into(), members: members.len() }
    }

    /// Makes Maglev's table of members with their weights, which are above zero.
    pub(crate) fn maglev(members: &[(Arc<str>, u32)]) -> Self {
        let (small, large, many) = MAGLEV;
        let size = if members.len() < many { small } else { large };
        const FREE: u32 = u32::MAX;
        let mut owners = vec![FREE; size].into_boxed_slice();
        let heaviest = members.iter().map(|(_, weight)| *weight).max().unwrap_or(1);
        // Where each member is in its permutation of the places, and the step of that.
        let mut walks: Vec<(usize, usize, f64)> = members
            .iter()
            .map(|(id, _)| {
                let hash = hash(id.as_bytes());
                let skip = mix(hash) % (size as u64 - 1) + 1;
                ((hash % size as u64) as usize, skip as usize, 0.0)
            })
            .collect();
        let mut free = if members.is_empty() { 0 } else { size };
        let mut round = 0.0;
        while free > 0 {
            round += 1.0;
            for ((at, skip, taken), ((_, weight), index)) in
                walks.iter_mut().zip(members.iter().zip(0..))
            {
                // A lighter member sits rounds out.
                if free == 0 || round * f64::from(*weight) / f64::from(heaviest) <= *taken {
                    continue;
                }
                while owners[*at] != FREE {
                    *at = (*at + *skip) % size;
                }
                owners[*at] = index;
                *taken += 1.0;
                free -= 1;
            }
        }
        Self::Maglev { owners, members: members.len() }
    }

    /// The members from the owner of a key on, in the order in which they would take over.
    ///
    /// Members may come twice, and after eight steps for each of them it gives up.
    pub(crate) fn owners(&self, key: u64) -> impl Iterator<Item = u32> {
        let (len, start, members) = match self {
            Self::Ring { points, members } => {
                (points.len(), points.partition_point(|(hash, _)| *hash < key), *members)
            }
            Self::Maglev { owners, members } => {
                let len = owners.len();
                (len, (key % len as u64) as usize, *members)
            }
        };
        let steps = if members == 0 { 0 } else { len.min(8 * members) };
        let mut last = u32::MAX;
        (0..steps).filter_map(move |step| {
            let at = (start + step) % len;
            let member = match self {
                Self::Ring { points, .. } => points[at].1,
                Self::Maglev { owners, .. } => owners[at],
            };
            (std::mem::replace(&mut last, member) != member).then_some(member)
        })
    }
}

/// The hash of a key or of a name.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(fnv)
}

/// The last step of SplitMix64: every bit of the input changes half of the output.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
