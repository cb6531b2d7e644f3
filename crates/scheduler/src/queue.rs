//! The ordered queue of one lane: every task from its submission to its end, in one table.
//!
//! A task lies at a place of the table and is *held* (something else must happen first), *queued*,
//! *claimed* (a drainer has it in its batch and may have started it, see [`batch`](crate::batch)), or
//! *running*; a free place is none of these. The queued tasks of a level form a list through the
//! table, oldest first, so that any of them can be taken out in place, and those with a deadline a
//! sorted map. A claimed task that is given back goes to where it was. Only the lane's lock guards all
//! this; the time comes from the caller.
//!
//! **Which task is next.** The highest level that has one, with the exception below. Within a level the
//! task that is due first: a deadline is the caller's word, a task without one is due when its level's
//! target is over, so neither kind starves the other (EDF with a bound). A level in overload serves
//! the newest of its tasks without deadlines instead.
//!
//! **Ageing by a bounded share.** A level below the one that would be served is *aged* when its oldest
//! task has waited beyond the level's target. Of sixteen starts in a row each aged level gets at least
//! one: with `n` aged levels, one that was passed over `16 - n` times goes next, the most often passed
//! first. That leaves it at most `n - 1` further starts to wait, in which the others have their turn.
//! Unlike plain EDF over all levels, a backlog of old unimportant work cannot outrank fresh important
//! work: it gets its share and no more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::lane::Lane;
use crate::task::{Priority, ShedReason, TaskId};

#[cfg(all(test, not(loom)))]
mod tests;

/// Of this many starts each aged level gets at least one.
pub(crate) const SHARE: u32 = 16;
/// No place: the end of a list.
const NIL: u32 = u32::MAX;
/// A table gives no places back below this many.
const KEEP: usize = if cfg!(test) { 8 } else { 1_024 };

/// What a queue holds at most, waiting tasks only.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Tasks of all levels.
    pub(crate) lane_tasks: usize,
    /// Tasks of each level.
    pub(crate) tasks: [usize; 4],
    /// Declared bytes of each level.
    pub(crate) bytes: [u64; 4],
}

/// What the order depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Class {
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Instant>,
    pub(crate) bytes: u64,
}

/// A task that was chosen to start.
pub(crate) struct Next<'a, T> {
    pub(crate) id: TaskId,
    pub(crate) priority: Priority,
    pub(crate) waited: Duration,
    pub(crate) task: &'a mut T,
}

/// Where a place stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Free,
    Held,
    /// In the list of its level.
    Listed,
    /// In the map of deadlines of its level.
    Dated,
    /// In the batch of a drainer; it counts as waiting until it is known that it started.
    Claimed,
    Running,
}

/// What the queue tells of one task.
pub(crate) struct Seen<'a, T> {
    pub(crate) id: TaskId,
    pub(crate) class: Class,
    pub(crate) standing: Standing,
    pub(crate) since: Instant,
    pub(crate) task: &'a T,
}

pub(crate) struct Queue<T> {
    lane: Lane,
    bounds: Bounds,
    table: Vec<Place<T>>,
    /// The first free place; the others follow through `next`.
    free: u32,
    used: usize,
    /// How many places are used in each block: blocks are 1, 2, 4 and so on long.
    used_in: [u32; TaskId::PLACES.ilog2() as usize + 1],
    /// How many places were needed since the table was last looked at.
    reach: usize,
    waiting: usize,
    queued: usize,
    claimed: usize,
    sequence: u64,
    /// Counts releases: what came first is first.
    releases: u64,
    levels: [Level; 4],
}

/// One place of the table.
pub(crate) struct Place<T> {
    task: Option<T>,
    class: Class,
    standing: Standing,
    sequence: u64,
    /// When it was queued, among all releases.
    order: u64,
    /// When it was queued, or held, or started.
    since: Instant,
    before: u32,
    next: u32,
}

impl<T> Place<T> {
    fn free(since: Instant) -> Self {
        Self {
            task: None,
            class: Class { priority: Priority::Low, deadline: None, bytes: 0 },
            standing: Standing::Free,
            sequence: 0,
            order: 0,
            since,
            before: NIL,
            next: NIL,
        }
    }
}

/// The block of the table in which a place lies.
fn block(index: u32) -> usize {
    (index + 1).ilog2() as usize
}

struct Level {
    oldest: u32,
    newest: u32,
    dated: BTreeMap<(Instant, u64), u32>,
    queued: usize,
    claimed: usize,
    /// Queued, claimed and held.
    waiting: usize,
    bytes: u64,
    /// How long its tasks may wait before the level is aged.
    target: Duration,
    /// Starts of others since its last one, while it was aged.
    passed: u32,
    newest_first: bool,
}

impl<T> Queue<T> {
    pub(crate) fn new(lane: Lane, bounds: Bounds, targets: [Duration; 4]) -> Self {
        Self {
            lane,
            bounds,
            table: Vec::new(),
            free: NIL,
            used: 0,
            used_in: [0; TaskId::PLACES.ilog2() as usize + 1],
            reach: 0,
            waiting: 0,
            queued: 0,
            claimed: 0,
            sequence: 0,
            releases: 0,
            levels: targets.map(|target| Level {
                oldest: NIL,
                newest: NIL,
                dated: BTreeMap::new(),
                queued: 0,
                claimed: 0,
                waiting: 0,
                bytes: 0,
                target,
                passed: 0,
                newest_first: false,
            }),
        }
    }

    /// Tells whether `tasks` more with `bytes` together may wait in the level, and if not, why.
    pub(crate) fn room(
        &self,
        priority: Priority,
        tasks: usize,
        bytes: u64,
    ) -> Result<(), ShedReason> {
        let (lane, index) = (self.lane, priority.index());
        let level = &self.levels[index];
        let max = self.bounds.tasks[index];
        if level.waiting + tasks > max {
            return Err(ShedReason::QueueFull { lane, priority, max });
        }
        let max = self.bounds.bytes[index];
        // A task that is alone may be as large as it likes: what bounds it then is the memory gate.
        if bytes > 0 && level.bytes > 0 && level.bytes.saturating_add(bytes) > max {
            return Err(ShedReason::QueueBytes { lane, priority, bytes, held: level.bytes, max });
        }
        let max = self.bounds.lane_tasks;
        if self.waiting + tasks > max || self.used + tasks > TaskId::PLACES {
            return Err(ShedReason::LaneFull { lane, max });
        }
        Ok(())
    }

    /// Takes a task in, held; [`room`](Self::room) was asked before.
    pub(crate) fn insert(&mut self, task: T, class: Class, now: Instant) -> TaskId {
        let index = self.place(task, class, now);
        TaskId::new(self.lane, index, self.sequence)
    }

    /// Takes a task in and queues it; [`room`](Self::room) was asked before.
    pub(crate) fn insert_queued(&mut self, task: T, class: Class, now: Instant) -> TaskId {
        let index = self.place(task, class, now);
        self.link(index, now);
        TaskId::new(self.lane, index, self.sequence)
    }

    fn place(&mut self, task: T, class: Class, now: Instant) -> u32 {
        self.sequence += 1;
        let place = Place {
            task: Some(task),
            class,
            standing: Standing::Held,
            sequence: self.sequence,
            order: 0,
            since: now,
            before: NIL,
            next: NIL,
        };
        let index = if self.free == NIL {
            self.table.push(place);
            (self.table.len() - 1) as u32
        } else {
            let index = self.free;
            self.free = std::mem::replace(&mut self.table[index as usize], place).next;
            index
        };
        self.used += 1;
        self.used_in[block(index)] += 1;
        self.reach = self.reach.max(index as usize + 1);
        self.count_waiting(class, true);
        index
    }

    fn count_waiting(&mut self, class: Class, more: bool) {
        let level = &mut self.levels[class.priority.index()];
        if more {
            level.waiting += 1;
            level.bytes = level.bytes.saturating_add(class.bytes);
            self.waiting += 1;
        } else {
            level.waiting -= 1;
            level.bytes = level.bytes.saturating_sub(class.bytes);
            self.waiting -= 1;
        }
    }

    fn find(&self, id: TaskId) -> Option<u32> {
        let place = self.table.get(id.place() as usize)?;
        // The table counts further than an id can tell.
        let same = TaskId::new(self.lane, id.place(), place.sequence) == id;
        (same && place.standing != Standing::Free).then(|| id.place())
    }

    /// Returns the task, wherever it stands.
    pub(crate) fn get(&mut self, id: TaskId) -> Option<(&mut T, Standing)> {
        let place = self.find(id)? as usize;
        let place = &mut self.table[place];
        Some((place.task.as_mut()?, place.standing))
    }

    /// Returns what the order of a task depends on.
    pub(crate) fn class_of(&self, id: TaskId) -> Option<Class> {
        let place = self.find(id)? as usize;
        Some(self.table[place].class)
    }

    /// Queues a held task; `false` if it is not there or not held.
    pub(crate) fn release(&mut self, id: TaskId, now: Instant) -> bool {
        let Some(index) = self.find(id) else { return false };
        if self.table[index as usize].standing != Standing::Held {
            return false;
        }
        self.link(index, now);
        true
    }

    /// Queues what is at a place, behind all others.
    fn link(&mut self, index: u32, now: Instant) {
        self.releases += 1;
        let place = &mut self.table[index as usize];
        place.since = now;
        place.order = self.releases;
        let level = &mut self.levels[place.class.priority.index()];
        if let Some(deadline) = place.class.deadline {
            place.standing = Standing::Dated;
            level.dated.insert((deadline, place.sequence), index);
        } else {
            place.standing = Standing::Listed;
            place.before = level.newest;
            place.next = NIL;
            let newest = std::mem::replace(&mut level.newest, index);
            if newest == NIL {
                level.oldest = index;
            } else {
                self.table[newest as usize].next = index;
            }
        }
        level.queued += 1;
        self.queued += 1;
    }

    /// Takes the next task of a level for a drainer's batch, if `takes` says so.
    ///
    /// Only where the order is plain: no other level has a task, so there is nothing to age, and the level
    /// serves its oldest first.
    pub(crate) fn claim(
        &mut self,
        priority: Priority,
        takes: impl FnOnce(&T) -> bool,
    ) -> Option<(TaskId, &mut T)> {
        let level = &self.levels[priority.index()];
        if level.queued == 0 || level.queued != self.queued || level.newest_first {
            return None;
        }
        let index = self.first_due(priority.index())?;
        if !takes(self.table[index as usize].task.as_ref()?) {
            return None;
        }
        self.unlink(index);
        self.count_claimed(priority, true);
        let place = &mut self.table[index as usize];
        place.standing = Standing::Claimed;
        Some((TaskId::new(self.lane, index, place.sequence), place.task.as_mut()?))
    }

    fn count_claimed(&mut self, priority: Priority, more: bool) {
        let level = &mut self.levels[priority.index()];
        if more {
            level.claimed += 1;
            self.claimed += 1;
        } else {
            level.claimed -= 1;
            self.claimed -= 1;
        }
    }

    /// Queues a claimed task again, where it was; `false` if it is not there or not claimed.
    pub(crate) fn give_back(&mut self, id: TaskId) -> bool {
        let Some(index) = self.find(id) else { return false };
        let place = &self.table[index as usize];
        if place.standing != Standing::Claimed {
            return false;
        }
        let (class, sequence, order) = (place.class, place.sequence, place.order);
        self.count_claimed(class.priority, false);
        let level = &mut self.levels[class.priority.index()];
        level.queued += 1;
        self.queued += 1;
        if let Some(deadline) = class.deadline {
            level.dated.insert((deadline, sequence), index);
            self.table[index as usize].standing = Standing::Dated;
            return true;
        }
        // What was claimed was the oldest, so its place is near the front.
        let (mut before, mut next) = (NIL, level.oldest);
        while next != NIL && self.table[next as usize].order < order {
            (before, next) = (next, self.table[next as usize].next);
        }
        if before == NIL {
            level.oldest = index;
        } else {
            self.table[before as usize].next = index;
        }
        if next == NIL {
            level.newest = index;
        } else {
            self.table[next as usize].before = index;
        }
        let place = &mut self.table[index as usize];
        (place.before, place.next, place.standing) = (before, next, Standing::Listed);
        true
    }

    /// Learns that a claimed task has been started at a time; none if it is not there or not claimed.
    pub(crate) fn begin(&mut self, id: TaskId, started: Instant) -> Option<Next<'_, T>> {
        let index = self.find(id)?;
        let place = &self.table[index as usize];
        if place.standing != Standing::Claimed {
            return None;
        }
        self.count_claimed(place.class.priority, false);
        self.table[index as usize].standing = Standing::Held;
        Some(self.run(index, started))
    }

    /// Takes a queued task out of its list or map; it is held then.
    fn unlink(&mut self, index: u32) {
        let place = &mut self.table[index as usize];
        let (before, next) = (place.before, place.next);
        let level = &mut self.levels[place.class.priority.index()];
        match place.standing {
            Standing::Listed => {
                place.before = NIL;
                place.next = NIL;
                place.standing = Standing::Held;
                if before == NIL {
                    level.oldest = next;
                } else {
                    self.table[before as usize].next = next;
                }
                if next == NIL {
                    level.newest = before;
                } else {
                    self.table[next as usize].before = before;
                }
            }
            Standing::Dated => {
                let deadline = place.class.deadline.expect("only such tasks are in the map");
                level.dated.remove(&(deadline, place.sequence));
                place.standing = Standing::Held;
            }
            Standing::Free | Standing::Held | Standing::Claimed | Standing::Running => return,
        }
        level.queued -= 1;
        self.queued -= 1;
        if level.queued == 0 {
            level.passed = 0;
        }
    }

    fn run(&mut self, index: u32, now: Instant) -> Next<'_, T> {
        self.unlink(index);
        let class = self.table[index as usize].class;
        self.count_waiting(class, false);
        let place = &mut self.table[index as usize];
        place.standing = Standing::Running;
        let waited = now.saturating_duration_since(place.since);
        place.since = now;
        Next {
            id: TaskId::new(self.lane, index, place.sequence),
            priority: class.priority,
            waited,
            task: place.task.as_mut().expect("a used place has a task"),
        }
    }

    /// Starts the next task of the levels down to `least`.
    ///
    /// Ageing counts only where all levels are asked for: who serves a few levels with threads of
    /// their own takes nothing from the others.
    pub(crate) fn pop(&mut self, least: Priority, now: Instant) -> Option<Next<'_, T>> {
        if self.queued == 0 {
            return None;
        }
        let top = self.levels[..=least.index()].iter().position(|level| level.queued > 0)?;
        let chosen = if least == Priority::Low { self.chosen(top, now) } else { top };
        let index = self.first_due(chosen)?;
        Some(self.run(index, now))
    }

    /// Returns the level that goes next, `top` or an aged one, and keeps count of who was passed.
    fn chosen(&mut self, top: usize, now: Instant) -> usize {
        let aged = std::array::from_fn::<bool, 4, _>(|index| {
            let target = self.levels[index].target;
            let oldest = if index > top { self.oldest(index) } else { None };
            oldest.is_some_and(|oldest| now.saturating_duration_since(oldest) >= target)
        });
        let number = aged.iter().filter(|aged| **aged).count() as u32;
        self.levels[top].passed = 0;
        if number == 0 && self.levels.iter().all(|level| level.passed == 0) {
            return top;
        }
        let mut chosen = top;
        let levels = || aged.iter().enumerate().skip(top + 1);
        for (index, aged) in levels() {
            let passed = self.levels[index].passed;
            // The top level has passed nobody, so it loses to any that is through.
            if *aged && passed >= SHARE - number && passed > self.levels[chosen].passed {
                chosen = index;
            }
        }
        for (index, aged) in levels() {
            let level = &mut self.levels[index];
            level.passed = if *aged && index != chosen { level.passed + 1 } else { 0 };
        }
        chosen
    }

    /// Returns when the oldest queued task of a level was queued.
    fn oldest(&self, level: usize) -> Option<Instant> {
        let level = &self.levels[level];
        if level.queued == 0 {
            return None;
        }
        let listed = (level.oldest != NIL).then_some(level.oldest);
        let dated = level.dated.first_key_value().map(|(_, &index)| index);
        listed.into_iter().chain(dated).map(|index| self.table[index as usize].since).min()
    }

    /// Returns the task of a level that is due first.
    fn first_due(&self, level: usize) -> Option<u32> {
        let level = &self.levels[level];
        let listed = if level.newest_first { level.newest } else { level.oldest };
        let Some((&(deadline, _), &dated)) = level.dated.first_key_value() else {
            return (listed != NIL).then_some(listed);
        };
        if level.oldest == NIL {
            return Some(dated);
        }
        // The oldest decides even where the newest is served: turning the list round changes who of
        // them goes, not how they share with tasks that have deadlines.
        let due = self.table[level.oldest as usize].since.checked_add(level.target);
        Some(if due.is_none_or(|due| deadline < due) { dated } else { listed })
    }

    /// Starts a given queued task, out of its order; `None` if it is not queued.
    pub(crate) fn start(&mut self, id: TaskId, now: Instant) -> Option<Next<'_, T>> {
        let index = self.find(id)?;
        match self.table[index as usize].standing {
            Standing::Listed | Standing::Dated => Some(self.run(index, now)),
            Standing::Free | Standing::Held | Standing::Claimed | Standing::Running => None,
        }
    }

    /// Holds a running task again, for another attempt.
    pub(crate) fn hold(&mut self, id: TaskId, now: Instant) -> bool {
        let Some(index) = self.find(id) else { return false };
        let place = &mut self.table[index as usize];
        if place.standing != Standing::Running {
            return false;
        }
        place.standing = Standing::Held;
        place.since = now;
        let class = place.class;
        self.count_waiting(class, true);
        true
    }

    /// Ends a running task and returns it with the time that it ran.
    pub(crate) fn finish(&mut self, id: TaskId, now: Instant) -> Option<(T, Class, Duration)> {
        let index = self.find(id)?;
        let place = &self.table[index as usize];
        if place.standing != Standing::Running {
            return None;
        }
        let (class, ran) = (place.class, now.saturating_duration_since(place.since));
        Some((self.vacate(index)?, class, ran))
    }

    /// Takes out a task that is queued, claimed or held, not one that runs.
    ///
    /// Whoever takes out a claimed one has made sure that it has not been started.
    pub(crate) fn remove(&mut self, id: TaskId) -> Option<(T, Class)> {
        let index = self.find(id)?;
        let class = self.table[index as usize].class;
        match self.table[index as usize].standing {
            Standing::Running => return None,
            Standing::Claimed => self.count_claimed(class.priority, false),
            Standing::Free | Standing::Held | Standing::Listed | Standing::Dated => {
                self.unlink(index);
            }
        }
        self.count_waiting(class, false);
        Some((self.vacate(index)?, class))
    }

    /// Ends a claimed task that started and ended meanwhile; returns it, how long it waited and how long it ran.
    ///
    /// None if it is not there or not claimed.
    pub(crate) fn finish_claimed(
        &mut self,
        id: TaskId,
        started: Instant,
        ended: Instant,
    ) -> Option<(T, Duration, Duration)> {
        let index = self.find(id)?;
        let place = &self.table[index as usize];
        if place.standing != Standing::Claimed {
            return None;
        }
        let (class, waited) = (place.class, started.saturating_duration_since(place.since));
        self.count_claimed(class.priority, false);
        self.count_waiting(class, false);
        Some((self.vacate(index)?, waited, ended.saturating_duration_since(started)))
    }

    fn vacate(&mut self, index: u32) -> Option<T> {
        let place = &mut self.table[index as usize];
        place.standing = Standing::Free;
        place.next = self.free;
        self.free = index;
        let task = place.task.take();
        self.used -= 1;
        self.used_in[block(index)] -= 1;
        task
    }

    /// Cuts off places at the end of the table that nobody has used since the last call, if they are most
    /// of it, and returns what is to be dropped without the lock.
    ///
    /// To be called now and then: bursts that come often then find their places again, and a crowd that was
    /// there once leaves nothing behind. A task cannot be moved, since its id names its place, so one near the
    /// end keeps all before it.
    ///
    /// # Cost
    ///
    /// Nothing as a rule; otherwise it moves the places that stay, at most half of them.
    pub(crate) fn shrink(&mut self) -> Vec<Place<T>> {
        let used = self.used_in.iter().rposition(|used| *used > 0).map_or(0, |block| 2 << block);
        let keep = std::mem::take(&mut self.reach).max(used).max(KEEP);
        if keep > self.table.len() / 2 {
            return Vec::new();
        }
        let mut table = Vec::with_capacity(keep);
        self.free = NIL;
        for place in &mut self.table[..keep] {
            let free = Place::free(place.since);
            table.push(std::mem::replace(place, free));
        }
        // The first places are taken first, so that the end becomes free again.
        for (index, place) in table.iter_mut().enumerate().rev() {
            if place.standing == Standing::Free {
                place.next = std::mem::replace(&mut self.free, index as u32);
            }
        }
        std::mem::replace(&mut self.table, table)
    }

    /// Finds the newest queued task of the lowest level below `priority`.
    pub(crate) fn evictable(&self, priority: Priority) -> Option<TaskId> {
        let level = self.levels[priority.index() + 1..].iter().rev().find(|it| it.queued > 0)?;
        let last = level.dated.last_key_value().map(|(_, &index)| index);
        let index = if level.newest == NIL { last? } else { level.newest };
        Some(TaskId::new(self.lane, index, self.table[index as usize].sequence))
    }

    /// Tasks that are queued in the levels below `priority`.
    pub(crate) fn queued_below(&self, priority: Priority) -> usize {
        self.levels[priority.index() + 1..].iter().map(|level| level.queued).sum()
    }

    /// How many waiting tasks are too many for `tasks` more.
    pub(crate) fn excess(&self, tasks: usize) -> usize {
        (self.waiting + tasks).saturating_sub(self.bounds.lane_tasks)
    }

    /// Returns the sequence number of the last task that came.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns how long tasks of a level may wait before it is aged.
    pub(crate) fn target_of(&self, priority: Priority) -> Duration {
        self.levels[priority.index()].target
    }

    /// Returns the oldest queued task of the level and since when it waits.
    pub(crate) fn oldest_of(&self, priority: Priority) -> Option<Instant> {
        self.oldest(priority.index())
    }

    /// Returns the oldest task without a deadline of the level.
    pub(crate) fn oldest_listed(&self, priority: Priority) -> Option<(TaskId, Instant)> {
        let index = self.levels[priority.index()].oldest;
        let place = self.table.get(index as usize)?;
        Some((TaskId::new(self.lane, index, place.sequence), place.since))
    }

    /// Makes a level serve its newest task first, or its oldest again.
    pub(crate) fn set_newest_first(&mut self, priority: Priority, newest_first: bool) {
        self.levels[priority.index()].newest_first = newest_first;
    }

    /// Visits the tasks in the order of their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Seen<'_, T>> {
        self.page(0, self.table.len())
    }

    /// Visits the tasks of `length` places from `first` on.
    pub(crate) fn page(&self, first: usize, length: usize) -> impl Iterator<Item = Seen<'_, T>> {
        let places = self.table.iter().enumerate().skip(first).take(length);
        places.filter_map(|(index, place)| {
            Some(Seen {
                id: TaskId::new(self.lane, index as u32, place.sequence),
                class: place.class,
                standing: place.standing,
                since: place.since,
                task: place.task.as_ref()?,
            })
        })
    }

    /// The places of the table, free ones too.
    pub(crate) fn places(&self) -> usize {
        self.table.len()
    }

    /// Tasks that are queued, of all levels.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Tasks that are claimed, of all levels.
    pub(crate) fn claimed(&self) -> usize {
        self.claimed
    }

    /// Tells whether a task of a level above `priority` is claimed.
    pub(crate) fn claimed_above(&self, priority: Priority) -> bool {
        self.levels[..priority.index()].iter().any(|level| level.claimed > 0)
    }

    /// Tells whether a task of a level below `priority` is claimed.
    pub(crate) fn claimed_below(&self, priority: Priority) -> bool {
        self.levels[priority.index() + 1..].iter().any(|level| level.claimed > 0)
    }

    /// Returns the highest level that has a queued task.
    pub(crate) fn top(&self) -> Option<Priority> {
        Priority::ALL.into_iter().find(|priority| self.levels[priority.index()].queued > 0)
    }

    /// Tasks that are queued in a level.
    pub(crate) fn queued_in(&self, priority: Priority) -> usize {
        self.levels[priority.index()].queued
    }

    /// Tasks that are queued or held in a level, and the bytes that they have declared.
    pub(crate) fn waiting_in(&self, priority: Priority) -> (usize, u64) {
        let level = &self.levels[priority.index()];
        (level.waiting, level.bytes)
    }

    /// Tasks that are held, queued or running.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Tasks that run.
    pub(crate) fn running(&self) -> usize {
        self.used - self.waiting
    }
}
