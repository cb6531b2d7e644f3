//! ARC, as CAR.
//!
//! Two clocks, T1 for keys seen once and T2 for keys seen again, and two lists of ghosts, B1 and B2.
//! A ghost hit in B1 says that T1 is too small, one in B2 that T2 is; the target `p` of T1 follows
//! (Bansal and Modha, "CAR: Clock with Adaptive Replacement", FAST 2004).
//!
//! Departures: `p` and the rings are measured in weight, a ghost hit moves `p` by the weight of the
//! key; the ghosts are approximate (see [`crate::policy::ghosts`]) and counted in keys. Against ARC
//! with its four exact lists the hit ratio is 0.2 points higher in the mean of the suite's 56 judged
//! points, and 1.3 lower at worst.

use super::{MAIN, Memory, PROTECTED, Queues, STEPS_MAX, YOUNG};
use crate::policy::ghosts::{GhostList, Ghosts};
use crate::policy::{Node as _, Nodes};

impl Queues {
    pub(super) fn arrive_car(&mut self, hash: u32, weight: u32) -> usize {
        let lens = self.lens_car();
        let Memory::Ghosts(ghosts) = &mut self.memory else { return YOUNG };
        let [once, again] = [GhostList::Young, GhostList::Main].map(|list| ghosts.live(list));
        let weight = u64::from(weight);
        match ghosts.take(hash, windows(lens, ghosts)) {
            None => return YOUNG,
            Some(GhostList::Young) => {
                let step = weight * u64::from((again / once.max(1)).max(1));
                self.young_target = (self.young_target.saturating_add(step)).min(self.capacity);
            }
            Some(GhostList::Main) => {
                let step = weight * u64::from((once / again.max(1)).max(1));
                self.young_target = self.young_target.saturating_sub(step);
            }
        }
        self.young_target = self.young_target.max(1);
        MAIN
    }

    pub(super) fn evict_car<N: Nodes>(&mut self, nodes: &N) -> u32 {
        self.settle(nodes, PROTECTED);
        for _ in 0..STEPS_MAX {
            let ring = self.giving_ring();
            let node = self.rings[ring].hand();
            if nodes.at(node).mark() == 0 {
                break;
            }
            nodes.at(node).set_mark(0);
            if ring == YOUNG {
                self.pass_on(nodes, YOUNG, MAIN);
            } else {
                self.rings[MAIN].rotate(nodes);
            }
        }
        let lens = self.lens_car();
        let ring = self.giving_ring();
        let node = self.pop(nodes, ring);
        if let Memory::Ghosts(ghosts) = &self.memory {
            let list = if ring == YOUNG { GhostList::Young } else { GhostList::Main };
            let windows = windows(lens, ghosts);
            self.remember(nodes, node, list, windows);
        }
        node
    }

    fn lens_car(&self) -> [u32; 2] {
        [self.rings[YOUNG].len(), self.rings[MAIN].len()]
    }
}

/// How many ghosts CAR remembers of each ring: T1 and B1 together as many as there are entries, all
/// four lists together twice as many.
fn windows([young, main]: [u32; 2], ghosts: &Ghosts) -> [u32; 2] {
    let once = main;
    [once, (young + main).saturating_sub(ghosts.live(GhostList::Young).min(once))]
}
