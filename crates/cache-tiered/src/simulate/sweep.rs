//! Many contenders at many capacities, on as many threads.
//!
//! Each pair of a contender and a capacity is one piece of work; threads take the next one until none is
//! left. The trace is shared, and so is its future, which is read when the first optimum asks for it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Capacity, Contender, Future, Outcome, Trace, run_telling};

/// Measures each contender at each capacity: `outcomes[capacity][contender]`.
///
/// The optimum of weights is not known, so it has no outcome where the capacity [weighs]. `progress` is
/// called from all threads with the requests done since its last call; together they are
/// `requests * contenders * capacities`.
///
/// # Panics
///
/// When a contender of the caller's own does.
///
/// # Cost
///
/// 15 to 250 ns for a request of each pair, spread over `threads` (one if that is 0); memory for one cache
/// in each thread.
///
/// [weighs]: Capacity::weighs
#[must_use]
pub fn sweep(
    trace: &Trace,
    contenders: &[Contender],
    capacities: &[Capacity],
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Vec<Vec<Option<Outcome>>> {
    let pairs: Vec<_> = capacities
        .iter()
        .flat_map(|capacity| contenders.iter().map(move |contender| (*capacity, contender)))
        .collect();
    let outcomes: Vec<OnceLock<Option<Outcome>>> = pairs.iter().map(|_| OnceLock::new()).collect();
    let future = OnceLock::new();
    let next = AtomicUsize::new(0);
    let work = || {
        // Relaxed: who takes a pair needs nothing of who took another.
        while let Some(at) = claim(&next, pairs.len()) {
            let (capacity, contender) = pairs[at];
            let outcome = measure(trace, contender, capacity, &future, progress);
            outcomes[at].set(outcome).expect("a pair is taken once");
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(pairs.len()) {
            scope.spawn(work);
        }
        work();
    });
    let mut outcomes = outcomes.into_iter().map(|outcome| outcome.into_inner().flatten());
    capacities.iter().map(|_| outcomes.by_ref().take(contenders.len()).collect()).collect()
}

/// The index of a pair that nobody else has taken.
fn claim(next: &AtomicUsize, pairs: usize) -> Option<usize> {
    // Relaxed: what is claimed was written before the threads began.
    let at = next.fetch_add(1, Ordering::Relaxed);
    (at < pairs).then_some(at)
}

fn measure(
    trace: &Trace,
    contender: &Contender,
    capacity: Capacity,
    future: &OnceLock<Future>,
    progress: &(dyn Fn(u64) + Sync),
) -> Option<Outcome> {
    let progress = &mut |done| progress(done);
    if let Some(mut cache) = contender.make(capacity) {
        return Some(run_telling(trace, capacity.weighs(), &mut *cache, progress));
    }
    if capacity.weighs() {
        progress(trace.keys().len() as u64);
        return None;
    }
    Some(future.get_or_init(|| Future::of(trace)).optimum(capacity.limit(), progress))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::simulate::{Textbook, Workload, run};

    const CAPACITIES: [u64; 3] = [10, 50, 200];

    fn contenders() -> [Contender; 3] {
        [
            Contender::textbook(Textbook::Lru),
            Contender::optimum(),
            Contender::textbook(Textbook::Arc),
        ]
    }

    #[test]
    fn a_sweep_on_many_threads_is_what_single_runs_are() {
        let trace = Workload::Zipf { keys: 1_000, exponent: 0.8 }.trace(70_000, 1);
        let capacities = CAPACITIES.map(Capacity::entries);
        let done = AtomicU64::new(0);
        let tell = |more| {
            done.fetch_add(more, Ordering::Relaxed);
        };
        let outcomes = sweep(&trace, &contenders(), &capacities, 4, &tell);
        assert_eq!(done.into_inner(), 70_000 * 9);
        assert_eq!(outcomes, sweep(&trace, &contenders(), &capacities, 0, &|_| ()));
        let future = Future::of(&trace);
        for (row, entries) in outcomes.iter().zip(CAPACITIES) {
            let alone =
                |policy: Textbook| run(&trace, &mut *policy.cache(Capacity::entries(entries)));
            let optimum = future.optimum(entries, &mut |_| ());
            let expected = [alone(Textbook::Lru), optimum, alone(Textbook::Arc)];
            assert_eq!(*row, expected.map(Some), "{entries}");
        }
    }

    #[test]
    fn weights_have_no_optimum_and_entries_of_a_weighted_trace_have() {
        let keys = Workload::Zipf { keys: 100, exponent: 0.8 }.trace(2_000, 1);
        let trace = Trace::weighted("t", keys.keys().iter().map(|key| (*key, (key % 50) as u32)));
        let capacities = [Capacity::weight(500, 20), Capacity::entries(20)];
        let outcomes = sweep(&trace, &contenders(), &capacities, 2, &|_| ());
        assert_eq!(outcomes[0][1], None);
        assert!(outcomes[0][0].is_some_and(|lru| lru.weight > lru.requests));
        assert!(outcomes[1][1].is_some_and(|optimum| optimum.weight == optimum.requests));
    }

    #[test]
    fn nothing_to_measure_measures_nothing() {
        let trace = Workload::Loop { keys: 3 }.trace(10, 1);
        assert!(sweep(&trace, &contenders(), &[], 2, &|_| ()).is_empty());
        assert_eq!(sweep(&trace, &[], &[Capacity::entries(1)], 2, &|_| ()), [vec![]]);
    }
}
