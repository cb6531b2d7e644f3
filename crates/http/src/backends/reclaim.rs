//! Idle connections as memory that can be given back: a later request opens another.

use ultra_perf::memory::{Cost, ReclaimRequest, Reclaimer};

use super::Backends;

/// What an idle connection holds: the read buffer and the write buffer, as hyper begins them.
const IDLE_BYTES: u64 = 16 << 10;
/// Connections that are closed before the deadline is looked at again.
const AT_ONCE: usize = 64;

/// Closes idle connections to the backends under memory pressure.
pub(crate) struct IdleConnections(pub(crate) Backends);

impl Reclaimer for IdleConnections {
    fn name(&self) -> &str {
        "backend connections"
    }

    fn reclaimable_bytes(&self) -> u64 {
        self.0.upstream_stats().idle as u64 * IDLE_BYTES
    }

    fn reclaim(&self, request: &ReclaimRequest) -> u64 {
        let mut freed = 0;
        for node in &self.0.0.nodes {
            while freed < request.target_bytes && std::time::Instant::now() < request.deadline {
                let wanted = (request.target_bytes - freed).div_ceil(IDLE_BYTES);
                let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(AT_ONCE);
                let closed = node.upstream.close_idle(wanted);
                freed += closed as u64 * IDLE_BYTES;
                if closed < wanted {
                    break;
                }
            }
        }
        freed
    }

    fn cost(&self) -> Cost {
        Cost::Surplus
    }
}
