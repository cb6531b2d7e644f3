//! What the history is asked: aggregates, ranges, queries by selector, and which series there are.
//!
//! What is in memory is folded where it stands, under the lock of the head: these are the windows of rules,
//! ten thousand of them at a time. Everything else first collects the pieces of a series - from the
//! store and from memory - and then folds them without a lock, one series after the other.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use super::block::{Piece, Shape, View, WIDTH};
use super::chunk::{self, Wanted};
use super::fold::{Fold, Rows, reach_ms, row_end};
use super::head::{Head, Tier};
use super::store::HistoryStore;
use super::writer::Shared;
use super::{History, keep_ms, record};
use crate::selector::Selector;
use crate::series::{Kind, Labels, SeriesId, SeriesKey, Unit};
use crate::source::{Aggregate, Reading, Window};

/// Rows that an aggregate over a long window should rest on at least.
const ROWS_MIN: i64 = 20;
/// The longest window whose quantiles of gauges are taken of all samples.
const EXACT_MS: i64 = 6 * 3_600_000;
/// Points of a query that names no step, about.
const POINTS: i64 = 300;

/// A question about a stretch of time.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// Which series.
    pub selector: Selector,
    /// Milliseconds since 1970; the first step begins here.
    pub from_ms: i64,
    /// Milliseconds since 1970; the last step ends here.
    pub to_ms: i64,
    /// The length of a step; without one, so that there are at most 300 points.
    pub step_ms: Option<i64>,
    /// What to make of the samples of a step.
    pub aggregate: Aggregate,
    /// Labels whose values part the series into groups; without them, each series is its own.
    pub by: Option<Vec<Arc<str>>>,
}

/// What a query came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QueryResult {
    /// The length of a step.
    pub step_ms: i64,
    /// The distance of the rows that were read.
    pub tier_step_ms: i64,
    /// The end of the first step.
    pub first_ms: i64,
    /// The unit of the metric; a rate is in it by the second.
    pub unit: Unit,
    /// What each group came to, in the order of their labels.
    pub series: Vec<QuerySeries>,
}

/// One line of a result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QuerySeries {
    /// The labels of the series, or those that its group has in common.
    pub labels: Labels,
    /// A value for each step, nothing where there were no samples.
    pub points: Vec<Option<f64>>,
}

/// A series that something is kept of.
#[derive(Debug, Clone)]
pub struct SeriesInfo {
    /// Its number in the history.
    pub id: SeriesId,
    /// Its name and labels.
    pub key: Arc<SeriesKey>,
    /// What its values mean.
    pub kind: Kind,
    /// The unit of its values.
    pub unit: Unit,
    /// When its first sample came.
    pub first_ms: i64,
    /// When its last sample came, as far as is known.
    pub last_ms: i64,
    /// Whether it has had no sample for a while.
    pub ended: bool,
}

/// Why a query cannot be answered: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryError {
    /// At least one.
    pub problems: Vec<QueryProblem>,
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            let comma = if at == 0 { "" } else { "; " };
            write!(f, "{comma}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for QueryError {}

/// One thing that is wrong with a query.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryProblem {
    /// The stretch ends before it begins.
    #[error("from {from_ms} to {to_ms} is no time: it must end after it begins")]
    Window {
        /// Where it begins.
        from_ms: i64,
        /// Where it ends.
        to_ms: i64,
    },
    /// The step is none.
    #[error("step = {step_ms} ms: must be at least 1")]
    Step {
        /// What was asked for.
        step_ms: i64,
    },
    /// It would have too many points.
    #[error("{points} points for each series: at most {most}; take a longer step")]
    Points {
        /// What was asked for.
        points: i64,
        /// What is allowed.
        most: usize,
    },
    /// It would read too many series.
    #[error("{series} series match: at most {most} can be read at once; name more labels")]
    Series {
        /// How many match.
        series: usize,
        /// What is allowed.
        most: usize,
    },
    /// The quantile is none.
    #[error("quantile {quantile}: must be from 0 to 1")]
    Quantile {
        /// What was asked for.
        quantile: f64,
    },
}

/// What has to be known of a series to read and fold it.
#[derive(Debug, Clone, Copy)]
struct Target {
    place: usize,
    number: u32,
    kind: Kind,
    scale: f64,
}

impl Shared {
    /// Chooses the tier for a window whose rows may be as far apart as `fine_ms`.
    fn tier_for(&self, head: &Head, from_ms: i64, to_ms: i64, fine_ms: i64, exact: bool) -> usize {
        let last_ms = head.last_ms.unwrap_or(to_ms);
        let tiers = &head.tiers;
        let in_memory = from_ms.saturating_sub(reach_ms(head.step_ms())) >= tiers[0].memory_start();
        let wants_all = exact && to_ms.saturating_sub(from_ms) <= EXACT_MS;
        let mut chosen = 0;
        if !in_memory && !wants_all {
            chosen = tiers.iter().rposition(|t| i64::from(t.key.step_ms) <= fine_ms).unwrap_or(0);
        }
        // Where most of the fine rows are gone, a coarser tier may have more.
        let oldest = |at: usize| {
            let tier: &Tier = &tiers[at];
            let kept = last_ms.saturating_sub(keep_ms(&self.options.tiers[at]));
            tier.oldest_ms.min(tier.memory_start()).max(head.first_ms.saturating_sub(1)).max(kept)
        };
        let middle = from_ms.midpoint(to_ms);
        while chosen + 1 < tiers.len()
            && middle < oldest(chosen)
            && oldest(chosen + 1) < oldest(chosen)
        {
            chosen += 1;
        }
        chosen
    }

    fn target(head: &Head, id: SeriesId) -> Option<Target> {
        let place = id.0 as usize;
        let entry = head.entries.get(place).filter(|entry| !entry.forgotten)?;
        Some(Target { place, number: entry.number, kind: entry.kind, scale: entry.scale })
    }

    /// Returns the pieces of a series that have rows of a window, in the order of time.
    pub(super) fn pieces(
        &self,
        tier: usize,
        place: usize,
        number: u32,
        (from_ms, to_ms): (i64, i64),
        wanted: Wanted,
    ) -> Vec<Piece> {
        let mut in_memory = Vec::new();
        let head = self.head.read();
        let (key, memory_start) = (head.tiers[tier].key, head.tiers[tier].memory_start());
        let first_start = head.tiers[tier].block_start(from_ms.saturating_add(1));
        head.pieces(tier, place, &mut in_memory);
        drop(head);
        let mut pieces = BTreeMap::new();
        if first_start < memory_start {
            let end_ms = to_ms.saturating_add(1).min(memory_start);
            let from = record::chunk_key(key, number, first_start);
            let until = record::chunk_key(key, number, end_ms);
            let disk = self.disk.read().clone();
            let stores = [disk.as_deref(), Some(&self.memory as &dyn HistoryStore)];
            for store in stores.into_iter().flatten() {
                let scanned = store.scan(&from, &until, &mut |key, value| {
                    let start = record::read_chunk_key(key).map(|(.., start_ms)| start_ms);
                    match (start, chunk::decode(value, wanted)) {
                        (Some(start), Ok(piece)) => drop(pieces.insert(start, piece)),
                        _ => drop(self.damaged.fetch_add(1, Relaxed)),
                    }
                    true
                });
                if let Err(error) = scanned {
                    tracing::warn!(%error, "the history cannot be read");
                    self.damaged.fetch_add(1, Relaxed);
                }
            }
        }
        let head = self.head.read();
        let all = pieces.into_values().chain(in_memory);
        let inside = |piece: &Piece| {
            let times = piece.view().times;
            times.first().is_some_and(|first| *first <= to_ms)
                && times.last().is_some_and(|last| *last > from_ms)
                && head.fits(tier, place, &piece.column)
        };
        all.filter(inside).collect()
    }

    pub(super) fn aggregate(
        &self,
        series: &[SeriesId],
        window: Window,
        aggregate: Aggregate,
    ) -> Option<Reading> {
        let Window { from_ms, to_ms } = window;
        let mut fold = Fold::new(aggregate);
        let head = self.head.read();
        let exact = matches!(aggregate, Aggregate::Quantile(_) | Aggregate::Stddev);
        let fine_ms = window.length_ms() / ROWS_MIN;
        let tier = self.tier_for(&head, from_ms, to_ms, fine_ms, exact);
        let step_ms = i64::from(head.tiers[tier].key.step_ms);
        let base_ms = head.step_ms();
        let begin_ms = from_ms.saturating_sub(reach_ms(step_ms));
        let known = series.iter().filter_map(|id| Self::target(&head, *id));
        let mut count = 0_i64;
        if tier == 0 && begin_ms >= head.tiers[0].memory_start() {
            let blocks = head.tiers[0].closed.iter().chain([&head.tiers[0].open]);
            let near = |block: &&super::block::Block| {
                block.times.first().is_some_and(|first| *first <= to_ms)
                    && block.times.last().is_some_and(|last| *last > begin_ms)
            };
            let mut views = Vec::with_capacity(2);
            for target in known {
                views.clear();
                for block in blocks.clone().filter(near) {
                    views.extend(block.column(target.place).map(|c| View::new(&block.times, c)));
                }
                let Target { kind, scale, .. } = target;
                fold.add(&Rows { kind, scale, step_ms, pieces: &views }, from_ms, to_ms);
                count += 1;
            }
        } else {
            let targets: Vec<Target> = known.collect();
            drop(head);
            for target in targets {
                let wanted = wanted(target.kind, tier, aggregate);
                let stretch = (begin_ms, to_ms);
                let pieces = self.pieces(tier, target.place, target.number, stretch, wanted);
                let views: Vec<View<'_>> = pieces.iter().map(Piece::view).collect();
                let Target { kind, scale, .. } = target;
                fold.add(&Rows { kind, scale, step_ms, pieces: &views }, from_ms, to_ms);
                count += 1;
            }
        }
        let samples = fold.samples_seen();
        let each = window.length_ms() / base_ms;
        let expected = u32::try_from(each.saturating_mul(count)).unwrap_or(u32::MAX);
        fold.value().map(|value| Reading { value, samples, expected })
    }

    pub(super) fn range(
        &self,
        series: &[SeriesId],
        window: Window,
        step_ms: i64,
        aggregate: Aggregate,
    ) -> Vec<Option<f64>> {
        let length = window.length_ms();
        if step_ms <= 0 || length <= 0 {
            return Vec::new();
        }
        let steps = length / step_ms + i64::from(length % step_ms > 0);
        let steps = (steps as u64).min(self.options.query_points as u64) as usize;
        let (targets, tier, tier_step_ms) = {
            let head = self.head.read();
            let targets: Vec<Target> =
                series.iter().filter_map(|id| Self::target(&head, *id)).collect();
            let tier = self.tier_for(&head, window.from_ms, window.to_ms, step_ms, false);
            (targets, tier, i64::from(head.tiers[tier].key.step_ms))
        };
        let mut folds = vec![Fold::new(aggregate); steps];
        for target in targets {
            self.fold_steps(&mut folds, target, tier, tier_step_ms, window, step_ms, aggregate);
        }
        folds.into_iter().map(Fold::value).collect()
    }

    /// Adds a series to the fold of each step; the last step ends with the window.
    #[expect(clippy::too_many_arguments, reason = "the two callers have them apart")]
    fn fold_steps(
        &self,
        folds: &mut [Fold],
        target: Target,
        tier: usize,
        tier_step_ms: i64,
        window: Window,
        step_ms: i64,
        aggregate: Aggregate,
    ) {
        let reach_ms = reach_ms(tier_step_ms);
        let stretch = (window.from_ms.saturating_sub(reach_ms), window.to_ms);
        let wanted = wanted(target.kind, tier, aggregate);
        let pieces = self.pieces(tier, target.place, target.number, stretch, wanted);
        let views: Vec<View<'_>> = pieces.iter().map(Piece::view).collect();
        let Target { kind, scale, .. } = target;
        let (mut first, steps) = (0, folds.len() as i64);
        for (at, fold) in folds.iter_mut().enumerate() {
            let back = (steps - 1 - at as i64).saturating_mul(step_ms);
            let to_ms = window.to_ms.saturating_sub(back);
            let from_ms = to_ms.saturating_sub(step_ms).max(window.from_ms);
            let begin_ms = from_ms.saturating_sub(reach_ms);
            let ends = |view: &View<'_>| view.times.last().is_some_and(|last| *last <= begin_ms);
            while views.get(first).is_some_and(ends) {
                first += 1;
            }
            let near = |view: &&View<'_>| view.times.first().is_some_and(|start| *start <= to_ms);
            let count = views[first..].iter().take_while(near).count();
            let pieces = &views[first..first + count];
            if !pieces.is_empty() {
                fold.add(&Rows { kind, scale, step_ms: tier_step_ms, pieces }, from_ms, to_ms);
            }
        }
    }
}

/// Returns which numbers of a chunk an aggregate needs.
pub(super) fn wanted(kind: Kind, tier: usize, aggregate: Aggregate) -> Wanted {
    let shape = match kind {
        Kind::Histogram => Shape::Distributions,
        _ if tier == 0 => Shape::Samples,
        Kind::Counter => Shape::Counters,
        Kind::Gauge => Shape::Gauges,
    };
    // The first is there always: it tells which rows are.
    let columns: &[usize] = match (shape, aggregate) {
        (Shape::Samples, _) => &[],
        (Shape::Gauges, Aggregate::Min) => &[3],
        (Shape::Gauges, Aggregate::Max) => &[1, 3],
        (Shape::Gauges, Aggregate::Last | Aggregate::Rate | Aggregate::Delta) => &[3, 4],
        (Shape::Gauges, _) => &[2, 3],
        (Shape::Counters, Aggregate::Rate | Aggregate::Delta | Aggregate::Count) => &[2],
        (Shape::Counters, _) => &[1, 2],
        (Shape::Distributions, Aggregate::Avg | Aggregate::Sum) => &[1, 3],
        (Shape::Distributions, Aggregate::Last) => &[2, 3],
        (Shape::Distributions, _) => &[3],
    };
    let runs = matches!(
        aggregate,
        Aggregate::Min | Aggregate::Max | Aggregate::Stddev | Aggregate::Quantile(_)
    );
    let mut wanted = Wanted { columns: [false; WIDTH], runs };
    wanted.columns[0] = true;
    columns.iter().for_each(|column| wanted.columns[*column] = true);
    wanted
}

impl History {
    /// Answers a question about a stretch of time, from the coarsest tier whose rows are fine enough.
    ///
    /// # Errors
    ///
    /// If the question makes no sense, or its answer would be larger than the options allow; all problems at
    /// once.
    ///
    /// # Cost
    ///
    /// Reads the store, so it blocks: about 10 us a chunk, one series after the other.
    pub fn query(&self, query: &Query) -> Result<QueryResult, QueryError> {
        let shared = &self.0.shared;
        let window = Window { from_ms: query.from_ms, to_ms: query.to_ms };
        let mut problems = Vec::new();
        let length = window.length_ms();
        if length <= 0 {
            let Query { from_ms, to_ms, .. } = *query;
            problems.push(QueryProblem::Window { from_ms, to_ms });
        }
        let base_ms = shared.head.read().step_ms();
        let fitting = || row_end(length.max(1) / POINTS + 1, base_ms);
        let step_ms = query.step_ms.unwrap_or_else(fitting);
        if step_ms <= 0 {
            problems.push(QueryProblem::Step { step_ms });
        } else {
            let points = length.max(0) / step_ms + i64::from(length.max(0) % step_ms > 0);
            let most = shared.options.query_points;
            if points as u64 > most as u64 {
                problems.push(QueryProblem::Points { points, most });
            }
        }
        if let Aggregate::Quantile(quantile) = query.aggregate
            && !(0.0..=1.0).contains(&quantile)
        {
            problems.push(QueryProblem::Quantile { quantile });
        }
        let head = shared.head.read();
        let places = head.matching(&query.selector);
        let (series, most) = (places.len(), shared.options.query_series);
        if series > most {
            problems.push(QueryProblem::Series { series, most });
        }
        if !problems.is_empty() {
            return Err(QueryError { problems });
        }
        let mut groups: BTreeMap<Labels, Vec<Target>> = BTreeMap::new();
        for place in &places {
            let labels = &head.entries[*place].key.labels;
            let labels = query.by.as_ref().map_or_else(|| labels.clone(), |by| labels.only(by));
            groups
                .entry(labels)
                .or_default()
                .extend(Shared::target(&head, SeriesId(*place as u32)));
        }
        let unit = places.first().map_or(Unit::None, |place| head.entries[*place].unit);
        let tier = shared.tier_for(&head, query.from_ms, query.to_ms, step_ms, false);
        let tier_step_ms = i64::from(head.tiers[tier].key.step_ms);
        drop(head);
        let steps = length / step_ms + i64::from(length % step_ms > 0);
        let lines = groups.into_iter().map(|(labels, targets)| {
            let mut folds = vec![Fold::new(query.aggregate); steps as usize];
            for target in targets {
                let aggregate = query.aggregate;
                shared.fold_steps(
                    &mut folds,
                    target,
                    tier,
                    tier_step_ms,
                    window,
                    step_ms,
                    aggregate,
                );
            }
            QuerySeries { labels, points: folds.into_iter().map(Fold::value).collect() }
        });
        let series = lines.collect();
        let first_ms = query.to_ms - (steps - 1) * step_ms;
        Ok(QueryResult { step_ms, tier_step_ms, first_ms, unit, series })
    }

    /// Returns the series that a selector matches and of which something is kept, also those that ended.
    #[must_use]
    pub fn series(&self, selector: &Selector) -> Vec<SeriesInfo> {
        let head = self.0.shared.head.read();
        let found = head.matching(selector).into_iter().map(|place| {
            let entry = &head.entries[place];
            SeriesInfo {
                id: SeriesId(place as u32),
                key: Arc::clone(&entry.key),
                kind: entry.kind,
                unit: entry.unit,
                first_ms: entry.first_ms,
                last_ms: entry.last_ms,
                ended: entry.ended,
            }
        });
        found.collect()
    }

    /// Returns the names of which something is kept, in order.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        self.0.shared.head.read().names()
    }
}
