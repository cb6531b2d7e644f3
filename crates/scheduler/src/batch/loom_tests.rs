//! Every interleaving of an owner that works through its batch and somebody who recalls it, under loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p scheduler --release --lib loom`

use std::collections::BTreeSet;

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::lane::Lane;

/// What became of each task, as the lane's table would learn it.
#[derive(Default)]
struct Table {
    given_back: Vec<u64>,
    ended: BTreeSet<u64>,
    runs: Option<u64>,
}

impl Recall<TaskId, ()> for Table {
    fn give_back(&mut self, task: TaskId) {
        self.given_back.push(task.sequence());
    }

    fn ended(&mut self, done: &Done<()>) -> bool {
        assert!(self.ended.insert(done.id.sequence()), "a task ends once");
        true
    }

    fn runs(&mut self, id: TaskId, _: Instant) {
        self.runs = Some(id.sequence());
    }
}

fn id(sequence: u64) -> TaskId {
    TaskId::new(Lane::Cpu, sequence as u32, sequence)
}

/// Works through a batch of three tasks while it is recalled `recalls` times.
fn run_and_recall(recalls: usize) {
    loom::model(move || {
        let now = Instant::now();
        let batch = Arc::new(Batch::<TaskId, ()>::new());
        batch.fill(id(1), now, [id(2), id(3)].into_iter());
        let owner = {
            let batch = Arc::clone(&batch);
            thread::spawn(move || {
                let mut ran = vec![1];
                while let Some(next) = batch.next((), now, |id| *id) {
                    ran.push(next.sequence());
                }
                ran
            })
        };
        // The lane's lock is held around a recall, so there is one at a time.
        let mut table = Table::default();
        for _ in 0..recalls {
            table.runs = None;
            batch.recall(false, &mut table);
        }
        if let Some(runs) = table.runs {
            assert!(!table.ended.contains(&runs), "what runs has not ended");
        }
        let ran = owner.join().expect("it does not panic");
        // The owner's turn.
        table.runs = None;
        batch.recall(true, &mut table);
        assert_eq!(table.runs, None);
        let ended: Vec<u64> = table.ended.into_iter().collect();
        assert_eq!(ended, ran, "what ran has ended, each once");
        table.given_back.reverse();
        let all: Vec<u64> = ran.into_iter().chain(table.given_back).collect();
        assert_eq!(all, [1, 2, 3], "the others go back, in their order");
    });
}

#[test]
fn loom_a_task_of_a_batch_is_run_or_given_back() {
    run_and_recall(1);
}

#[test]
fn loom_a_batch_that_is_recalled_twice_reports_each_end_once() {
    run_and_recall(2);
}
