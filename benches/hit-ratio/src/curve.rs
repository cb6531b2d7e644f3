//! How well a cache tells what another size would do: `hit_ratio_at` against simulations in full.
//!
//! One cache with the curve runs a trace at 5 % of its keys under a fixed policy. Then it is asked for
//! an eighth to eight times its size, and each answer is held against a cache of that size that ran the
//! whole trace itself. All of it starts cold, as the curve's own sample does.

use cache_tiered::simulate::{Capacity, Contender, Trace, sweep};
use cache_tiered::{Cache, Policy};

use crate::judge::CAPACITIES;

/// The size of the cache that is asked, as a share of the distinct keys.
const SHARE: f64 = 0.05;
/// The sizes that it is asked for, in eighths of its own.
const EIGHTHS: [u64; 6] = [1, 2, 4, 16, 32, 64];
/// The policies; `Adaptive` has none of its own that would be the same at each size.
const POLICIES: [Policy; 4] = [Policy::Lru, Policy::Lfu, Policy::Arc, Policy::S3Fifo];

/// What an answer may be off at worst, in points.
pub(crate) const CURVE_ERROR_MAX: f64 = 4.0;

/// One answer beside what is true.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) trace: &'static str,
    pub(crate) policy: Policy,
    /// The size of the cache that was asked.
    pub(crate) entries: u64,
    /// The size it was asked for, in eighths of its own.
    pub(crate) eighths: u64,
    /// In percent.
    pub(crate) estimated: f64,
    pub(crate) simulated: f64,
}

impl Answer {
    /// How far off it is, in points.
    pub(crate) fn error(&self) -> f64 {
        (self.estimated - self.simulated).abs()
    }
}

/// Asks for every policy and size; nothing for a trace that is too short for the cache.
pub(crate) fn answers(
    name: &'static str,
    trace: &Trace,
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Vec<Answer> {
    let own = trace.footprint().entries(SHARE).limit();
    if (trace.keys().len() as u64) < CAPACITIES * own {
        return Vec::new();
    }
    let sizes = EIGHTHS.map(|eighths| (own * eighths).div_ceil(8));
    let simulated = sweep(
        trace,
        &POLICIES.map(Contender::policy),
        &sizes.map(Capacity::entries),
        threads,
        progress,
    );
    let estimated = std::thread::scope(|scope| {
        let asked = POLICIES.map(|policy| scope.spawn(move || ask(trace, policy, own, &sizes)));
        asked.map(|thread| thread.join().expect("a simulation ends"))
    });
    let mut answers = Vec::new();
    for (policy, estimated) in POLICIES.into_iter().zip(estimated) {
        let column = POLICIES.iter().position(|other| *other == policy).expect("one of them");
        for ((eighths, estimated), outcomes) in EIGHTHS.into_iter().zip(estimated).zip(&simulated) {
            let simulated = outcomes[column].expect("a cache has an outcome").hit_ratio() * 100.0;
            if let Some(estimated) = estimated {
                answers.push(Answer {
                    trace: name,
                    policy,
                    entries: own,
                    eighths,
                    estimated,
                    simulated,
                });
            }
        }
    }
    answers
}

/// What a cache that ran the trace says of other sizes.
fn ask(trace: &Trace, policy: Policy, own: u64, sizes: &[u64; 6]) -> [Option<f64>; 6] {
    let cache = Cache::<u64, ()>::builder("curve").entries(own).policy(policy);
    let cache = cache.miss_ratio_curve(true).build().expect("a valid configuration");
    for key in trace.keys() {
        if cache.get_in_memory(key).is_none() {
            cache.insert(*key, ());
        }
    }
    sizes.map(|size| Some(cache.hit_ratio_at(size)?.hit_ratio * 100.0))
}

/// The largest and the mean error.
pub(crate) fn worst_and_mean(answers: &[Answer]) -> Option<(&Answer, f64)> {
    let worst = answers.iter().max_by(|a, b| a.error().total_cmp(&b.error()))?;
    let mean = answers.iter().map(Answer::error).sum::<f64>() / answers.len() as f64;
    Some((worst, mean))
}

#[cfg(test)]
mod tests {
    use cache_tiered::simulate::Workload;

    use super::*;

    #[test]
    fn a_long_trace_has_an_answer_for_each_policy_and_size_and_a_short_one_has_none() {
        let zipf = Workload::Zipf { keys: 2_000, exponent: 0.9 };
        let answers = |requests| answers("t", &zipf.trace(requests, 1), 2, &|_| ());
        let long = answers(40_000);
        assert_eq!(long.len(), POLICIES.len() * EIGHTHS.len());
        let (worst, mean) = worst_and_mean(&long).expect("there are answers");
        assert!(worst.error() < 25.0 && mean < 10.0, "{worst:?} {mean}");
        assert!(long.iter().all(|answer| answer.simulated > 0.0));
        assert!(answers(10).is_empty() && worst_and_mean(&[]).is_none());
    }
}
