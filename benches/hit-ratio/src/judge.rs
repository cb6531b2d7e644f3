//! From hit ratios to a judgement: how far an entrant is behind the best policy of the literature.
//!
//! A point is a trace and a size. Its *regret* is the hit ratio of the best of the six textbook policies
//! less that of the entrant, in points of a percent; it is negative where the entrant beats all six. So
//! the six are not one policy: whoever has no regret has chosen the right one each time.

use crate::entrants::{Entrant, Role};

/// The sizes that count, as shares of the distinct keys.
pub(crate) const JUDGED: [f64; 3] = [0.01, 0.05, 0.2];
/// A point counts when the trace is this many times as long as the cache is large; below, most of what
/// is measured is how a cache fills.
pub(crate) const CAPACITIES: u64 = 20;

/// What came of one trace.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) recorded: bool,
    /// Whether the trace counts, where it is long enough.
    pub(crate) judged: bool,
    pub(crate) requests: u64,
    pub(crate) keys: u64,
    /// Whether the file holds more requests than were taken.
    pub(crate) cut: bool,
    pub(crate) points: Vec<Point>,
}

/// One size.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) share: f64,
    pub(crate) capacity: u64,
    /// The hit ratio of each entrant in percent, where it was measured.
    pub(crate) hits: Vec<Option<f64>>,
}

impl Run {
    /// The sizes of the tables.
    pub(crate) fn table(&self) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(|point| JUDGED.contains(&point.share))
    }

    /// Whether a point is long enough to count.
    pub(crate) fn is_long_enough(&self, point: &Point) -> bool {
        self.requests >= CAPACITIES * point.capacity
    }
}

impl Point {
    /// The best hit ratio among the entrants of a role.
    pub(crate) fn best(&self, entrants: &[Entrant], role: impl Fn(Role) -> bool) -> Option<f64> {
        let of_role = entrants.iter().zip(&self.hits).filter(|(entrant, _)| role(entrant.role));
        of_role.filter_map(|(_, hits)| *hits).max_by(f64::total_cmp)
    }

    /// How far an entrant is behind the best textbook policy.
    fn regret(&self, entrants: &[Entrant], of: usize) -> Option<f64> {
        Some(self.best(entrants, |role| role == Role::Textbook)? - self.hits[of]?)
    }
}

/// An entrant over all points that count.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) points: usize,
    pub(crate) mean_regret: f64,
    /// The same with nothing gained where it beats all six.
    pub(crate) mean_shortfall: f64,
    /// The largest regret, and where.
    pub(crate) worst: f64,
    pub(crate) worst_at: String,
    /// Points more than 5 and more than 10 behind.
    pub(crate) behind: [usize; 2],
    pub(crate) mean_hits: f64,
    /// The mean distance to the optimum.
    pub(crate) to_optimum: f64,
}

/// Judges an entrant by the points of those traces that `counts` names; `None` without any.
pub(crate) fn judge(
    runs: &[Run],
    entrants: &[Entrant],
    of: usize,
    counts: impl Fn(&Run) -> bool,
) -> Option<Verdict> {
    let mut regrets = Vec::new();
    let (mut hits, mut gaps) = (0.0, 0.0);
    for run in runs.iter().filter(|run| counts(run)) {
        for point in run.table().filter(|point| run.is_long_enough(point)) {
            let Some(regret) = point.regret(entrants, of) else { continue };
            let own = point.hits[of].expect("it has a regret");
            let optimum = point.best(entrants, |role| role == Role::Optimum).unwrap_or(own);
            hits += own;
            gaps += optimum - own;
            regrets.push((regret, format!("{} at {}", run.name, percent(point.share))));
        }
    }
    let (worst, worst_at) = regrets.iter().max_by(|a, b| a.0.total_cmp(&b.0))?.clone();
    let count = regrets.len() as f64;
    let behind = |by: f64| regrets.iter().filter(|(regret, _)| *regret > by).count();
    Some(Verdict {
        points: regrets.len(),
        mean_regret: regrets.iter().map(|(regret, _)| regret).sum::<f64>() / count,
        mean_shortfall: regrets.iter().map(|(regret, _)| regret.max(0.0)).sum::<f64>() / count,
        worst,
        worst_at,
        behind: [behind(5.0), behind(10.0)],
        mean_hits: hits / count,
        to_optimum: gaps / count,
    })
}

/// A share as it is written in tables.
pub(crate) fn percent(share: f64) -> String {
    format!("{} %", (share * 1e5).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entrants;

    /// A run of a long trace in which an entrant has the hit ratios given for its name, else `others`.
    fn run(
        name: &'static str,
        of: &str,
        hits: [f64; 3],
        others: f64,
    ) -> (Run, Vec<Entrant>, usize) {
        let entrants = entrants::all();
        let index = entrants.iter().position(|entrant| entrant.name == of).expect("takes part");
        let point = |(share, own): (f64, f64)| {
            let mut all = vec![Some(others); entrants.len()];
            all[index] = Some(own);
            Point { share, capacity: 10, hits: all }
        };
        let points = JUDGED.into_iter().zip(hits).map(point).collect();
        let run = Run {
            name,
            about: "",
            recorded: true,
            judged: true,
            requests: 200,
            keys: 50,
            cut: false,
            points,
        };
        (run, entrants, index)
    }

    #[test]
    fn regret_is_what_the_best_textbook_policy_has_more() {
        let (run, entrants, index) = run("t", "adaptive", [49.0, 44.0, 38.0], 50.0);
        let verdict = judge(&[run], &entrants, index, |_| true).expect("three points");
        assert_eq!((verdict.points, verdict.behind), (3, [2, 1]));
        assert!((verdict.mean_regret - 19.0 / 3.0).abs() < 1e-9);
        assert_eq!((verdict.worst, verdict.worst_at.as_str()), (12.0, "t at 20 %"));
    }

    #[test]
    fn beating_all_six_is_a_negative_regret_and_no_shortfall() {
        let (run, entrants, index) = run("t", "adaptive", [52.0, 52.0, 52.0], 50.0);
        let verdict = judge(&[run], &entrants, index, |_| true).expect("three points");
        assert!((verdict.mean_regret + 2.0).abs() < 1e-9 && verdict.mean_shortfall == 0.0);
        assert_eq!(verdict.behind, [0, 0]);
    }

    #[test]
    fn a_point_shorter_than_twenty_capacities_does_not_count() {
        let (mut run, entrants, index) = run("t", "adaptive", [0.0, 49.0, 49.0], 50.0);
        run.points[0].capacity = 11;
        let verdict = judge(&[run], &entrants, index, |_| true).expect("two points");
        assert_eq!(verdict.points, 2);
        assert!((verdict.mean_regret - 1.0).abs() < 1e-9);
    }

    #[test]
    fn without_a_trace_there_is_no_verdict() {
        let (run, entrants, index) = run("t", "adaptive", [0.0; 3], 50.0);
        assert_eq!(judge(&[run], &entrants, index, |run| !run.recorded), None);
    }
}
