//! The state machine of an instance against a model of its rules, over random samples and times.
//!
//! The model knows nothing of tracks: it keeps the whole list of what was seen, and computes from it which
//! levels are reached. Of the messages it knows only what receivers can count on.

use std::time::Duration;

use proptest::prelude::*;

use super::event::{AlertState, EventKind, Severity};
use super::expression::{Condition, Query, Relation};
use super::instance::{Core, Judged, Message, Now, Verdict};
use super::rule::{Flap, Level, Notify, Rule, Signal};

const LEVELS: [Severity; 2] = [Severity::Warning, Severity::Critical];

/// What happens at one evaluation.
#[derive(Debug, Clone, Copy)]
struct Step {
    after_ms: i64,
    verdicts: [Verdict; 2],
    hushed: bool,
    acknowledged: bool,
    /// The process dies and comes back after so long.
    restart_ms: Option<i64>,
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        4 => Just(Verdict::Raised),
        1 => Just(Verdict::Between),
        4 => Just(Verdict::Cleared),
        1 => Just(Verdict::Unknown),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    (
        1_i64..60_000,
        [verdict(), verdict()],
        proptest::bool::weighted(0.15),
        proptest::bool::weighted(0.03),
        proptest::option::weighted(0.05, 0_i64..600_000),
    )
        .prop_map(|(after_ms, verdicts, hushed, acknowledged, restart_ms)| Step {
            after_ms,
            verdicts,
            hushed,
            acknowledged,
            restart_ms,
        })
}

fn seconds(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_secs)
}

prop_compose! {
    fn rules()(
        holds in [seconds(0..120), seconds(0..120)],
        keep in seconds(0..120),
        cooldown in seconds(0..300),
        flap in proptest::option::of((2_usize..6, seconds(60..600), seconds(30..300))),
        up in seconds(0..60),
        down in seconds(0..60),
        repeat in proptest::option::of(seconds(60..300)),
    ) -> Rule {
        let query = Query::parse("m", Duration::from_secs(60)).expect("a query");
        let mut rule = Rule::new("r", Signal::Metric(query));
        for (severity, hold) in LEVELS.into_iter().zip(holds) {
            let raise = Some(Condition::number(Relation::Greater, 1.0));
            rule = rule.level(Level { severity, raise, clear: None, hold });
        }
        rule.keep_firing_for = keep;
        rule.cooldown = cooldown;
        rule.flap = flap.map(|(changes, within, hold)| Flap { changes, within, hold });
        rule.notify = Notify { up, down, ..Notify::default() };
        rule.repeat = [repeat; 4];
        rule
    }
}

/// Everything that was seen of one level: when, and what.
#[derive(Debug, Default)]
struct Seen(Vec<(i64, Verdict)>);

impl Seen {
    /// Computes from the whole past whether the level is reached. `pulled` are the moments at which a
    /// higher level was reached, which takes this one along.
    fn reached(&self, hold: i64, keep: i64, pulled: &[i64]) -> bool {
        let (mut since, mut reached, mut clear) = (None, false, None);
        for &(at, verdict) in &self.0 {
            match verdict {
                Verdict::Unknown => {}
                Verdict::Raised => {
                    clear = None;
                    let since = *since.get_or_insert(at);
                    reached = reached || at - since >= hold || pulled.contains(&at);
                }
                Verdict::Between => {
                    clear = None;
                    since = since.filter(|_| reached);
                }
                Verdict::Cleared => {
                    let from = *clear.get_or_insert(at);
                    if !reached || at - from >= keep {
                        (since, reached, clear) = (None, false, None);
                    }
                }
            }
        }
        reached
    }
}

/// What receivers know, from the messages alone.
#[derive(Debug, Default)]
struct Receiver {
    knows: Option<Severity>,
    last: Option<(i64, Severity)>,
    number: u64,
}

impl Receiver {
    fn hear(&mut self, at: i64, message: Message, rule: &Rule, hushed: bool) {
        let Message { kind, severity, number, .. } = message;
        assert_eq!(number, self.number + 1, "numbers have no gap, so keys are unique");
        let cooling = self.last.is_some_and(|(last, level)| {
            severity <= level && at - last < rule.cooldown.as_millis() as i64
        });
        match kind {
            EventKind::Fire => assert!(self.knows.is_none() && !cooling),
            EventKind::Escalate => assert!(self.knows < Some(severity) && self.knows.is_some()),
            EventKind::DeEscalate => assert!(self.knows > Some(severity) && !cooling),
            EventKind::Resolve => assert_eq!(self.knows, Some(severity)),
            EventKind::Repeat => assert_eq!(self.knows, Some(severity)),
            EventKind::Flapping => {}
        }
        assert!(!hushed || kind == EventKind::Resolve, "hushed, and yet {kind:?}");
        self.knows = (kind != EventKind::Resolve).then_some(severity);
        (self.last, self.number) = (Some((at, severity)), number);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn an_instance_does_what_the_model_says(rule in rules(), steps in proptest::collection::vec(step(), 1..80)) {
        let mut now = Now { mono: 1_000_000, unix_ms: 1_700_000_000_000 };
        let mut core = Core::new(now);
        let mut seen = [Seen::default(), Seen::default()];
        let mut pulled = Vec::new();
        let mut receiver = Receiver::default();
        let (mut fires, mut ends) = (0, 0);
        let mut acknowledged = None;
        // The model's time does not go on while the process is away; the receivers' does.
        let mut away = 0;
        for step in steps {
            now.mono += step.after_ms;
            now.unix_ms += step.after_ms;
            let model_at = now.unix_ms - away;
            let hold = |at: usize| rule.levels[at].hold.as_millis() as i64;
            let keep = rule.keep_firing_for.as_millis() as i64;
            let judged: Vec<Judged> = LEVELS
                .into_iter()
                .zip(step.verdicts)
                .enumerate()
                .map(|(at, (severity, verdict))| Judged { severity, verdict, hold: rule.levels[at].hold })
                .collect();
            let before = core.level();
            let ended = core.observe(now, &judged, &rule);
            for (seen, verdict) in seen.iter_mut().zip(step.verdicts) {
                seen.0.push((model_at, verdict));
            }
            let critical = seen[1].reached(hold(1), keep, &[]);
            if critical && step.verdicts[1] == Verdict::Raised {
                let mut past = Seen(seen[1].0.clone());
                past.0.pop();
                if !past.reached(hold(1), keep, &[]) {
                    pulled.push(model_at);
                }
            }
            let warning = seen[0].reached(hold(0), keep, &pulled);
            let raw = match (critical, warning) {
                (true, _) => Some(Severity::Critical),
                (false, true) => Some(Severity::Warning),
                (false, false) => None,
            };
            match core.is_flapping() {
                true => prop_assert!(core.level() >= raw && core.level().is_some()),
                false => prop_assert_eq!(core.level(), raw),
            }
            prop_assert!(!core.is_flapping() || rule.flap.is_some());
            prop_assert_eq!(ended.is_some(), before.is_some() && core.level().is_none());
            let firing = matches!(core.state(), AlertState::Firing | AlertState::Recovering);
            prop_assert_eq!(firing, core.level().is_some());
            fires += i32::from(before.is_none() && core.level().is_some());
            ends += i32::from(ended.is_some());
            if let Some(ended) = ended {
                prop_assert!(ended.active_ms >= 0 && Some(ended.peak) >= before);
                acknowledged = None;
            }
            if step.acknowledged && core.acknowledge("ada", "", now.unix_ms) {
                acknowledged = core.level();
            }
            if let Some(message) = core.message(now, &rule, step.hushed) {
                receiver.hear(now.unix_ms, message, &rule, step.hushed);
                let passes = message.kind == EventKind::Resolve || Some(message.severity) > acknowledged;
                prop_assert!(passes, "acknowledged at {:?}, and yet {:?}", acknowledged, message);
                prop_assert!(core.message(now, &rule, step.hushed).is_none(), "said twice");
            }
            if let Some(downtime) = step.restart_ms {
                let labels = crate::Labels::default();
                let fingerprint = super::event::Fingerprint(0);
                let record = core.record(now, &rule.id, fingerprint, fingerprint, &labels, None);
                let json = serde_json::to_string(&record).expect("json");
                let record = serde_json::from_str(&json).expect("a record");
                now.unix_ms += downtime;
                now.mono = 0;
                away += downtime;
                core = Core::restore(&record, now, downtime, &rule);
            }
        }
        prop_assert_eq!(fires - ends, i32::from(core.level().is_some()));
        // In the end it is quiet for long, and receivers know that all is well.
        for _ in 0..200 {
            now.mono += 60_000;
            now.unix_ms += 60_000;
            let cleared = |severity| Judged { severity, verdict: Verdict::Cleared, hold: Duration::ZERO };
            core.observe(now, &LEVELS.map(cleared), &rule);
            if let Some(message) = core.message(now, &rule, false) {
                receiver.hear(now.unix_ms, message, &rule, false);
            }
        }
        prop_assert_eq!(core.level(), None);
        prop_assert_eq!(receiver.knows, None);
        prop_assert!(core.is_blank(now.mono, &rule), "{:?}", core);
    }
}
