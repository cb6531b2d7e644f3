//! Each clause of the semantics as a sentence: series in promtool's notation, and what is said when.
//!
//! A [`Play`] evaluates every ten seconds, one sample a step, and keeps the records as a journal would, so
//! that a restart can happen at any time.

use std::collections::BTreeMap;

use super::*;
use crate::alert::made_up::{MadeUp, expand, source_of};
use crate::alert::{Silence, SilenceError};
use crate::selector::Selector;

const STEP_MS: i64 = 10_000;

struct Play {
    engine: Engine,
    source: MadeUp,
    now: Moment,
    /// What was said: time since the beginning, kind, rule with labels, severity.
    said: Vec<String>,
    ended: Vec<EndedAlert>,
    records: BTreeMap<Fingerprint, InstanceRecord>,
}

impl Play {
    #[track_caller]
    fn new(rules: &str, series: &[(&str, &str)]) -> Self {
        let samples =
            |(name, text): &(&str, &str)| ((*name).to_owned(), expand(text).expect("samples"));
        let series = series.iter().map(samples).collect();
        let set = RuleSet::parse(rules, "alerts.toml").unwrap_or_else(|errors| panic!("{errors}"));
        Self {
            engine: Engine::new(set, EngineOptions::default()),
            source: source_of(&series, STEP_MS).expect("series"),
            now: Moment { monotonic: Duration::from_secs(1_000), unix_ms: -STEP_MS },
            said: Vec::new(),
            ended: Vec::new(),
            records: BTreeMap::new(),
        }
    }

    fn keep(&mut self, outcome: Outcome) {
        for record in outcome.changed {
            // What a journal reads is what it wrote.
            let json = serde_json::to_string(&record).expect("json");
            let record: InstanceRecord = serde_json::from_str(&json).expect("a record");
            self.records.insert(record.fingerprint, record);
        }
        for fingerprint in outcome.removed {
            assert!(self.records.remove(&fingerprint).is_some(), "no record of {fingerprint}");
        }
        self.ended.extend(outcome.ended);
        let second = self.now.unix_ms / 1_000;
        self.said.extend(outcome.events.into_iter().map(|event| {
            let AlertEvent { kind, rule, labels, severity, .. } = &event;
            format!("{second} {} {rule}{labels} {severity}", kind.word())
        }));
    }

    /// Evaluates up to and with a second of the wall clock.
    fn until(&mut self, second: i64) -> &mut Self {
        while self.now.unix_ms + STEP_MS <= second * 1_000 {
            self.now = self.now.after(Duration::from_millis(STEP_MS as u64));
            let outcome = self.engine.evaluate(self.now, &self.source);
            self.keep(outcome);
        }
        self
    }

    /// Ends the process without a word, and starts another after a while.
    fn restart(&mut self, downtime: Duration, set: Option<RuleSet>) {
        let silences = self.engine.silences();
        let set = set.unwrap_or_else(|| RuleSet::clone(&self.engine.set));
        self.engine = Engine::new(set, EngineOptions::default());
        let unix_ms = self.now.after(downtime).unix_ms;
        // A new process counts from a start of its own.
        self.now = Moment { monotonic: Duration::ZERO, unix_ms };
        let records = self.records.values().cloned().collect();
        let outcome = self.engine.restore(records, self.now, downtime);
        self.keep(outcome);
        self.engine.restore_silences(silences, self.now);
    }

    fn silence(&mut self, matchers: &str, seconds: i64) -> Result<Silence, SilenceError> {
        let silence = Silence {
            id: 0,
            matchers: Selector::parse_matchers(matchers).expect("matchers"),
            author: "ada".to_owned(),
            comment: String::new(),
            starts_at_ms: self.now.unix_ms,
            ends_at_ms: self.now.unix_ms + seconds * 1_000,
        };
        self.engine.silence(silence, self.now)
    }

    fn states(&self) -> Vec<(String, AlertState)> {
        let views = self.engine.alerts(self.now);
        views.iter().map(|view| (format!("{}{}", view.rule, view.labels), view.state)).collect()
    }

    #[track_caller]
    fn said(&mut self, expected: &[&str]) -> &mut Self {
        assert_eq!(std::mem::take(&mut self.said), expected);
        self
    }
}

/// One rule over the last value of `m`, with more lines of TOML.
fn rule(lines: &str) -> String {
    format!("[[rule]]\nid = 'r'\nmetric = 'm'\nwindow = '10s'\nflap = false\n{lines}")
}

/// Plays samples of `m` to their end, and compares what was said.
#[track_caller]
fn check(lines: &str, samples: &str, expected: &[&str]) {
    let mut play = Play::new(&rule(lines), &[("m", samples)]);
    let count = expand(samples).expect("samples").len() as i64;
    play.until((count - 1) * 10).said(expected);
}

const WARNING: &str = "level.warning = { raise = '> 10', clear = '< 5', for = '30s' }\n";

#[test]
fn there_is_one_instance_for_each_combination_of_the_labels_of_by() {
    let rules = rule("by = ['cache']\nlevel.warning = '> 10'");
    let series = [
        ("m{cache='a',tier='1'}", "20x3"),
        ("m{cache='a',tier='2'}", "4x3"),
        ("m{cache='b'}", "11x3"),
    ];
    let series = series.map(|(name, samples)| (name.replace('\'', "\""), samples));
    let series: Vec<_> = series.iter().map(|(name, samples)| (name.as_str(), *samples)).collect();
    let mut play = Play::new(&rules, &series);
    // The mean of the two tiers is 12.
    play.until(0).said(&["0 fire r{cache=\"a\"} warning", "0 fire r{cache=\"b\"} warning"]);
    let mut play = Play::new(&rule("level.warning = '> 10'\nagg = 'max'"), &series);
    play.until(30).said(&["0 fire r warning"]);
}

#[test]
fn half_of_the_samples_of_a_window_must_be_there() {
    let rules = rule("level.warning = '> 10'").replace("'10s'", "'1m'");
    let mut play = Play::new(&rules, &[("m", "20x10")]);
    play.until(100).said(&["20 fire r warning"]);
}

#[test]
fn it_is_pending_until_the_condition_was_met_for_long_enough() {
    let mut play = Play::new(&rule(WARNING), &[("m", "0 20x1 0 20x9")]);
    play.until(20);
    assert_eq!(play.states(), [("r".to_owned(), AlertState::Pending)]);
    play.until(30);
    assert_eq!(play.states(), []);
    play.until(120).said(&["70 fire r warning"]);
    assert_eq!(play.states(), [("r".to_owned(), AlertState::Firing)]);
}

#[test]
fn it_fires_at_the_highest_level_and_gets_worse_after_that_levels_for() {
    let levels = "level.warning = { raise = '> 10', for = '1m' }\n\
                  level.critical = { raise = '> 20', for = '20s' }\n";
    // Who is critical is also a warning, which goes on when the critical level ends.
    let levels = format!("{levels}cooldown = '0s'\n");
    check(
        &levels,
        "0 30x2 15x1 0x2",
        &["30 fire r critical", "40 de_escalate r warning", "60 resolve r warning"],
    );
    check(&levels, "15x7 30x3", &["60 fire r warning", "100 escalate r critical"]);
}

#[test]
fn a_level_is_left_by_its_clear_condition_only() {
    check(WARNING, "20x4 7x4 4 20x2 7 4", &["30 fire r warning", "100 resolve r warning"]);
    let without_clear = "level.warning = { raise = '> 10', for = '30s' }";
    check(without_clear, "20x4 7", &["30 fire r warning", "50 resolve r warning"]);
}

#[test]
fn it_recovers_for_a_while_and_goes_back_without_a_message() {
    let rules = rule(&format!("{WARNING}keep_firing_for = '30s'"));
    let mut play = Play::new(&rules, &[("m", "20x3 0x1 20 7 0x5")]);
    play.until(50);
    assert_eq!(play.states(), [("r".to_owned(), AlertState::Recovering)]);
    play.until(70);
    assert_eq!(play.states(), [("r".to_owned(), AlertState::Firing)]);
    play.until(130).said(&["30 fire r warning", "110 resolve r warning"]);
    assert_eq!(play.ended.len(), 1);
    assert_eq!((play.ended[0].starts_at_ms, play.ended[0].ends_at_ms), (30_000, 110_000));
}

#[test]
fn a_cooldown_holds_back_the_same_and_lower_levels_only() {
    let levels = "level.warning = '> 10'\nlevel.error = '> 20'\ncooldown = '1m'\n";
    check(
        levels,
        "15 0 15x1 0x9 15",
        &[
            "0 fire r warning",
            "10 resolve r warning",
            // Back at 20 and gone at 40 without a word.
            "140 fire r warning",
        ],
    );
    check(levels, "15 0 15x9", &["0 fire r warning", "10 resolve r warning", "70 fire r warning"]);
    check(
        levels,
        "15 0 25 15x9",
        &[
            "0 fire r warning",
            "10 resolve r warning",
            "20 fire r error",
            "80 de_escalate r warning",
        ],
    );
    check(levels, "15 25 0", &["0 fire r warning", "10 escalate r error", "20 resolve r error"]);
}

#[test]
fn a_repeat_comes_by_severity_and_is_off_by_default() {
    let levels = "level.warning = '> 10'\nlevel.error = '> 20'\n";
    let repeat = format!("{levels}repeat.warning = '1m'\n");
    check(levels, "15x20", &["0 fire r warning"]);
    check(
        &repeat,
        "15x12 25x20",
        &[
            "0 fire r warning",
            "60 repeat r warning",
            "120 repeat r warning",
            "130 escalate r error",
        ],
    );
}

#[test]
fn who_flaps_is_held_firing_until_it_was_quiet() {
    let flap = "flap = { changes = 4, within = '5m', hold = '2m' }\ncooldown = '0s'\nlevel.warning = '> 10'\n";
    let rules = rule(flap).replace("flap = false\n", "");
    let mut play = Play::new(&rules, &[("m", "15 0 15 0 15 0 15 0x30")]);
    play.until(60).said(&[
        "0 fire r warning",
        "10 resolve r warning",
        "20 fire r warning",
        "30 flapping r warning",
    ]);
    let view = &play.engine.alerts(play.now)[0];
    assert!(view.flapping && view.state == AlertState::Firing);
    // The last change was at 70.
    play.until(180).said(&[]);
    play.until(300).said(&["190 resolve r warning"]);
    play.until(370);
    assert!(play.records.is_empty(), "{:?}", play.records);
}

#[test]
fn going_up_and_down_several_levels_is_no_flapping() {
    let flap = "flap = { changes = 4, within = '30m', hold = '2m' }\ncooldown = '0s'\n\
                level.warning = '> 10'\nlevel.error = '> 20'\nlevel.critical = '> 30'\n";
    let rules = rule(flap).replace("flap = false\n", "");
    let mut play = Play::new(&rules, &[("m", "0 15 25 35 25 15 0x9")]);
    play.until(100);
    assert_eq!(play.said.len(), 6, "{:?}", play.said);
    assert_eq!(play.said[5], "60 resolve r warning");
    // Between two levels it is.
    let mut play = Play::new(&rules, &[("m", "15 25 15 25 15x3")]);
    play.until(60);
    assert_eq!(play.said[4], "40 flapping r error", "{:?}", play.said);
}

#[test]
fn a_flapping_alert_still_gets_worse() {
    let flap = "flap = { changes = 3, within = '5m', hold = '2m' }\nlevel.warning = '> 10'\nlevel.critical = '> 20'\n";
    let rules = rule(flap).replace("flap = false\n", "");
    let mut play = Play::new(&rules, &[("m", "15 0 15 0 25 0x20")]);
    play.until(250).said(&[
        "0 fire r warning",
        "10 resolve r warning",
        "20 flapping r warning",
        "40 escalate r critical",
        "170 resolve r critical",
    ]);
}

#[test]
fn messages_wait_and_those_that_are_no_longer_true_are_not_sent() {
    let notify = "level.warning = '> 10'\nnotify = { up = '20s', down = '1m' }\ncooldown = '0s'\n";
    check(notify, "15x1 0x9", &[]);
    // Down at 40 and up again at 60: nobody was told that it ended.
    check(notify, "15x3 0x1 15x3 0x8", &["20 fire r warning", "160 resolve r warning"]);
    let growing = "level.warning = '> 10'\nnotify = { up = '20s', down = '20s', multiplier = 2, max = '30s' }\n";
    // The second change comes while the first waits, and waits for the longest delay of 30 s.
    check(growing, "15 0 15x9", &["50 fire r warning"]);
}

#[test]
fn a_silence_keeps_messages_back_and_never_the_state() {
    let mut play = Play::new(&rule("level.warning = '> 10'"), &[("m", "0x2 15x20 0x9")]);
    play.until(20);
    play.silence("alertname=\"r\",severity=~\"info|warning\"", 100).expect("a silence");
    play.until(110).said(&[]);
    assert_eq!(play.states(), [("r".to_owned(), AlertState::Firing)]);
    assert_eq!(play.engine.alerts(play.now)[0].silenced_by, [1]);
    play.until(130).said(&["120 fire r warning"]);
    play.silence("alertname=\"other\"", 1_000).expect("a silence");
    // Who was told of a fire is told of its end, silence or not.
    play.silence("alertname=\"r\"", 1_000).expect("a silence");
    play.until(300).said(&["240 resolve r warning"]);
    assert_eq!(play.engine.unsilence(3).map(|silence| silence.id), Some(3));
    assert_eq!(play.engine.silences().len(), 1);
}

#[test]
fn silences_are_checked_and_bounded() {
    let mut play = Play::new(&rule("level.warning = '> 10'"), &[]);
    play.until(0);
    assert_eq!(play.silence("", 5), Err(SilenceError::NoMatchers));
    assert_eq!(play.silence("a=\"b\"", 0), Err(SilenceError::Over));
    for _ in 0..1_000 {
        play.silence("a=\"b\"", 15).expect("a silence");
    }
    assert_eq!(play.silence("a=\"b\"", 15), Err(SilenceError::TooMany(1_000)));
    play.until(20);
    assert!(play.engine.silences().is_empty(), "they are over");
    assert_eq!(play.silence("a=\"b\"", 15).expect("a silence").id, 1_001);
}

#[test]
fn inhibition_keeps_back_what_has_equal_labels() {
    let rules = "[[rule]]\nid = 'db'\nmetric = 'down'\nwindow = '10s'\nby = ['site']\nlevel.critical = '> 0'\n\
                 [[rule]]\nid = 'slow'\nmetric = 'slow'\nwindow = '10s'\nby = ['site']\nlevel.warning = '> 0'\n";
    let inhibit = "[[inhibit]]\nsource = 'severity=\"critical\"'\ntarget = 'severity=~\"info|warning\"'\nequal = ['site']\n";
    let named = rules.replace("id = 'slow'", "id = 'slow'\ninhibited_by = ['db']");
    let series =
        [("down{site=\"a\"}", "1x3 0x9"), ("slow{site=\"a\"}", "1x9"), ("slow{site=\"b\"}", "1x9")];
    for rules in [format!("{rules}{inhibit}"), named] {
        let mut play = Play::new(&rules, &series);
        play.until(30).said(&["0 fire db{site=\"a\"} critical", "0 fire slow{site=\"b\"} warning"]);
        let views = play.engine.alerts(play.now);
        assert!(views.iter().any(|view| view.inhibited && view.labels.get("site") == Some("a")));
        play.until(40)
            .said(&["40 resolve db{site=\"a\"} critical", "40 fire slow{site=\"a\"} warning"]);
    }
}

#[test]
fn alerts_that_are_source_and_target_do_not_inhibit_each_other() {
    let rules = format!(
        "{}[[inhibit]]\nsource = 'severity=\"warning\"'\ntarget = 'severity=\"warning\"'\n",
        rule("by = ['i']\nlevel.warning = '> 10'\n")
    );
    let mut play = Play::new(&rules, &[("m{i=\"a\"}", "15"), ("m{i=\"b\"}", "15")]);
    play.until(0).said(&["0 fire r{i=\"a\"} warning", "0 fire r{i=\"b\"} warning"]);
}

#[test]
fn an_acknowledgement_holds_until_it_gets_worse_or_ends() {
    let rules = rule(
        "level.warning = '> 10'\nlevel.error = '> 20'\nrepeat.warning = '1m'\nrepeat.error = '1m'\ncooldown = '0s'\n",
    );
    let mut play = Play::new(&rules, &[("m", "15x12 25x9 0 15")]);
    play.until(10).said(&["0 fire r warning"]);
    let fingerprint = play.engine.alerts(play.now)[0].fingerprint;
    let now = play.now;
    assert_eq!(
        play.engine.acknowledge(Fingerprint(7), "ada", "", now),
        Err(AcknowledgeError::NoSuchAlert)
    );
    assert_eq!(play.engine.acknowledge(fingerprint, "", "", now), Err(AcknowledgeError::Words));
    let outcome = play.engine.acknowledge(fingerprint, "ada", "I look", now).expect("it fires");
    play.keep(outcome);
    play.until(120).said(&[]);
    play.restart(Duration::ZERO, None);
    assert_eq!(
        play.engine.alerts(play.now)[0].acknowledged.as_ref().map(|ack| &*ack.by),
        Some("ada")
    );
    play.until(240).said(&[
        "130 escalate r error",
        "190 repeat r error",
        "230 resolve r error",
        "240 fire r warning",
    ]);
    assert_eq!(play.engine.alerts(play.now)[0].acknowledged, None);
    assert_eq!(
        play.engine.unacknowledge(fingerprint, play.now).map(|_| ()),
        Err(AcknowledgeError::NoSuchAlert)
    );
}

#[test]
fn without_samples_it_stays_as_it_is_and_says_so_after_two_windows() {
    let mut play = Play::new(&rule(WARNING), &[("m", "20x4 _x9 0")]);
    play.until(60);
    assert!(!play.engine.alerts(play.now)[0].no_data);
    play.until(80);
    assert!(play.engine.alerts(play.now)[0].no_data);
    play.until(150).said(&["30 fire r warning", "140 resolve r warning"]);
    // What was pending does not fire for want of samples, and begins anew.
    check(WARNING, "20x1 _x9 20x1 0", &[]);
    check(WARNING, "20x1 _ 20", &["30 fire r warning"]);
}

#[test]
fn missing_samples_can_mean_that_all_is_well_or_that_nothing_is() {
    check(
        &format!("{WARNING}on_missing = 'ok'"),
        "20x4 _x9",
        &[
            "30 fire r warning",
            // Missing from 50 on, and without data after two windows.
            "70 resolve r warning",
        ],
    );
    let mut play =
        Play::new(&rule(&format!("{WARNING}on_missing = 'alert'")), &[("m", "0x4 _x9 0x2")]);
    play.until(160).said(&["100 fire r warning", "140 resolve r warning"]);
    let mut play = Play::new(&rule(&format!("{WARNING}on_missing = 'alert'\nby = ['a']")), &[]);
    play.until(60).said(&["50 fire r warning"]);
    // The series comes, and the alert about its lack ends.
    let key = crate::series::SeriesKey { name: "m".into(), labels: Labels::new([("a", "x")]) };
    play.source.add(key, crate::Kind::Gauge, (6..20).map(|at| (at * STEP_MS, 0.0)));
    play.until(90).said(&["70 resolve r warning"]);
    assert_eq!(play.ended[0].reason, EndReason::SeriesGone);
}

#[test]
fn an_alert_ends_some_time_after_its_series_are_gone() {
    let mut play = Play::new(&rule(&format!("{WARNING}by = ['a']")), &[("m{a=\"x\"}", "20x4")]);
    play.until(40);
    let key = crate::series::SeriesKey { name: "m".into(), labels: Labels::new([("a", "x")]) };
    play.source.remove(&key);
    play.until(920).said(&["30 fire r{a=\"x\"} warning"]);
    play.until(1_500).said(&["950 resolve r{a=\"x\"} warning"]);
    assert_eq!(play.engine.instances("r", play.now).len(), 0);
    assert!(play.records.is_empty());
    // Where missing samples are what the alert is about, it goes on.
    let lines = format!("{WARNING}by = ['a']\non_missing = 'alert'");
    let mut play = Play::new(&rule(&lines), &[("m{a=\"x\"}", "20x4")]);
    play.until(40).source.remove(&key);
    play.until(9_000).said(&["30 fire r{a=\"x\"} warning"]);
}

#[test]
fn a_gate_without_traffic_keeps_a_rule_from_counting() {
    let lines = "by = ['c']\nlevel.warning = '> 10'\nonly_if = 'last(traffic[10s]) > 5'";
    let series = [
        ("m{c=\"a\"}", "20x9"),
        ("m{c=\"b\"}", "20x9"),
        ("traffic{c=\"a\"}", "0x2 9x2 0x9"),
        ("traffic{c=\"b\"}", "0x9"),
    ];
    let mut play = Play::new(&rule(lines), &series);
    play.until(80).said(&["30 fire r{c=\"a\"} warning", "60 resolve r{c=\"a\"} warning"]);
}

#[test]
fn a_ratio_divides_and_needs_enough_to_divide_by() {
    let rules = "[[rule]]\nid = 'r'\nflap = false\nlevel.error = { raise = '> 5%', clear = '< 3%' }\n\
                 ratio = { num = 'delta(n_total{s=\"5\"}[30s])', den = 'delta(n_total[30s])', min_den = 10 }\n";
    let mut play = Play::new(
        rules,
        &[("n_total{s=\"2\"}", "0+100x9 900x9"), ("n_total{s=\"5\"}", "0x4 10+10x9")],
    );
    // Until there are two samples there is no growth.
    play.until(180).said(&["60 fire r error", "160 resolve r error"]);
    let mut play = Play::new(rules, &[("n_total{s=\"2\"}", "0+100x9")]);
    play.until(90).said(&[]);
    let view = &play.engine.instances("r", play.now)[0];
    assert_eq!((view.value, view.no_data), (Some(0.0), false), "no failures are no failures");
}

#[test]
fn a_burn_rate_needs_the_long_and_the_short_window() {
    let rules = "[[rule]]\nid = 'r'\nflap = false\nlevel.critical = {}\n\
                 burn = { slo = 0.99, bad = 'bad_total', total = 'all_total', pairs = [['10m', '1m', 10]] }\n";
    // From 600 on a fifth of the requests fails: twenty times the budget.
    let all = "0+100x180";
    let bad = "0x60 20+20x59 1200x60";
    let mut play = Play::new(rules, &[("all_total", all), ("bad_total", bad)]);
    play.until(1_800);
    let said = std::mem::take(&mut play.said);
    let seconds: Vec<i64> = said
        .iter()
        .map(|said| said.split(' ').next().and_then(|at| at.parse().ok()).unwrap_or(0))
        .collect();
    // Half of the long window must have burnt, and the short one ends it soon.
    assert!(said.len() == 2 && (880..=920).contains(&seconds[0]), "{said:?}");
    assert!((1_200..=1_260).contains(&seconds[1]), "{said:?}");
}

#[test]
fn a_threshold_can_be_another_metric_with_the_same_labels() {
    let lines =
        "by = ['i']\nlevel.warning = '> limit * 0.9'\nsummary = '{{value}} of {{threshold}}'";
    let series = [
        ("m{i=\"a\"}", "80x3 95x3"),
        ("m{i=\"b\"}", "95x9"),
        ("limit{i=\"a\"}", "100x9"),
        ("limit{i=\"b\"}", "200x9"),
    ];
    let mut play = Play::new(&rule(lines), &series);
    play.until(50).said(&["40 fire r{i=\"a\"} warning"]);
    assert_eq!(play.engine.alerts(play.now)[0].summary, "95 of 90");
    // Without the limit there is nothing to compare with, so nothing changes.
    let mut play = Play::new(&rule(lines), &[("m{i=\"a\"}", "80x3 95x9")]);
    play.until(90).said(&[]);
}

#[test]
fn a_forecast_fires_before_the_limit_is_reached() {
    let rules = "[[rule]]\nid = 'r'\nevery = '10s'\nflap = false\nlevel.warning = {}\nsummary = 'in {{value|duration}}'\n\
                 forecast = { metric = 'm', window = '10m', limit = 'limit * 0.5', within = '10m' }\n";
    let mut play = Play::new(rules, &[("m", "100x59 100+1x120"), ("limit", "500x180")]);
    play.until(600).said(&[]);
    play.until(1_800);
    let said = std::mem::take(&mut play.said);
    assert_eq!(said.len(), 1, "{said:?}");
    let second: i64 = said[0].split(' ').next().and_then(|at| at.parse().ok()).expect("a time");
    // It grows by one a step and reaches 250 at 2,100; ten minutes before is 1,500.
    assert!((1_300..=1_550).contains(&second), "{said:?}");
}

#[test]
fn an_anomaly_is_only_an_information_while_it_learns() {
    let rules = "[[rule]]\nid = 'r'\nflap = false\nlevel.error = {}\n\
                 anomaly = { metric = 'm', step = '10s', of = '60% of 2m', baseline = ['1h'] }\n";
    let mut play = Play::new(rules, &[("m", "10x400 30x20 10x40")]);
    play.until(4_600);
    let said = std::mem::take(&mut play.said);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("fire r error") && said[1].contains("resolve r error"), "{said:?}");
    let weekly = rules.replace("'1h'", "'1h', 'week'");
    let mut play = Play::new(&weekly, &[("m", "10x400 30x20 10x40")]);
    play.until(4_600);
    assert!(play.said[0].contains("fire r info"), "{:?}", play.said);
    assert!(play.engine.instances("r", play.now)[0].learning);
}

#[test]
fn a_restart_neither_loses_nor_repeats_a_message() {
    let lines = format!("{WARNING}keep_firing_for = '30s'");
    for at in (0..150).step_by(10) {
        let mut play = Play::new(&rule(&lines), &[("m", "0 20x6 0x20")]);
        play.until(at).restart(Duration::ZERO, None);
        play.until(200).said(&["40 fire r warning", "110 resolve r warning"]);
        assert_eq!(play.ended.len(), 1, "restarted at {at}");
    }
}

#[test]
fn downtime_does_not_count_into_for() {
    // Pending since 10; the process dies at 20 and comes back at 60.
    let mut play = Play::new(&rule(WARNING), &[("m", "0 20x20")]);
    play.until(20).restart(Duration::from_secs(40), None);
    play.until(90).said(&["80 fire r warning"]);
    // Recovering since 50 of 30 s; the process is away from 60 to 200.
    let lines = format!("{WARNING}keep_firing_for = '30s'");
    let mut play = Play::new(&rule(&lines), &[("m", "20x4 0x40")]);
    play.until(60).restart(Duration::from_secs(140), None);
    play.until(300).said(&["30 fire r warning", "220 resolve r warning"]);
}

#[test]
fn what_cannot_be_gone_on_with_is_resolved() {
    let other = RuleSet::parse(&rule("level.warning = '> 11'"), "alerts.toml").expect("rules");
    let none = RuleSet::default();
    let cases = [
        (Duration::ZERO, Some(other)),
        (Duration::ZERO, Some(none)),
        (Duration::from_secs(3_600), None),
    ];
    for (downtime, set) in cases {
        let mut play = Play::new(&rule(WARNING), &[("m", "20x9")]);
        play.until(30).said(&["30 fire r warning"]);
        play.restart(downtime, set);
        let second = play.now.unix_ms / 1_000;
        play.said(&[&format!("{second} resolve r warning")]);
        assert!(play.records.is_empty() && play.ended.len() == 1);
        let long = downtime > Duration::ZERO;
        let reason = if long { EndReason::Downtime } else { EndReason::RuleChanged };
        assert_eq!(play.ended[0].reason, reason);
    }
    // Nobody knows of what was only pending.
    let mut play = Play::new(&rule(WARNING), &[("m", "20x9")]);
    play.until(20).restart(Duration::from_secs(7_200), None);
    play.said(&[]);
}

#[test]
fn a_cooldown_outlives_a_restart() {
    let mut play =
        Play::new(&rule("level.warning = '> 10'\ncooldown = '2m'"), &[("m", "15 0x3 15x20")]);
    play.until(30).restart(Duration::ZERO, None);
    play.until(200).said(&["0 fire r warning", "10 resolve r warning", "130 fire r warning"]);
}

#[test]
fn a_step_of_the_wall_clock_fires_and_ends_nothing() {
    for step_ms in [-3_600_000, -30_000, 30_000, 3_600_000] {
        for on_missing in ["keep", "ok", "alert"] {
            let lines = format!(
                "{WARNING}on_missing = '{on_missing}'\nby = ['i']\nkeep_firing_for = '20s'"
            );
            let rules = rule(&lines).replace("'10s'", "'30s'");
            let mut play =
                Play::new(&rules, &[("m{i=\"bad\"}", "20x10"), ("m{i=\"good\"}", "0x10")]);
            play.until(100).said(&["40 fire r{i=\"bad\"} warning"]);
            // The history writes on behind its last sample, or at the new time if that is later.
            let gap = step_ms.max(0);
            for (labels, value) in [("bad", 20.0), ("good", 0.0)] {
                let samples = (11..60).map(|at| (at * STEP_MS + gap, value));
                play.source.gauge("m", &[("i", labels)], samples);
            }
            play.now.unix_ms += step_ms;
            let end = play.now.unix_ms / 1_000 + 400;
            play.until(end).said(&[]);
            assert_eq!(play.states().len(), 1, "after {step_ms} ms with {on_missing}");
            let active = play.engine.alerts(play.now)[0].active_ms;
            assert_eq!(active, 460_000, "durations are those of the monotonic clock");
        }
    }
}

#[test]
fn a_silence_is_not_prolonged_by_a_step_of_the_wall_clock() {
    let mut play = Play::new(&rule("level.warning = '> 10'"), &[("m", "15x60")]);
    play.until(0);
    play.said.clear();
    play.silence("alertname=\"r\"", 100).expect("a silence");
    play.now.unix_ms -= 3_600_000;
    let end = play.now.unix_ms / 1_000 + 200;
    play.until(end);
    assert!(play.engine.silences().is_empty());
}

#[test]
fn a_reload_keeps_what_means_the_same_and_ends_the_rest() {
    let kept = rule(WARNING);
    let changed = kept.replace("id = 'r'", "id = 's'");
    let mut play = Play::new(&format!("{kept}{changed}"), &[("m", "20x20")]);
    play.until(30).said(&["30 fire r warning", "30 fire s warning"]);
    let text = format!(
        "{kept}summary = 'other words'\nlabels = {{ team = 'x' }}\ncooldown = '1h'\n{}",
        changed.replace("'30s'", "'40s'")
    );
    let set = RuleSet::parse(&text, "alerts.toml").expect("rules");
    let outcome = play.engine.reload(set, play.now);
    play.keep(outcome);
    play.said(&["30 resolve s warning"]);
    assert_eq!(play.ended[0].reason, EndReason::RuleChanged);
    let view = &play.engine.alerts(play.now)[0];
    assert_eq!((view.summary.as_str(), view.labels.get("team")), ("other words", Some("x")));
    play.until(100).said(&["80 fire s warning"]);
    // Switched off is as good as gone.
    let set = RuleSet::parse(&format!("{kept}enabled = false\n"), "alerts.toml").expect("rules");
    let outcome = play.engine.reload(set, play.now);
    play.keep(outcome);
    play.said(&["100 resolve r{team=\"x\"} warning", "100 resolve s warning"]);
    assert!(play.records.is_empty(), "{:?}", play.records);
}

#[test]
fn clear_ends_everything_and_what_is_still_bad_fires_anew() {
    let mut play = Play::new(&rule(&format!("{WARNING}cooldown = '0s'")), &[("m", "20x20")]);
    play.until(50).said(&["30 fire r warning"]);
    let outcome = play.engine.clear(play.now);
    play.keep(outcome);
    play.said(&["50 resolve r warning"]);
    assert_eq!(play.engine.alerts(play.now), []);
    assert_eq!(play.engine.ended(0)[0].reason, EndReason::Cleared);
    play.until(100).said(&["90 fire r warning"]);
}

#[test]
fn label_sets_over_the_limit_are_one_alert() {
    let names: Vec<String> = (0..7).map(|at| format!("m{{i=\"{at}\"}}")).collect();
    let series: Vec<_> = names.iter().map(|name| (name.as_str(), "20x20")).collect();
    let rules = rule("by = ['i']\nlimit = 5\nlevel.warning = '> 10'\n");
    let mut play = Play::new(&rules, &series);
    play.until(10);
    assert_eq!(play.said.len(), 6, "{:?}", play.said);
    assert_eq!(play.said[5], "0 fire alert_instance_limit{rule=\"r\"} warning");
    let views = play.engine.alerts(play.now);
    let summary = "rule r has 7 label sets, and room for 5";
    assert!(views.iter().any(|view| view.summary == summary), "{views:?}");
    play.said.clear();
    play.restart(Duration::ZERO, None);
    play.until(40).said(&[]);
}

#[test]
fn label_sets_that_have_ended_make_way_for_new_ones() {
    let names: Vec<String> = (0..5).map(|at| format!("m{{i=\"{at}\"}}")).collect();
    let series: Vec<_> = names.iter().map(|name| (name.as_str(), "0x4")).collect();
    let rules = rule("by = ['i']\nlimit = 5\nlevel.warning = '> 10'\n");
    let mut play = Play::new(&rules, &series);
    play.until(100);
    for new in ["x", "y"] {
        play.source.gauge("m", &[("i", new)], (10..30).map(|at| (at * STEP_MS, 20.0)));
    }
    play.until(200).said(&["110 fire r{i=\"x\"} warning", "110 fire r{i=\"y\"} warning"]);
}

#[test]
fn messages_say_what_receivers_need() {
    let lines = "by = ['i']\nlabels = { team = 'x' }\nlevel.warning = { raise = '> 10', clear = '< 5' }\n\
                 summary = '{{labels.i}} at {{value}} over {{threshold}} for {{active_for}}'\nrunbook = 'docs/r.md'\n\
                 [[handler]]\nid = 'am'\ntype = 'alertmanager'\nurl = 'http://127.0.0.1:9093'\n";
    let mut play = Play::new(&rule(lines), &[("m{i=\"a\"}", "20 0")]);
    play.now.unix_ms = -STEP_MS;
    play.now = play.now.after(Duration::from_millis(STEP_MS as u64));
    let fire = play.engine.evaluate(play.now, &play.source).events.remove(0);
    play.now = play.now.after(Duration::from_millis(STEP_MS as u64));
    let resolve = play.engine.evaluate(play.now, &play.source).events.remove(0);
    assert_eq!(fire.summary, "a at 20 over 10 for 0s");
    assert_eq!(resolve.summary, "a at 0 over 10 for 10s");
    assert_eq!((fire.starts_at_ms, fire.ends_at_ms), (0, None));
    assert_eq!((resolve.starts_at_ms, resolve.ends_at_ms), (0, Some(10_000)));
    assert_eq!(fire.labels, Labels::new([("i", "a"), ("team", "x")]));
    assert_eq!(
        fire.handlers.iter().map(|id| &**id).collect::<Vec<_>>(),
        ["log", "dashboard", "am"]
    );
    assert_ne!(fire.key, resolve.key);
    assert_eq!(fire.fingerprint, resolve.fingerprint);
    let json = serde_json::to_string(&fire).expect("json");
    assert_eq!(serde_json::from_str::<AlertEvent>(&json).expect("an event"), fire);
}

#[test]
fn a_rule_is_evaluated_as_often_as_it_says() {
    let mut play = Play::new(&rule("level.warning = '> 10'\nevery = '30s'"), &[("m", "0 20x20")]);
    play.until(0);
    assert_eq!(play.engine.next_due(), Some(play.now.monotonic + Duration::from_secs(30)));
    play.until(60).said(&["30 fire r warning"]);
}

#[test]
fn a_summary_counts_what_goes_on_and_what_went_on() {
    let rules = format!("{}{}", rule(WARNING), rule("level.error = '> 0'").replace("'r'", "'s'"));
    let mut play = Play::new(&rules, &[("m", "20x4 0 20x9")]);
    play.until(100);
    let summary = play.engine.summary(play.now);
    assert_eq!((summary.firing, summary.pending, summary.ended), (2, 0, 2));
    assert_eq!(summary.by_severity[&Severity::Error], 1);
    assert_eq!(summary.most_frequent, [("r".into(), 2), ("s".into(), 2)]);
    assert_eq!(summary.longest_active.map(|view| view.rule), Some("s".into()));
}
