//! How often the detector of odd behaviour cries wolf, and how much it finds: a simulation of weeks.
//!
//! Twenty series of two weeks, a sample every ten seconds. Each follows a daily cycle from 20 to 70 with
//! a weekend of 0.7 times that, noise that remembers itself (an autoregression of the first order), and
//! single spikes. In the second week seven shifts of ten minutes and 40 % are put into each series, one a
//! day, at a random time. An alarm that begins outside of a shift, and not within ten minutes after one,
//! is false. A shift is found if an alarm holds at some moment of it. The cycle of the made-up series
//! repeats weekly, which is kind to a detector that knows last week: the numbers rank detectors, they
//! promise nothing about a machine.

use std::time::Duration;

use monitor::anomaly::{AnomalyOptions, Detector};
use ultra_perf_bench::Suite;

const STEP_SECONDS: u64 = 10;
const DAY_STEPS: u64 = 86_400 / STEP_SECONDS;
const SERIES: u64 = 20;
const WEEK_DAYS: u64 = 7;
const SHIFT_STEPS: u64 = 600 / STEP_SECONDS;
/// Seeds of a usual run; each has 20 series.
const SEEDS: u64 = 3;

/// What became of the shifts and of the rest.
#[derive(Debug, Default, Clone, Copy)]
struct Outcome {
    series_days: f64,
    false_alarms: f64,
    shifts: f64,
    found: f64,
    delay_seconds: f64,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.series_days += other.series_days;
        self.false_alarms += other.false_alarms;
        self.shifts += other.shifts;
        self.found += other.found;
        self.delay_seconds += other.delay_seconds;
    }
}

/// One series of two weeks and the steps at which its shifts begin.
fn series(seed: u64) -> (Vec<f64>, Vec<u64>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let normal = |random: &mut fastrand::Rng| {
        // The sum of twelve uniform numbers is near enough to a normal one.
        (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
    };
    let phase = random.f64() * std::f64::consts::TAU;
    let mut noise = 0.0;
    let mut values: Vec<f64> = (0..2 * WEEK_DAYS * DAY_STEPS)
        .map(|step| {
            let day = step as f64 / DAY_STEPS as f64;
            let cycle = 45.0 - 25.0 * (std::f64::consts::TAU * day + phase).cos();
            let weekend = if (step / DAY_STEPS) % 7 >= 5 { 0.7 } else { 1.0 };
            noise = 0.8 * noise + 0.9 * normal(&mut random);
            let spike = if random.f64() < 0.001 { 2.0 + 2.0 * random.f64() } else { 1.0 };
            ((cycle * weekend + noise) * spike).max(0.0)
        })
        .collect();
    let shifts: Vec<u64> = (WEEK_DAYS..2 * WEEK_DAYS)
        .map(|day| day * DAY_STEPS + random.u64(0..DAY_STEPS - 4 * SHIFT_STEPS))
        .collect();
    for shift in &shifts {
        for value in &mut values[*shift as usize..(shift + SHIFT_STEPS) as usize] {
            *value *= 1.4;
        }
    }
    (values, shifts)
}

/// Lets a detector watch one series and judges its second week.
fn watch(options: AnomalyOptions, seed: u64) -> Outcome {
    let (values, shifts) = series(seed);
    let mut detector = Detector::new(options);
    let mut outcome = Outcome {
        series_days: WEEK_DAYS as f64,
        shifts: shifts.len() as f64,
        ..Outcome::default()
    };
    let mut before = false;
    let mut found = vec![false; shifts.len()];
    for (step, value) in (0_u64..).zip(values) {
        let unix_ms = (step * STEP_SECONDS * 1_000) as i64;
        let odd = detector.observe(unix_ms, value).odd;
        if step >= WEEK_DAYS * DAY_STEPS {
            let shift =
                shifts.iter().position(|start| (*start..start + 2 * SHIFT_STEPS).contains(&step));
            match shift {
                Some(at) if odd && step < shifts[at] + SHIFT_STEPS && !found[at] => {
                    found[at] = true;
                    outcome.found += 1.0;
                    outcome.delay_seconds += ((step - shifts[at]) * STEP_SECONDS) as f64;
                }
                Some(_) => {}
                None => outcome.false_alarms += f64::from(odd && !before),
            }
        }
        before = odd;
    }
    outcome
}

/// Lets a detector watch all series of some seeds.
fn simulate(options: AnomalyOptions, seeds: u64) -> Outcome {
    let mut all = Outcome::default();
    for seed in 0..seeds * SERIES {
        all.add(watch(options, 1_000 + seed));
    }
    all
}

const FALSE_ALARMS: &str = "anomaly, false alarms per series and day";
const FOUND: &str = "anomaly, shifts found";
const DELAY: &str = "anomaly, mean delay";
const BESIDE_SHORT: &str = "anomaly, false alarms, ours / short baseline alone";

/// The rows: what is promised of the detector as it is, and beside it the short baseline alone.
pub(crate) fn rows(suite: &mut Suite) {
    if ![FALSE_ALARMS, FOUND, DELAY, BESIDE_SHORT].iter().any(|case| suite.wants(case)) {
        return;
    }
    debug_assert_eq!(AnomalyOptions::default().step, Duration::from_secs(STEP_SECONDS));
    let ours = simulate(AnomalyOptions::default(), SEEDS);
    let false_alarms = |outcome: &Outcome| outcome.false_alarms / outcome.series_days;
    suite.reported(FALSE_ALARMS, "alarms").at_most(0.02).observed(false_alarms(&ours));
    suite.reported(FOUND, "ratio").at_least(0.8).observed(ours.found / ours.shifts);
    let delay = ours.delay_seconds / ours.found.max(1.0);
    suite.reported(DELAY, "s").at_most(180.0).observed(delay);

    let short = AnomalyOptions { weekly: false, ..AnomalyOptions::default() };
    let short = simulate(short, 1);
    let ratio = false_alarms(&ours) / false_alarms(&short).max(f64::MIN_POSITIVE);
    suite.reported(BESIDE_SHORT, "ratio").at_most(1.0).observed(ratio);
}
