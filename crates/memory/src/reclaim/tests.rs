//! Runs over made-up reclaimers, in a made-up time.

use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use super::*;

/// A clock that moves when a reclaimer says so, and resident bytes likewise.
struct World {
    start: Instant,
    millis: AtomicU64,
    resident: AtomicU64,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            millis: AtomicU64::new(0),
            resident: AtomicU64::new(1 << 40),
        })
    }
}

impl Surroundings for Arc<World> {
    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }

    fn resident(&self) -> u64 {
        self.resident.load(Ordering::Relaxed)
    }
}

/// Holds bytes, and behaves as told.
struct Holder {
    name: &'static str,
    cost: Cost,
    weight: u32,
    held: AtomicU64,
    takes_millis: u64,
    panics: bool,
    lies: bool,
    world: Arc<World>,
}

impl Holder {
    fn new(world: &Arc<World>, name: &'static str, held: u64) -> Self {
        Self {
            name,
            cost: Cost::Remote,
            weight: 1,
            held: AtomicU64::new(held),
            takes_millis: 1,
            panics: false,
            lies: false,
            world: Arc::clone(world),
        }
    }
}

impl Reclaimer for Holder {
    fn name(&self) -> &str {
        self.name
    }

    fn reclaimable_bytes(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn reclaim(&self, request: &ReclaimRequest) -> u64 {
        self.world.millis.fetch_add(self.takes_millis, Ordering::Relaxed);
        assert!(!self.panics, "as told");
        if self.lies {
            return 0;
        }
        let freed = request.target_bytes.min(self.held.load(Ordering::Relaxed));
        self.held.fetch_sub(freed, Ordering::Relaxed);
        // Half of what is freed stays with the allocator.
        self.world.resident.fetch_sub(freed / 2, Ordering::Relaxed);
        freed
    }

    fn cost(&self) -> Cost {
        self.cost
    }

    fn weight(&self) -> u32 {
        self.weight
    }
}

fn wanted(bytes: u64) -> Wanted {
    Wanted {
        bytes,
        level: Level::High,
        force: false,
        each: Duration::from_millis(200),
        all: Duration::from_secs(1),
    }
}

/// Runs and writes `name claimed` for each part, and the outcome where it is not `done`.
fn check(registry: &Reclaimers, world: &Arc<World>, bytes: u64, expected: &str) {
    let reports = registry.run(wanted(bytes), world);
    let line = |it: &ReclaimerReport| match it.outcome {
        ReclaimOutcome::Done => format!("{} {}", it.name, it.claimed_bytes),
        outcome => format!("{} {}", it.name, outcome.as_str()),
    };
    let told = reports.iter().map(line).collect::<Vec<_>>().join(", ");
    assert_eq!(told, expected);
}

fn registry(holders: Vec<Holder>) -> (Reclaimers, Vec<Registration>) {
    let registry = Reclaimers::default();
    let held = holders.into_iter().map(|it| registry.register(it).expect("room")).collect();
    (registry, held)
}

#[test]
fn the_cheapest_to_get_back_is_asked_first_and_the_rest_only_for_what_is_missing() {
    let world = World::new();
    let remote = Holder::new(&world, "cache", 1_000);
    let surplus = Holder { cost: Cost::Surplus, ..Holder::new(&world, "pool", 100) };
    let unused = Holder { cost: Cost::Unused, ..Holder::new(&world, "strings", 50) };
    let (registry, _held) = registry(vec![remote, unused, surplus]);
    check(&registry, &world, 120, "pool 100, strings 20");
    check(&registry, &world, 120, "strings 30, cache 90");
}

#[test]
fn equals_share_by_weight_and_size() {
    let world = World::new();
    let small = Holder::new(&world, "small", 100);
    let large = Holder::new(&world, "large", 300);
    let heavy = Holder { weight: 4, ..Holder::new(&world, "heavy", 100) };
    let (registry, _held) = registry(vec![small, large, heavy]);
    check(&registry, &world, 80, "heavy 40, small 10, large 30");
    // More than there is takes all.
    check(&registry, &world, u64::MAX, "heavy 60, small 90, large 270");
}

#[test]
fn a_panic_is_survived_and_others_go_on() {
    let world = World::new();
    let bad = Holder { panics: true, ..Holder::new(&world, "bad", 100) };
    let good = Holder::new(&world, "good", 100);
    let (registry, _held) = registry(vec![bad, good]);
    check(&registry, &world, 100, "bad panicked, good 100");
    check(&registry, &world, 100, "bad backed-off");
}

#[test]
fn who_gives_nothing_twice_is_left_out_for_longer_and_longer() {
    let world = World::new();
    let liar = Holder { lies: true, ..Holder::new(&world, "liar", 100) };
    let (registry, _held) = registry(vec![liar]);
    let mut asked = String::new();
    for _ in 0..20 {
        let reports = registry.run(wanted(10), &world);
        asked.push(if reports[0].outcome == ReclaimOutcome::BackedOff { '.' } else { 'a' });
    }
    assert_eq!(asked, "aa..aa....aa........");
    let forced = registry.run(Wanted { force: true, ..wanted(10) }, &world);
    assert_eq!(forced[0].outcome, ReclaimOutcome::Done);
}

#[test]
fn who_is_late_is_named_and_the_run_s_time_bounds_all() {
    let world = World::new();
    let slow = Holder { takes_millis: 700, ..Holder::new(&world, "slow", 100) };
    let slower = Holder { takes_millis: 700, ..Holder::new(&world, "slower", 100) };
    let last = Holder::new(&world, "last", 100);
    let (registry, _held) = registry(vec![slow, slower, last]);
    check(&registry, &world, 300, "slow late, slower late, last out-of-time");
}

#[test]
fn what_is_claimed_stands_beside_what_is_seen() {
    let world = World::new();
    let (registry, _held) = registry(vec![Holder::new(&world, "cache", 100)]);
    let reports = registry.run(wanted(40), &world);
    assert_eq!((reports[0].claimed_bytes, reports[0].observed_bytes), (40, 20));
}

#[test]
fn a_registration_holds_until_it_is_dropped_or_kept() {
    let world = World::new();
    let registry = Reclaimers::default();
    let held = registry.register(Holder::new(&world, "a", 1)).expect("room");
    registry.register(Holder::new(&world, "b", 2)).expect("room").keep();
    assert_eq!(registry.len(), 2);
    drop(held);
    let names: Vec<_> = registry.reclaimable().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [Arc::from("b")]);
}

#[test]
fn there_is_a_bound_to_registrations() {
    let world = World::new();
    let registry = Reclaimers::default();
    for _ in 0..RECLAIMERS_MAX {
        registry.register(Holder::new(&world, "a", 1)).expect("room").keep();
    }
    assert_eq!(registry.register(Holder::new(&world, "b", 1)).err(), Some(TooManyReclaimers));
}

proptest! {
    /// The naive model: cost by cost, all of them together free what is wanted or all that they have.
    #[test]
    fn a_run_frees_what_is_wanted_or_all_there_is(
        holders in proptest::collection::vec((0u8..4, 1u32..5, 0u64..10_000), 0..20),
        bytes in 0u64..60_000,
    ) {
        let world = World::new();
        let costs = [Cost::Surplus, Cost::Unused, Cost::Nearby, Cost::Remote];
        let registry = Reclaimers::default();
        let mut by_cost = [0u64; 4];
        for (cost, weight, held) in holders {
            by_cost[usize::from(cost)] += held;
            let holder = Holder { cost: costs[usize::from(cost)], weight, takes_millis: 0, ..Holder::new(&world, "x", held) };
            registry.register(holder).expect("room").keep();
        }
        let reports = registry.run(wanted(bytes), &world);
        let claimed: u64 = reports.iter().map(|it| it.claimed_bytes).sum();
        let all: u64 = by_cost.iter().sum();
        prop_assert_eq!(claimed, bytes.min(all));
        // No dearer one gives before all cheaper ones are empty.
        let left: u64 = registry.reclaimable().iter().map(|(_, bytes)| bytes).sum();
        prop_assert_eq!(left, all - claimed);
    }
}
