//! Who takes part: our policies, those of the literature, the optimum, and other caches.

use bench_cache::Store;
use bench_cache::peers::{OTHERS, Peer, QUICK_CACHE, Split};
use cache_tiered::Policy;
use cache_tiered::simulate::{Capacity, Contender, Simulated, Textbook};

/// What the numbers of an entrant are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// This repository's cache.
    Ours,
    /// A policy as it is printed; the best of them is what others are measured by.
    Textbook,
    /// The optimum.
    Optimum,
    /// Another cache.
    Peer,
}

/// One that takes part.
#[derive(Clone, Debug)]
pub(crate) struct Entrant {
    /// What it is called in tables.
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) contender: Contender,
    /// Whether it is a line in the plots, and so measured at all sizes.
    pub(crate) plotted: bool,
    /// The largest cache that it can be measured as in a reasonable time.
    pub(crate) largest: u64,
    /// Under which name its numbers may be kept from one run to the next; ours never are.
    pub(crate) kept_as: Option<String>,
}

/// Counts changes to how traces are simulated; numbers kept by another count are forgotten.
const GENERATION: u32 = 1;
/// The largest cache of a peer whose inserts take longer the larger it is.
const QUEUED_ENTRIES: u64 = 5_000;

/// All that take part in this build.
pub(crate) fn all() -> Vec<Entrant> {
    let mut all: Vec<_> = Policy::ALL
        .into_iter()
        .map(|policy| Entrant {
            name: policy.to_string(),
            role: Role::Ours,
            contender: Contender::policy(policy),
            plotted: true,
            largest: u64::MAX,
            kept_as: None,
        })
        .collect();
    all.extend(Textbook::ALL.into_iter().map(|policy| Entrant {
        name: policy.to_string(),
        role: Role::Textbook,
        contender: Contender::textbook(policy),
        plotted: false,
        largest: u64::MAX,
        kept_as: Some(format!("{policy} {GENERATION}")),
    }));
    all.extend([&QUICK_CACHE].into_iter().chain(OTHERS).filter(|peer| peer.evicts).map(peer));
    all.push(Entrant {
        name: "optimum".to_owned(),
        role: Role::Optimum,
        contender: Contender::optimum(),
        plotted: true,
        largest: u64::MAX,
        kept_as: Some(format!("optimum {GENERATION}")),
    });
    all
}

fn peer(peer: &Peer) -> Entrant {
    let Peer { make, queues, .. } = *peer;
    let version = version(peer.package);
    let name = format!("{} {version}", peer.name);
    Entrant {
        contender: Contender::new(peer.name, move |capacity: Capacity| {
            let entries = usize::try_from(capacity.limit()).expect("a trace fits in memory");
            let ahead_max = if queues { entries / 100 } else { usize::MAX };
            Box::new(Peered { store: make(entries, Split::Never), ahead: 0, ahead_max })
        }),
        role: Role::Peer,
        plotted: ["quick_cache", "moka", "foyer LFU"].contains(&peer.name),
        largest: if peer.queues { QUEUED_ENTRIES } else { u64::MAX },
        kept_as: Some(format!("{name} {GENERATION}")),
        name,
    }
}

/// A peer; one that queues inserts is waited for before it holds 1 % more than it should.
struct Peered {
    store: Box<dyn Store>,
    /// Inserts that may still be queued.
    ahead: usize,
    ahead_max: usize,
}

impl Simulated for Peered {
    fn request(&mut self, key: u64, _weight: u32) -> bool {
        let hit = self.store.get(key).is_some();
        if !hit {
            self.store.insert(key, key);
            self.ahead += 1;
            if self.ahead > self.ahead_max {
                self.store.settle();
                self.ahead = 0;
            }
        }
        hit
    }
}

/// The version of a package that this build has, as the lock file says.
fn version(package: &str) -> &'static str {
    let lock = include_str!("../../../Cargo.lock");
    let line = format!("name = \"{package}\"\nversion = \"");
    let after = lock.split_once(&line).map_or("", |(_, after)| after);
    after.split('"').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_peers_have_versions() {
        let all = all();
        let mut names: Vec<_> = all.iter().map(|entrant| &entrant.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        for peer in all.iter().filter(|entrant| entrant.role == Role::Peer) {
            let version = peer.name.rsplit(' ').next().expect("the last word");
            assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{}", peer.name);
        }
    }

    #[test]
    fn what_may_change_with_our_code_is_never_kept() {
        for entrant in all() {
            assert_eq!(entrant.kept_as.is_none(), entrant.role == Role::Ours, "{}", entrant.name);
        }
    }
}
