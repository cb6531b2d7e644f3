//! Alert rules out of arbitrary TOML: refused with reasons, or read, checked again and evaluated.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use monitor::Moment;
use monitor::alert::{Engine, EngineOptions, MadeUp, RuleSet, check, test};

fuzz_target!(|text: &str| {
    let set = match RuleSet::parse(text, "fuzz.toml") {
        Err(errors) => {
            assert!(!errors.problems().is_empty(), "refused without a reason");
            for problem in errors.problems() {
                assert!(!problem.expected.is_empty(), "{problem:?} says nothing");
            }
            // It may be a file of tests instead.
            let _ = test::run(text, "fuzz.toml", &RuleSet::defaults());
            return;
        }
        Ok(set) => set,
    };
    assert!(check(text, "fuzz.toml").is_ok(), "right, and then not");
    for rule in set.rules() {
        assert!(rule.problems().is_empty(), "{rule:?} was read and is not right");
    }
    evaluate(set);
});

/// Nothing that reads may panic when it is evaluated, and what fires once ends once.
fn evaluate(set: RuleSet) {
    let mut source = MadeUp::new().step_ms(10_000);
    for rule in set.rules().iter().take(20) {
        let name = rule.signal.name().to_owned();
        let samples = (0..30).map(|at| (at * 10_000, (at % 7) as f64));
        source.gauge(&name, &[("a", "b")], samples);
    }
    let mut engine = Engine::new(set, EngineOptions::default());
    let (mut now, mut records) = (Moment { monotonic: Duration::ZERO, unix_ms: 0 }, Vec::new());
    for _ in 0..30 {
        now = now.after(Duration::from_secs(10));
        engine.evaluate(now, &source);
        records = engine.records(now);
    }
    let firing = engine.alerts(now).iter().filter(|view| view.starts_at_ms.is_some()).count();
    let cleared = engine.clear(now);
    assert_eq!(cleared.ended.len(), firing);
    let mut next = Engine::new(RuleSet::clone(engine.rule_set()), EngineOptions::default());
    next.restore(records, now, Duration::from_secs(1));
    assert!(next.alerts(now).len() >= firing, "a restart loses an alert");
}
