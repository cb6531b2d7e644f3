//! The queue beside a sorted list that does the same naively, and the shares of aged levels.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const TARGETS: [Duration; 4] = [
    Duration::from_millis(5),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
];

fn bounds(tasks: usize, bytes: u64) -> Bounds {
    Bounds { lane_tasks: 4 * tasks, tasks: [tasks; 4], bytes: [bytes; 4] }
}

fn queue() -> Queue<u32> {
    Queue::new(Lane::Cpu, bounds(100_000, u64::MAX), TARGETS)
}

fn class(priority: Priority) -> Class {
    Class { priority, deadline: None, bytes: 0 }
}

/// Queues a task and returns its id.
fn push(queue: &mut Queue<u32>, task: u32, class: Class, now: Instant) -> TaskId {
    let id = queue.insert(task, class, now);
    assert!(queue.release(id, now));
    id
}

/// Starts the next task and ends it at once.
fn serve(queue: &mut Queue<u32>, now: Instant) -> Option<u32> {
    let next = queue.pop(Priority::Low, now)?;
    let (id, task) = (next.id, *next.task);
    assert_eq!(queue.finish(id, now).map(|(task, ..)| task), Some(task));
    Some(task)
}

#[test]
fn levels_are_strict_and_a_level_is_first_in_first_out() {
    let (mut queue, now) = (queue(), Instant::now());
    for (task, priority) in Priority::ALL.into_iter().rev().enumerate() {
        push(&mut queue, task as u32, class(priority), now);
        push(&mut queue, task as u32 + 10, class(priority), now);
    }
    let order: Vec<u32> = std::iter::from_fn(|| serve(&mut queue, now)).collect();
    assert_eq!(order, [3, 13, 2, 12, 1, 11, 0, 10]);
}

#[test]
fn a_task_without_a_deadline_is_due_when_its_levels_target_is_over() {
    let (mut queue, now) = (queue(), Instant::now());
    let due = |ms: u64| Class { deadline: Some(now + ms as u32 * MS), ..class(Priority::High) };
    push(&mut queue, 60, due(60), now);
    push(&mut queue, 50, class(Priority::High), now);
    push(&mut queue, 40, due(40), now);
    push(&mut queue, 90, class(Priority::High), now + 40 * MS);
    let order: Vec<u32> = std::iter::from_fn(|| serve(&mut queue, now + 40 * MS)).collect();
    assert_eq!(order, [40, 50, 60, 90]);
}

#[test]
fn under_overload_the_newest_is_served_and_deadlines_still_hold() {
    let (mut queue, now) = (queue(), Instant::now());
    for task in 0..4 {
        push(&mut queue, task, class(Priority::High), now + task * MS);
    }
    push(&mut queue, 9, Class { deadline: Some(now + 10 * MS), ..class(Priority::High) }, now);
    queue.set_newest_first(Priority::High, true);
    let order: Vec<u32> = std::iter::from_fn(|| serve(&mut queue, now + 4 * MS)).collect();
    assert_eq!(order, [9, 3, 2, 1, 0]);
}

#[test]
fn a_crowd_that_leaves_gives_its_places_back_though_some_stay() {
    let (mut queue, now) = (queue(), Instant::now());
    let stays: Vec<TaskId> =
        (0..3).map(|it| push(&mut queue, it, class(Priority::High), now)).collect();
    assert!(queue.start(stays[0], now).is_some());
    for round in 0..3 {
        let crowd: Vec<TaskId> =
            (0..10_000).map(|it| push(&mut queue, it, class(Priority::Low), now)).collect();
        assert_eq!(queue.places(), 10_003, "in round {round}");
        for id in crowd {
            assert!(queue.remove(id).is_some());
        }
        drop(queue.shrink());
        assert_eq!(queue.places(), 10_003, "they were needed a moment ago");
        drop(queue.shrink());
        assert_eq!(queue.places(), KEEP, "in round {round}");
        let order: Vec<_> = stays.iter().filter_map(|id| queue.class_of(*id)).collect();
        assert_eq!(order.len(), 3, "nobody who stays is lost");
    }
    assert!(queue.finish(stays[0], now).is_some());
    assert_eq!((serve(&mut queue, now), serve(&mut queue, now)), (Some(1), Some(2)));
}

#[test]
fn a_task_at_the_end_of_the_table_keeps_the_places_before_it_and_is_found() {
    let (mut queue, now) = (queue(), Instant::now());
    let crowd: Vec<TaskId> =
        (0..1_000).map(|it| push(&mut queue, it, class(Priority::Low), now)).collect();
    let last = push(&mut queue, 7, class(Priority::Low), now);
    for id in crowd {
        assert!(queue.remove(id).is_some());
    }
    drop((queue.shrink(), queue.shrink()));
    assert_eq!(queue.places(), 1_001);
    assert_eq!(queue.get(last).map(|(task, _)| *task), Some(7));
    assert_eq!(serve(&mut queue, now), Some(7));
    drop(queue.shrink());
    assert_eq!(queue.places(), KEEP);
}

/// Keeps `endless` coming for 1,600 starts and counts what the waiting levels get in each window.
fn least_share(endless: Priority, waiting: &[Priority]) -> Vec<usize> {
    let (mut queue, start) = (queue(), Instant::now());
    for &priority in waiting {
        for _ in 0..1_600 {
            push(&mut queue, priority.index() as u32, class(priority), start);
        }
    }
    let now = start + Duration::from_secs(2);
    let served: Vec<u32> = (0..1_600)
        .map(|_| {
            push(&mut queue, endless.index() as u32, class(endless), now);
            serve(&mut queue, now).expect("there is always one")
        })
        .collect();
    let share = |priority: &Priority| {
        let index = priority.index() as u32;
        let counts = served.windows(SHARE as usize);
        counts.map(|window| window.iter().filter(|&&it| it == index).count()).min().unwrap()
    };
    waiting.iter().map(share).collect()
}

#[test]
fn under_endless_high_work_each_aged_level_gets_one_of_sixteen_starts() {
    use Priority::{Critical, High, Low, Normal};
    assert_eq!(least_share(High, &[Low]), [1]);
    assert_eq!(least_share(High, &[Normal, Low]), [1, 1]);
    assert_eq!(least_share(Critical, &[High, Normal, Low]), [1, 1, 1]);
}

#[test]
fn a_level_that_is_not_aged_waits_for_the_levels_above() {
    let (mut queue, now) = (queue(), Instant::now());
    push(&mut queue, 3, class(Priority::Low), now);
    for _ in 0..100 {
        push(&mut queue, 1, class(Priority::High), now);
    }
    let order: Vec<u32> = (0..100).filter_map(|_| serve(&mut queue, now + 900 * MS)).collect();
    assert!(order.iter().all(|&task| task == 1), "Low waits up to its target of one second");
}

/// The failure of plain EDF over levels: an old backlog is due before everything that comes fresh.
#[test]
fn an_old_backlog_does_not_outrank_fresh_important_work() {
    let (mut queue, start) = (queue(), Instant::now());
    for _ in 0..1_000 {
        push(&mut queue, 3, class(Priority::Low), start);
    }
    let now = start + Duration::from_secs(60);
    let mut waited = Vec::new();
    for _ in 0..50 {
        push(&mut queue, 1, class(Priority::High), now);
        let before = std::iter::from_fn(|| serve(&mut queue, now)).position(|task| task == 1);
        waited.push(before.expect("it is served"));
    }
    assert!(waited.iter().all(|&before| before <= 1), "{waited:?}");
}

#[test]
fn whoever_serves_only_the_upper_levels_sees_no_other() {
    let (mut queue, now) = (queue(), Instant::now());
    push(&mut queue, 2, class(Priority::Normal), now);
    assert!(queue.pop(Priority::High, now + Duration::from_hours(1)).is_none());
    push(&mut queue, 1, class(Priority::High), now);
    assert_eq!(queue.pop(Priority::High, now).map(|next| *next.task), Some(1));
}

#[test]
fn bounds_hold_in_tasks_and_in_bytes_and_say_their_numbers() {
    let mut queue = Queue::new(Lane::Io, bounds(2, 100), TARGETS);
    let now = Instant::now();
    let large = Class { bytes: 150, ..class(Priority::Low) };
    assert!(queue.room(Priority::Low, 1, 150).is_ok(), "alone, any size may wait");
    let id = queue.insert(0, large, now);
    assert_eq!(
        queue.room(Priority::Low, 1, 1).unwrap_err().to_string(),
        "the low level of the io lane holds 150 of 100 bytes, and the task declares 1"
    );
    queue.insert(1, class(Priority::Low), now);
    assert_eq!(
        queue.room(Priority::Low, 1, 0).unwrap_err().to_string(),
        "the low level of the io lane holds its maximum of 2 tasks"
    );
    assert!(queue.room(Priority::High, 1, 0).is_ok());
    assert!(queue.remove(id).is_some());
    assert!(queue.room(Priority::Low, 1, 100).is_ok());
}

#[test]
fn an_id_never_finds_the_next_task_at_its_place() {
    let (mut queue, now) = (queue(), Instant::now());
    let first = push(&mut queue, 1, class(Priority::Low), now);
    assert!(queue.remove(first).is_some());
    let second = push(&mut queue, 2, class(Priority::Low), now);
    assert_eq!(first.place(), second.place());
    assert!(queue.get(first).is_none() && queue.remove(first).is_none());
    assert!(!queue.release(first, now) && queue.start(first, now).is_none());
    assert_eq!(queue.len(), 1);
}

#[test]
fn an_empty_queue_gives_its_table_back() {
    let (mut queue, now) = (queue(), Instant::now());
    let ids: Vec<TaskId> =
        (0..10_000).map(|task| push(&mut queue, task, class(Priority::Low), now)).collect();
    assert!(queue.table.capacity() >= 10_000);
    assert!(ids.into_iter().all(|id| queue.remove(id).is_some()));
    drop((queue.shrink(), queue.shrink()));
    assert!(queue.table.capacity() <= KEEP);
    assert_eq!((queue.len(), queue.queued()), (0, 0));
    let id = push(&mut queue, 1, class(Priority::Low), now);
    assert_eq!(
        queue.get(id).map(|(task, standing)| (*task, standing)),
        Some((1, Standing::Listed))
    );
}

/// One step of the comparison with the naive list.
#[derive(Clone, Debug)]
enum Step {
    Push(usize, Option<u64>),
    Hold(usize),
    Release(usize),
    Remove(usize),
    Pop,
    Claim(usize),
    GiveBack(usize),
    Begin(usize),
    Shrink,
    Finish(usize),
    Again(usize),
    Evict(usize),
    Turn(usize, bool),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_usize, prop::option::of(0..300_u64)).prop_map(|(l, d)| Step::Push(l, d)),
        1 => (0..4_usize).prop_map(Step::Hold),
        1 => any::<usize>().prop_map(Step::Release),
        2 => any::<usize>().prop_map(Step::Remove),
        5 => Just(Step::Pop),
        3 => (0..4_usize).prop_map(Step::Claim),
        2 => any::<usize>().prop_map(Step::GiveBack),
        1 => any::<usize>().prop_map(Step::Begin),
        1 => Just(Step::Shrink),
        3 => any::<usize>().prop_map(Step::Finish),
        1 => any::<usize>().prop_map(Step::Again),
        1 => (0..3_usize).prop_map(Step::Evict),
        1 => (0..4_usize, any::<bool>()).prop_map(|(l, on)| Step::Turn(l, on)),
        3 => (0..400_u64).prop_map(Step::Pass),
    ]
}

#[derive(Clone, Debug)]
struct Naive {
    id: TaskId,
    level: usize,
    deadline: Option<Instant>,
    since: Instant,
    order: usize,
}

impl Naive {
    fn due(&self) -> Instant {
        self.deadline.unwrap_or(self.since + TARGETS[self.level])
    }
}

/// Picks the next of a level by looking at every task.
fn naive_first(queued: &[Naive], level: usize, newest_first: bool) -> Option<&Naive> {
    let of_level = || queued.iter().filter(|it| it.level == level);
    let dated =
        of_level().filter(|it| it.deadline.is_some()).min_by_key(|it| (it.due(), it.id.sequence()));
    let oldest = of_level().filter(|it| it.deadline.is_none()).min_by_key(|it| it.order);
    let newest = of_level().filter(|it| it.deadline.is_none()).max_by_key(|it| it.order);
    let listed = if newest_first { newest } else { oldest };
    match (dated, oldest) {
        (Some(dated), Some(oldest)) if dated.due() < oldest.due() => Some(dated),
        (Some(dated), None) => Some(dated),
        _ => listed,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_queue_does_what_a_sorted_list_does(steps in prop::collection::vec(step(), 1..200)) {
        let mut queue = queue();
        let mut now = Instant::now();
        let (mut held, mut queued, mut running) = (Vec::<Naive>::new(), Vec::<Naive>::new(), Vec::<Naive>::new());
        let mut claimed = Vec::<Naive>::new();
        let mut newest_first = [false; 4];
        // How often each aged level was passed over since its last start.
        let mut passed = [0_u32; 4];
        for (order, step) in steps.into_iter().enumerate() {
            match step {
                Step::Push(level, deadline) => {
                    let deadline = deadline.map(|ms| now + ms as u32 * MS);
                    let class = Class { deadline, ..class(Priority::ALL[level]) };
                    let id = push(&mut queue, order as u32, class, now);
                    queued.push(Naive { id, level, deadline, since: now, order });
                }
                Step::Hold(level) => {
                    let id = queue.insert(order as u32, class(Priority::ALL[level]), now);
                    held.push(Naive { id, level, deadline: None, since: now, order });
                }
                Step::Release(pick) if !held.is_empty() => {
                    let it = held.remove(pick % held.len());
                    prop_assert!(queue.release(it.id, now));
                    prop_assert!(!queue.release(it.id, now));
                    queued.push(Naive { since: now, order, ..it });
                }
                Step::Remove(pick) if !queued.is_empty() => {
                    let it = queued.remove(pick % queued.len());
                    prop_assert!(queue.remove(it.id).is_some());
                    prop_assert!(queue.remove(it.id).is_none());
                }
                Step::Claim(level) => {
                    let alone = queued.iter().all(|it| it.level == level) && !newest_first[level];
                    let first = naive_first(&queued, level, false).filter(|_| alone).map(|it| it.id);
                    let id = queue.claim(Priority::ALL[level], |_| true).map(|(id, _)| id);
                    prop_assert_eq!(id, first);
                    let Some(id) = id else { continue };
                    prop_assert!(queue.start(id, now).is_none() && !queue.release(id, now));
                    let at = queued.iter().position(|it| it.id == id).expect("it was queued");
                    claimed.push(queued.remove(at));
                }
                Step::GiveBack(pick) if !claimed.is_empty() => {
                    let it = claimed.remove(pick % claimed.len());
                    prop_assert!(queue.give_back(it.id));
                    prop_assert!(!queue.give_back(it.id));
                    queued.push(it);
                }
                Step::Begin(pick) if !claimed.is_empty() => {
                    let it = claimed.remove(pick % claimed.len());
                    let waited = queue.begin(it.id, now).map(|next| next.waited);
                    prop_assert_eq!(waited, Some(now - it.since));
                    prop_assert!(queue.begin(it.id, now).is_none());
                    running.push(it);
                }
                Step::Finish(pick) if running.is_empty() && !claimed.is_empty() => {
                    let it = claimed.remove(pick % claimed.len());
                    let ended = queue.finish_claimed(it.id, now, now + MS);
                    prop_assert_eq!(ended.map(|it| (it.1, it.2)), Some((now - it.since, MS)));
                    prop_assert!(queue.finish_claimed(it.id, now, now).is_none());
                }
                Step::Remove(pick) if queued.is_empty() && !claimed.is_empty() => {
                    let it = claimed.remove(pick % claimed.len());
                    prop_assert!(queue.remove(it.id).is_some());
                    prop_assert!(queue.remove(it.id).is_none());
                }
                Step::Finish(pick) if !running.is_empty() => {
                    let it = running.remove(pick % running.len());
                    prop_assert!(queue.remove(it.id).is_none(), "a running task is not taken out");
                    prop_assert!(queue.finish(it.id, now).is_some());
                }
                Step::Again(pick) if !running.is_empty() => {
                    let it = running.remove(pick % running.len());
                    prop_assert!(queue.hold(it.id, now));
                    held.push(it);
                }
                Step::Evict(level) => {
                    let evicted = queue.evictable(Priority::ALL[level]);
                    let lowest = (level + 1..4).rev().find(|&l| queued.iter().any(|it| it.level == l));
                    prop_assert_eq!(evicted.is_some(), lowest.is_some());
                    if let Some(id) = evicted {
                        let at = queued.iter().position(|it| it.id == id).expect("it is queued");
                        prop_assert_eq!(Some(queued.remove(at).level), lowest);
                        queue.remove(id);
                    }
                }
                Step::Turn(level, on) => {
                    newest_first[level] = on;
                    queue.set_newest_first(Priority::ALL[level], on);
                }
                Step::Pass(ms) => now += ms as u32 * MS,
                Step::Shrink => drop(queue.shrink()),
                Step::Pop => {
                    let next = queue.pop(Priority::Low, now).map(|next| next.id);
                    prop_assert_eq!(next.is_some(), !queued.is_empty());
                    let Some(id) = next else { continue };
                    let top = queued.iter().map(|it| it.level).min().expect("one is there");
                    let at = queued.iter().position(|it| it.id == id).expect("it was queued");
                    let level = queued[at].level;
                    let first = naive_first(&queued, level, newest_first[level]).expect("one is there");
                    prop_assert_eq!(first.id, id);
                    let aged = |level: usize| {
                        let first = |dated: bool| queued
                            .iter()
                            .filter(|it| it.level == level && it.deadline.is_some() == dated)
                            .min_by_key(|it| if dated { (it.due(), it.id.sequence()) } else { (now, it.order as u64) });
                        let since = [first(true), first(false)].into_iter().flatten().map(|it| it.since).min();
                        since.is_some_and(|since| now - since >= TARGETS[level])
                    };
                    prop_assert!(level == top || aged(level), "only an aged level may go before");
                    for (other, passed) in passed.iter_mut().enumerate().skip(top + 1) {
                        let over = other != level && aged(other);
                        *passed = if over { *passed + 1 } else { 0 };
                        prop_assert!(*passed < SHARE, "an aged level gets one of sixteen");
                    }
                    for it in &mut passed[..=top] { *it = 0; }
                    running.push(queued.remove(at));
                }
                _ => {}
            }
            for (level, passed) in passed.iter_mut().enumerate() {
                // A level that became empty has nothing that was passed over.
                *passed *= u32::from(queued.iter().any(|it| it.level == level));
            }
            prop_assert_eq!(queue.queued(), queued.len());
            prop_assert_eq!(queue.running(), running.len());
            prop_assert_eq!(queue.claimed(), claimed.len());
            for (index, used) in queue.used_in.iter().enumerate() {
                let all = queue.table.iter().enumerate();
                let here = all.filter(|(at, place)| {
                    block(*at as u32) == index && place.standing != Standing::Free
                });
                prop_assert_eq!(here.count(), *used as usize);
            }
            let waiting = held.len() + queued.len() + claimed.len();
            prop_assert_eq!(queue.len(), waiting + running.len());
            for (index, priority) in Priority::ALL.into_iter().enumerate() {
                let above = claimed.iter().any(|it| it.level < index);
                let below = claimed.iter().any(|it| it.level > index);
                prop_assert_eq!(queue.claimed_above(priority), above);
                prop_assert_eq!(queue.claimed_below(priority), below);
            }
        }
        while let Some(id) = queue.pop(Priority::Low, now).map(|next| next.id) {
            queue.finish(id, now);
        }
        prop_assert_eq!(queue.queued(), 0);
    }
}
