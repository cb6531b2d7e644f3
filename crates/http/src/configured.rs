//! What the rules of the cache take from the configuration, and how they follow its changes.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ultra_perf::UltraPerf;
use ultra_perf::config;

use crate::rules::Policy;

/// Returns the rules as configured; their stale windows follow the configuration as long as somebody
/// holds them.
pub(crate) fn policy(perf: &UltraPerf) -> Arc<ArcSwap<Policy>> {
    let rules = Arc::new(ArcSwap::from_pointee(policy_of(&perf.config().response_cache)));
    perf.on_change_while(&rules, |rules: &ArcSwap<Policy>, before, after| {
        let (was, is) = (&before.response_cache, &after.response_cache);
        let windows = |it: &config::ResponseCache| (it.stale_while_revalidate, it.stale_if_error);
        if windows(was) != windows(is) {
            let Policy { stale_while_revalidate, stale_if_error, .. } = policy_of(is);
            // All else takes effect with the next start.
            let then = Policy::clone(&rules.load());
            rules.store(Arc::new(Policy { stale_while_revalidate, stale_if_error, ..then }));
        }
    });
    rules
}

fn policy_of(settings: &config::ResponseCache) -> Policy {
    let window = |window: Duration| (!window.is_zero()).then_some(window);
    Policy {
        heuristic_fraction: if settings.heuristics { 0.1 } else { 0.0 },
        stale_while_revalidate: window(settings.stale_while_revalidate),
        stale_if_error: window(settings.stale_if_error),
        keep_for_revalidation: settings.keep,
        ..Policy::default()
    }
}
