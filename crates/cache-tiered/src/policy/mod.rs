//! Which entry leaves: the policies of the memory tier's own engine.
//!
//! Every policy here is *lazy*: a hit raises a saturating mark in its node and moves nothing, so the
//! read path is one and the same under each of them. All decisions fall when a new key comes in and
//! when an old one has to leave, under the shard's lock, in [`Queues`]: three rings of nodes, linked
//! by index, and a table of ghosts or a frequency sketch. A policy is a way to read them; changing it
//! moves no entry.
//!
//! The decisions never see a key or a value. What they need of a node is [`Nodes`], which the live
//! shards implement over atomics and a [`MiniCache`] over cells, so the small caches that elect the
//! policy run the very code they vote on.

use std::fmt;
use std::str::FromStr;

pub(crate) mod curve;
pub(crate) mod election;
mod ghosts;
mod lines;
mod mini;
mod queues;
mod sketch;

pub(crate) use mini::MiniCache;
pub(crate) use queues::Queues;

/// Names how the memory tier chooses what to evict.
///
/// The policy can be changed while the cache is in use; no entry is lost by it.
///
/// # Examples
///
/// ```
/// use cache_tiered::Policy;
///
/// assert_eq!("s3-fifo".parse(), Ok(Policy::S3Fifo));
/// assert_eq!(Policy::Arc.to_string(), "arc");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Policy {
    /// Evicts what was not used for longest, as CLOCK approximates it.
    Lru,
    /// Keeps what is used most often of late: TinyLFU with a window and ageing.
    Lfu,
    /// Balances recency against frequency by what it evicted too early: ARC in its clock form, CAR.
    Arc,
    /// Tries new entries in a small queue and remembers what it evicted: S3-FIFO.
    S3Fifo,
    /// Runs small copies of the others on a sample of the requests and follows the best.
    #[default]
    Adaptive,
}

impl Policy {
    /// Lists every policy, in the order in which they are documented.
    pub const ALL: [Self; 5] = [Self::Lru, Self::Lfu, Self::Arc, Self::S3Fifo, Self::Adaptive];

    /// Returns the name under which configurations and reports know it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::Arc => "arc",
            Self::S3Fifo => "s3-fifo",
            Self::Adaptive => "adaptive",
        }
    }

    /// The decisions it starts with; only [`Policy::Adaptive`] ever leaves them. It starts as the kind
    /// that is best in the mean over the suite's traces.
    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Lru => Kind::Lru,
            Self::Lfu | Self::Adaptive => Kind::Lfu,
            Self::Arc => Kind::Arc,
            Self::S3Fifo => Kind::S3Fifo,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A name that is no policy's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected lru, lfu, arc, s3-fifo or adaptive")]
#[non_exhaustive]
pub struct ParsePolicyError;

impl FromStr for Policy {
    type Err = ParsePolicyError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == name).ok_or(ParsePolicyError)
    }
}

/// What a shard can run, and what [`Policy::Adaptive`] elects among.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Lru,
    Arc,
    S3Fifo,
    Lfu,
    /// TinyLFU with a narrow window.
    LfuNarrow,
    /// TinyLFU with a wide window.
    LfuWide,
}

impl Kind {
    /// The candidates of an election.
    pub(crate) const ALL: [Self; 6] =
        [Self::Lru, Self::Arc, Self::S3Fifo, Self::Lfu, Self::LfuNarrow, Self::LfuWide];

    /// The name in reports.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Arc => "arc",
            Self::S3Fifo => "s3-fifo",
            Self::Lfu => "lfu",
            Self::LfuNarrow => "lfu-narrow",
            Self::LfuWide => "lfu-wide",
        }
    }
}

/// The index that names no node; the others are smaller, so that a link has eight bits to spare.
pub(crate) const NIL: u32 = (1 << 24) - 1;

/// The highest mark a reader sets; one that finds it there stores nothing.
pub(crate) const MARK_MAX: u8 = 2;

/// The place where the nodes live.
pub(crate) trait Nodes {
    type Node<'a>: Node
    where
        Self: 'a;

    fn at(&self, node: u32) -> Self::Node<'_>;
}

/// What the decisions need of a node.
///
/// Everything takes `&self`: the live nodes are atomics, those of a mini cache are cells. Only the
/// mark changes under the policy's hands, raised by readers between its load and its store; a use
/// that is lost that way is one of many.
pub(crate) trait Node: Copy {
    fn next(self) -> u32;
    fn set_next(self, to: u32);
    fn prev(self) -> u32;
    fn set_prev(self, to: u32);
    /// Eight bits for the policy alone: which ring the node is in.
    fn tag(self) -> u8;
    /// Sets the tag and both neighbours.
    fn link(self, tag: u8, prev: u32, next: u32);
    /// Uses since the mark was last lowered, up to [`MARK_MAX`].
    fn mark(self) -> u8;
    fn set_mark(self, mark: u8);
    /// Well mixed 32 bits of the key's hash.
    fn hash(self) -> u32;
    /// At least 1.
    fn weight(self) -> u32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_parsed_from_the_name_it_prints() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
    }

    #[test]
    fn a_name_of_no_policy_is_told_what_would_be_right() {
        for name in ["", "lruu", "LRU", "s3fifo", "lfu-wide"] {
            let error = name.parse::<Policy>().expect_err("it names none");
            assert_eq!(error.to_string(), "expected lru, lfu, arc, s3-fifo or adaptive");
        }
    }

    #[test]
    fn no_two_candidates_share_a_name() {
        let names: std::collections::HashSet<_> = Kind::ALL.map(Kind::as_str).into_iter().collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
