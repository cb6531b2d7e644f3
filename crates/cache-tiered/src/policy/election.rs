//! The election: small copies of every policy run on a sample of the requests, and the best one rules.
//!
//! Each candidate decides over a [`MiniCache`] that is smaller than the cache by the rate at which
//! keys are sampled (miniature simulation: Waldspurger, Saemundsson, Ahmad and Park, "Cache Modeling
//! and Optimization using Miniature Simulations", USENIX ATC 2017). A sampled request is a *ballot*:
//! it is put to all candidates, and those that hit score. All see the same requests, so what differs
//! between two of them is the policy alone; at a rate of one they are exact.
//!
//! # The rule
//!
//! Scores lose half their weight per *term* of eight mini capacities of ballots, and are looked at
//! four times per term. The candidate with the highest score takes over from the live one if
//!
//! - it leads by 2 % of the live score and by 0.2 % of the ballots, and
//! - the lead is no accident: of the ballots on which the two disagree, its surplus is above three
//!   standard deviations (McNemar's test, with the same decay), and
//! - the live one has had its time: two terms, doubled each time a switch only undoes the one before
//!   it, up to 32 terms, and two again once a policy has stayed for long.
//!
//! A switch keeps the entries, and the new policy inherits the lists; but not what it would have
//! remembered (ghosts, frequencies), nor the set of entries it would have chosen. Both take a few
//! capacities of requests to come. Rules that follow every lead look better on paper, where each
//! candidate has run from the beginning, and lose to this one in the running cache: loops and sweeps
//! reward whoever stays.
//!
//! # Rest
//!
//! A ballot costs 300 to 400 ns. In a cache of 100,000 entries one request in two hundred is a ballot
//! and nobody notices; in one of 500 all are. So ballots are paid from an allowance that starts with
//! 65,536 and earns one per 96 requests: what an election costs in the long run is bounded by 1/96
//! of a ballot per request, whatever the requests are. To have something in hand when it matters,
//! an election without a new result for four terms rests, each time twice as long, and samples
//! nothing meanwhile; the hit ratio of the cache itself, which is counted anyway, wakes it early when
//! it moves by more than three points beyond its own noise. After a rest the minis are stale, and
//! the first two mini capacities of ballots only refresh them.
//!
//! # What it does not see
//!
//! Expiry and removals (the minis keep the key, each alike), the splitting into shards, and requests
//! whose sample was dropped; [`crate::memory::locals`] tells when that happens and which way it errs.
//! If more than a fifth is dropped the rate is halved. With weights, an entry heavier than a
//! mini is a miss in it; where entries are lighter or heavier than expected, the rate is halved or
//! doubled until a mini holds between 128 and 1,024 entries.
//!
//! # Memory
//!
//! One mini of 512 entries per candidate, with index, ghosts and sketch: 20 KiB each and at most
//! twice that where weights vary, whatever the size of the cache; less in a cache of fewer entries.
//! Minis of twice the size cost twice as much per request and found the same winners.

use std::collections::VecDeque;
use std::fmt;

use super::{Kind, MiniCache};
use crate::memory::locals::{Counts, EVERY_KEY, position};

/// Entries a mini cache holds when the weights are as expected.
const MINI_ENTRIES: u64 = 512;
/// Bounds of the entries a mini holds, beyond which the rate changes.
const MINI_ENTRIES_MAX: usize = 2 * MINI_ENTRIES as usize;
const MINI_ENTRIES_MIN: usize = MINI_ENTRIES as usize / 4;
/// The smallest unit to which drops may thin the sample.
const MINI_ENTRIES_THIN: f64 = 64.0;

/// How many switches are remembered.
const SWITCHES: usize = 16;

/// The numbers of the rule; one set for every workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// Ballots per term, in mini capacities: the half-life of scores.
    pub(crate) term: f64,
    /// Looks at the scores per term.
    pub(crate) checks: f64,
    /// A challenger needs this multiple of the live score,
    pub(crate) lead: f64,
    /// this share of the ballots on top of it,
    pub(crate) lead_ballots: f64,
    /// and this many standard deviations of surplus where the two disagree.
    pub(crate) deviations: f64,
    /// Terms that a policy rules at least.
    pub(crate) dwell: f64,
    /// How often `dwell` may double.
    pub(crate) doublings: u32,
    /// Terms without a switch after which the election rests.
    pub(crate) settled: f64,
    /// Mini capacities of ballots that are not counted after a rest.
    pub(crate) warm: f64,
    /// Ballots that one request earns,
    pub(crate) earns: f64,
    /// and the most that can be saved.
    pub(crate) savings: f64,
    /// A change of the live hit ratio by this much ends a rest.
    pub(crate) alarm: f64,
}

pub(crate) const RULE: Rule = Rule {
    term: 8.0,
    checks: 4.0,
    lead: 1.02,
    lead_ballots: 0.002,
    deviations: 3.0,
    dwell: 2.0,
    doublings: 4,
    settled: 4.0,
    warm: 2.0,
    earns: 1.0 / 96.0,
    savings: 65_536.0,
    alarm: 0.03,
};

/// What the shards are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Switch {
    pub(crate) from: Kind,
    pub(crate) to: Kind,
}

/// Elects the policy of one cache.
#[derive(Debug)]
pub(crate) struct Election {
    rule: Rule,
    /// Weight of the whole cache.
    capacity: u64,
    /// The share of the keys that is sampled while voting.
    rate: f64,
    /// Entries a mini is expected to hold: the unit in which ballots are reckoned.
    mini_entries: f64,
    /// Ballots, those on which the live candidate missed, and lost samples since the rate was set.
    cast: f64,
    missed: f64,
    lost: f64,
    candidates: Vec<Candidate>,
    /// Index of the live one.
    live: usize,
    phase: Phase,
    /// Ballots that may still be spent.
    allowance: f64,
    /// Decayed number of counted ballots.
    weight: f64,
    /// Ballots since the last look at the scores.
    since_check: f64,
    /// Ballots counted since the live policy came.
    reign: f64,
    /// How often the dwell is doubled.
    backoff: u32,
    /// Who ruled before.
    before: Option<usize>,
    /// Requests of the cache as last heard of.
    counts: Counts,
    pending: Option<Switch>,
    /// Counted ballots since the beginning.
    ballots: u64,
    dropped: u64,
    switches: VecDeque<PolicySwitch>,
    switched: u64,
}

#[derive(Debug)]
struct Candidate {
    kind: Kind,
    mini: MiniCache,
    /// Decayed hits.
    score: f64,
    /// Decayed ballots on which it hit and the live one missed, and the reverse.
    ahead: f64,
    behind: f64,
    hits: u64,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Voting {
        /// Ballots still to be spent before any counts.
        warming: f64,
        /// Ballots counted without a switch.
        settled: f64,
        /// Ballots spent.
        spent: f64,
        /// Requests of the cache when it began.
        from: Counts,
        /// How long the next rest is, in lengths of this vote.
        rest: f64,
        /// Tolerance of the alarm in the next rest.
        alarm: f64,
    },
    Resting {
        /// Requests of the cache at which it ends.
        until: u64,
        /// The live hit ratio while voting.
        usual: f64,
        /// Where the present window of the live hit ratio began.
        window: Counts,
        rest: f64,
        alarm: f64,
    },
}

impl Election {
    /// Elects for a cache of `capacity` weight, expected to hold `entries`, that runs `start`.
    pub(crate) fn new(capacity: u64, entries: u64, start: Kind) -> Self {
        Self::with_rule(capacity, entries, start, RULE)
    }

    pub(crate) fn with_rule(capacity: u64, entries: u64, start: Kind, rule: Rule) -> Self {
        let mut election = Self {
            rule,
            capacity,
            rate: 1.0,
            mini_entries: 1.0,
            cast: 0.0,
            missed: 0.0,
            lost: 0.0,
            candidates: Kind::ALL.into_iter().map(Candidate::new).collect(),
            live: Kind::ALL.iter().position(|&kind| kind == start).unwrap_or(0),
            phase: Phase::voting(0.0, Counts::default(), 1.0, rule.alarm),
            allowance: rule.savings,
            weight: 0.0,
            since_check: 0.0,
            reign: 0.0,
            backoff: 0,
            before: None,
            counts: Counts::default(),
            pending: None,
            ballots: 0,
            dropped: 0,
            switches: VecDeque::new(),
            switched: 0,
        };
        election.resize(capacity, entries);
        election
    }

    /// Follows the cache to another size; what was learnt stays.
    pub(crate) fn resize(&mut self, capacity: u64, entries: u64) {
        self.capacity = capacity;
        let entries = entries.clamp(1, capacity.max(1));
        self.set_rate((MINI_ENTRIES as f64 / entries as f64).min(1.0));
        self.mini_entries = (entries as f64 * self.rate).max(1.0);
    }

    /// The threshold under which the positions of sampled keys lie, at present.
    pub(crate) fn threshold(&self) -> u64 {
        match self.phase {
            Phase::Voting { .. } if self.capacity > 0 => (self.rate * EVERY_KEY as f64) as u64,
            _ => 0,
        }
    }

    /// The policy that leads, whether or not the shards have heard of it.
    pub(crate) fn live(&self) -> Kind {
        self.candidates[self.live].kind
    }

    /// Puts one sampled request to all candidates.
    pub(crate) fn request(&mut self, id: u64, weight: u32) {
        let Phase::Voting { warming, settled, spent, .. } = &mut self.phase else { return };
        // The sample may be wider than this election asked for, or from before it asked for less.
        if position(id) as f64 >= self.rate * EVERY_KEY as f64 {
            return;
        }
        *spent += 1.0;
        self.allowance -= 1.0;
        let counted = *warming <= 0.0;
        if counted {
            *settled += 1.0;
        } else {
            *warming -= 1.0;
        }
        let mut hits = 0_u32;
        for (at, candidate) in self.candidates.iter_mut().enumerate() {
            hits |= u32::from(candidate.mini.request(id, weight)) << at;
        }
        let live = hits >> self.live & 1;
        self.cast += 1.0;
        self.missed += f64::from(1 - live);
        if !counted {
            return;
        }
        self.ballots += 1;
        self.weight += 1.0;
        self.reign += 1.0;
        self.since_check += 1.0;
        for (at, candidate) in self.candidates.iter_mut().enumerate() {
            let hit = hits >> at & 1;
            candidate.hits += u64::from(hit);
            candidate.score += f64::from(hit);
            candidate.ahead += f64::from(hit & !live);
            candidate.behind += f64::from(live & !hit);
        }
        if self.since_check >= (self.term() / self.rule.checks).max(1.0) {
            self.check();
        }
    }

    /// Takes note of how the cache itself does, and returns a switch if one was decided.
    ///
    /// `dropped` is the number of samples that were lost since the last call.
    pub(crate) fn decide(&mut self, counts: Counts, dropped: u64) -> Option<Switch> {
        self.dropped += dropped;
        self.lost += dropped as f64;
        let passed = counts.requests().saturating_sub(self.counts.requests());
        self.counts = counts;
        self.allowance = (self.allowance + passed as f64 * self.rule.earns).min(self.rule.savings);
        self.adjust();
        match self.phase {
            Phase::Voting { settled, spent, from, rest, alarm, .. } => {
                let bored = settled >= self.rule.settled * self.term();
                if (bored && self.rest_max() > 1.0) || self.allowance <= 0.0 {
                    self.rest(spent, from, rest, alarm);
                }
            }
            Phase::Resting { until, usual, window, rest, alarm } => {
                self.watch(until, usual, window, rest, alarm);
            }
        }
        self.pending.take()
    }

    /// Tells what the candidates reached and what was decided.
    pub(crate) fn report(&self) -> PolicyReport {
        let ratio = |hits: f64, of: f64| if of > 0.0 { Some(hits / of) } else { None };
        PolicyReport {
            live: self.live().as_str(),
            voting: matches!(self.phase, Phase::Voting { .. }),
            sampling_rate: self.rate,
            sampled: self.ballots,
            dropped: self.dropped,
            candidates: self
                .candidates
                .iter()
                .map(|candidate| CandidateReport {
                    name: candidate.kind.as_str(),
                    live: candidate.kind == self.live(),
                    hit_ratio: ratio(candidate.hits as f64, self.ballots as f64),
                    recent_hit_ratio: ratio(candidate.score, self.weight),
                })
                .collect(),
            switched: self.switched,
            switches: self.switches.iter().cloned().collect(),
        }
    }

    /// The heap bytes of the mini caches.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.candidates.iter().map(|candidate| candidate.mini.bytes()).sum()
    }

    fn term(&self) -> f64 {
        self.rule.term * self.mini_entries
    }

    fn set_rate(&mut self, rate: f64) {
        self.rate = rate;
        (self.cast, self.missed, self.lost) = (0.0, 0.0, 0.0);
        let mini = ((self.capacity as f64 * rate).round() as u64).max(1);
        for candidate in &mut self.candidates {
            candidate.mini.resize(if self.capacity == 0 { 0 } else { mini });
        }
    }

    /// Changes the rate where the minis hold too many or too few entries, or samples get lost.
    fn adjust(&mut self) {
        let entries = self.candidates[self.live].mini.len();
        let losing = self.lost > 1_024.0 + self.cast / 4.0 && self.mini_entries > MINI_ENTRIES_THIN;
        if entries > MINI_ENTRIES_MAX || losing {
            if losing {
                self.mini_entries /= 2.0;
            }
            self.set_rate(self.rate / 2.0);
        } else if self.rate < 1.0
            && entries < MINI_ENTRIES_MIN
            && (entries as f64) < self.mini_entries / 2.0
            && self.missed > (4 * entries + MINI_ENTRIES_MIN) as f64
        {
            // So many keys came in and so few are left: the mini is full of heavy entries.
            self.set_rate((2.0 * self.rate).min(1.0));
        }
    }

    /// Looks at the scores, and lets them fade.
    fn check(&mut self) {
        self.since_check = 0.0;
        if let Some(challenger) = self.challenger() {
            self.elect(challenger);
        }
        let keep = 0.5_f64.powf(1.0 / self.rule.checks);
        self.weight *= keep;
        for candidate in &mut self.candidates {
            candidate.score *= keep;
            candidate.ahead *= keep;
            candidate.behind *= keep;
        }
    }

    /// The candidate that is to take over, if any.
    fn challenger(&self) -> Option<usize> {
        let dwell = self.rule.dwell * f64::from(1_u32 << self.backoff) * self.term();
        if self.reign < dwell {
            return None;
        }
        let live = &self.candidates[self.live];
        let least = self.rule.lead * live.score + self.rule.lead_ballots * self.weight;
        let (at, best) = self
            .candidates
            .iter()
            .enumerate()
            .max_by(|(_, a), (_, b)| a.score.total_cmp(&b.score))?;
        let surplus = best.ahead - best.behind;
        let noise = (best.ahead + best.behind).sqrt();
        (at != self.live && best.score > least && surplus > self.rule.deviations * noise)
            .then_some(at)
    }

    fn elect(&mut self, to: usize) {
        let from = self.live;
        let undoes = self.before == Some(to) && self.reign < 8.0 * self.term();
        self.backoff = if undoes { (self.backoff + 1).min(self.rule.doublings) } else { 0 };
        let ratio = |at: usize| self.candidates[at].score / self.weight;
        if self.switches.len() == SWITCHES {
            self.switches.pop_front();
        }
        self.switches.push_back(PolicySwitch {
            request: self.counts.requests(),
            from: self.candidates[from].kind.as_str(),
            to: self.candidates[to].kind.as_str(),
            from_hit_ratio: ratio(from),
            to_hit_ratio: ratio(to),
        });
        self.switched += 1;
        // Two switches between two calls of `decide` are one to the shards.
        let first = self.pending.map_or(self.candidates[from].kind, |pending| pending.from);
        self.pending = Some(Switch { from: first, to: self.candidates[to].kind })
            .filter(|switch| switch.from != switch.to);
        self.before = Some(from);
        self.live = to;
        self.reign = 0.0;
        for candidate in &mut self.candidates {
            candidate.ahead = 0.0;
            candidate.behind = 0.0;
        }
        if let Phase::Voting { settled, rest, alarm, .. } = &mut self.phase {
            *settled = 0.0;
            *rest = 1.0;
            *alarm = self.rule.alarm;
        }
    }

    /// The longest rest, in lengths of a vote: with it half of what is earned is saved.
    fn rest_max(&self) -> f64 {
        (2.0 * self.rate / self.rule.earns - 1.0).max(0.0)
    }

    fn rest(&mut self, spent: f64, from: Counts, rest: f64, alarm: f64) {
        let voted = self.counts.since(from);
        let requests = (spent / self.rate).max(voted.requests() as f64);
        self.phase = Phase::Resting {
            until: self.counts.requests() + (requests * rest.min(self.rest_max())) as u64,
            usual: voted.hit_ratio(),
            window: self.counts,
            rest,
            alarm,
        };
    }

    fn watch(&mut self, until: u64, usual: f64, window: Counts, rest: f64, alarm: f64) {
        // A vote that could not be brought to its end is not begun.
        let needed =
            (self.rule.warm * self.mini_entries + 2.0 * self.term()).min(self.rule.savings / 2.0);
        if self.allowance < needed {
            return;
        }
        let seen = self.counts.since(window);
        let over = self.counts.requests() >= until;
        let mut alarmed = false;
        if seen.requests() as f64 >= (4.0 * self.mini_entries / self.rate).max(2_048.0) {
            let noise = (usual * (1.0 - usual) / seen.requests() as f64).sqrt();
            alarmed = (seen.hit_ratio() - usual).abs() > alarm + 4.0 * noise;
            if let Phase::Resting { window, .. } = &mut self.phase {
                *window = self.counts;
            }
        }
        if over || alarmed {
            let rest = (2.0 * rest).min(self.rest_max());
            let alarm = if alarmed { (2.0 * alarm).min(0.5) } else { alarm };
            let warming = self.rule.warm * self.mini_entries;
            self.phase = Phase::voting(warming, self.counts, rest, alarm);
            self.weight = 0.0;
            self.since_check = 0.0;
            for candidate in &mut self.candidates {
                (candidate.score, candidate.ahead, candidate.behind) = (0.0, 0.0, 0.0);
            }
        }
    }
}

impl Candidate {
    fn new(kind: Kind) -> Self {
        let mini = MiniCache::bounded(kind, 0, 2 * MINI_ENTRIES_MAX);
        Self { kind, mini, score: 0.0, ahead: 0.0, behind: 0.0, hits: 0 }
    }
}

impl Phase {
    fn voting(warming: f64, from: Counts, rest: f64, alarm: f64) -> Self {
        Self::Voting { warming, settled: 0.0, spent: 0.0, from, rest, alarm }
    }
}

/// What the candidates of the adaptive policy reached, and what came of it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PolicyReport {
    /// The policy that the cache runs now.
    pub live: &'static str,
    /// Whether requests are being sampled at this moment.
    pub voting: bool,
    /// The share of the keys that is sampled while voting.
    pub sampling_rate: f64,
    /// Sampled requests that were counted.
    pub sampled: u64,
    /// Sampled requests that were lost, because nobody had the time to count them.
    pub dropped: u64,
    /// Every policy that stands for election; empty where the policy is fixed.
    pub candidates: Vec<CandidateReport>,
    /// How often the policy was switched by the election.
    pub switched: u64,
    /// The last switches, the oldest first; sixteen at most.
    pub switches: Vec<PolicySwitch>,
}

impl PolicyReport {
    /// The report of a policy that nobody voted on.
    pub(crate) fn of_static(kind: Kind) -> Self {
        Self {
            live: kind.as_str(),
            voting: false,
            sampling_rate: 0.0,
            sampled: 0,
            dropped: 0,
            candidates: Vec::new(),
            switched: 0,
            switches: Vec::new(),
        }
    }
}

/// How one candidate did on the sample.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CandidateReport {
    /// The candidate's name.
    pub name: &'static str,
    /// Whether the cache runs it now.
    pub live: bool,
    /// Its share of hits among all counted samples; `None` before the first.
    pub hit_ratio: Option<f64>,
    /// The same with the past fading away, which is what decides.
    pub recent_hit_ratio: Option<f64>,
}

/// A change of policy that the election made.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PolicySwitch {
    /// Requests the cache had answered by then.
    pub request: u64,
    /// The policy that was left.
    pub from: &'static str,
    /// The policy that was taken.
    pub to: &'static str,
    /// The recent hit ratio of the policy that was left.
    pub from_hit_ratio: f64,
    /// The recent hit ratio of the policy that was taken.
    pub to_hit_ratio: f64,
}

impl fmt::Display for PolicySwitch {
    /// Says what was done and why, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} -> {} at request {}: {:.1} % of the recent sample would hit instead of {:.1} %",
            self.from,
            self.to,
            self.request,
            100.0 * self.to_hit_ratio,
            100.0 * self.from_hit_ratio,
        )
    }
}

#[cfg(test)]
mod tests;
