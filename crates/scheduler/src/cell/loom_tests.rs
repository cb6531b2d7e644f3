//! Every interleaving of running, ending and awaiting one task, under loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p scheduler --release --lib loom`

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use loom::sync::Arc;
use loom::thread;

use super::*;

/// Counts how often it was woken.
struct Bell(AtomicUsize);

impl std::task::Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn bell() -> (std::sync::Arc<Bell>, Waker) {
    let bell = std::sync::Arc::new(Bell(AtomicUsize::new(0)));
    let waker = Waker::from(std::sync::Arc::clone(&bell));
    (bell, waker)
}

#[test]
fn loom_a_task_that_is_cancelled_while_it_starts_ends_once() {
    loom::model(|| {
        let cell = Arc::new(Cell::<u32, u32>::new(7));
        let runner = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                let work = cell.begin()?;
                cell.end(Ok(work)).map(|(was, wake)| {
                    wake.wake();
                    was
                })
            })
        };
        let cancelled = cell.end(Err(TaskError::Cancelled)).is_some();
        let ran = runner.join().expect("it does not panic");
        assert_ne!(cancelled, ran.is_some(), "exactly one of them decides");
        let (_, waker) = bell();
        let result = cell.poll_join(&Context::from_waker(&waker));
        let expected = if cancelled { Err(TaskError::Cancelled) } else { Ok(7) };
        assert_eq!(result, Poll::Ready(expected));
    });
}

#[test]
fn loom_who_waits_is_woken_or_finds_the_result() {
    loom::model(|| {
        let cell = Arc::new(Cell::<u32, u32>::new(7));
        let runner = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                let work = cell.begin().expect("nobody else runs it");
                cell.end(Ok(work)).expect("nobody else ends it").1.wake();
            })
        };
        let (rung, waker) = bell();
        let first = cell.poll_join(&Context::from_waker(&waker));
        runner.join().expect("it does not panic");
        if first.is_pending() {
            assert_eq!(rung.0.load(SeqCst), 1, "no wake-up is lost");
            assert_eq!(cell.poll_join(&Context::from_waker(&waker)), Poll::Ready(Ok(7)));
        } else {
            assert_eq!(first, Poll::Ready(Ok(7)));
        }
    });
}

#[test]
fn loom_a_future_that_parks_is_told_that_it_was_ended() {
    loom::model(|| {
        let cell = Arc::new(Cell::<u32, u32>::new(7));
        assert_eq!(cell.begin(), Some(7));
        let ender = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                cell.end(Err(TaskError::TimedOut)).expect("nobody else ends it").1.wake();
            })
        };
        let (rung, waker) = bell();
        let parked = cell.set_runner(&waker);
        ender.join().expect("it does not panic");
        assert_eq!(rung.0.load(SeqCst), usize::from(parked), "it sees the end or is woken");
        assert!(cell.stopped());
    });
}

#[test]
fn loom_another_attempt_and_a_cancellation_do_not_both_win() {
    loom::model(|| {
        let cell = Arc::new(Cell::<u32, u32>::new(7));
        let work = cell.begin().expect("it is ready");
        let canceller = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.end(Err(TaskError::Cancelled)).map(|(was, _)| was))
        };
        let again = cell.put_back(work).is_ok();
        let was = canceller.join().expect("it does not panic");
        assert_eq!(was, Some(if again { was.expect("it ends") } else { Was::Running }));
        assert!(cell.begin().is_none(), "a task that has ended does not run again");
    });
}
