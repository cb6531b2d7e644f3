//! Workers of this process, tasks or children, as many as advised.
//!
//! A worker is a guard that stops it when dropped, and a backend of the balancer. The youngest goes first.
//! It is drained before it is stopped, so that no call is cut off unless it outlasts the time for that.
//! A worker that ended by itself leaves the set when the pool is next told to do something.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{ActuateError, Actuator};
use crate::advice::ScaleAdvice;
use crate::backend::Backend;
use crate::balancer::Balancer;

/// A running worker; it stops when it is dropped.
pub trait Worker: Send + 'static {
    /// Tells whether it has ended by itself.
    fn has_ended(&mut self) -> bool;
}

/// A task as a worker; it is aborted when this is dropped.
#[derive(Debug)]
pub struct TaskWorker(JoinHandle<()>);

impl TaskWorker {
    /// Starts a task.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }
}

impl Worker for TaskWorker {
    fn has_ended(&mut self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for TaskWorker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A child process as a worker; it is killed when this is dropped.
#[derive(Debug)]
pub struct ChildWorker(Child);

impl ChildWorker {
    /// Starts a process.
    ///
    /// # Errors
    ///
    /// Those of [`Command::spawn`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        command.kill_on_drop(true).spawn().map(Self)
    }

    /// Returns the process, for its pipes and its id.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Worker for ChildWorker {
    fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

/// How often a pool looks whether what it drains is idle.
const LOOK: Duration = Duration::from_millis(20);

/// Starts and stops workers of this process, each of which is a backend.
///
/// `start` gets the number of the worker, from one on, and returns its backend when that can be called,
/// and the guard that stops it. When the pool is dropped, its backends leave the balancer and its
/// workers stop.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use loadbalancer::{Backend, Balancer, ScaleTask, Scaling, TaskWorker, WorkerPool};
///
/// let balancer = Balancer::builder().build()?;
/// let pool = WorkerPool::new(&balancer, async |number| {
///     // Whoever gets a lease of `worker-1` sends its work to this task.
///     let worker = TaskWorker::spawn(std::future::pending());
///     Ok((Backend::new(format!("worker-{number}")).max_in_flight(4), worker))
/// });
/// let scaling = Scaling { fewest: 2, most: 8, ..Scaling::default() };
/// let task = ScaleTask::start(&balancer, scaling, Duration::from_secs(1), pool);
/// # drop(task);
/// # Ok(())
/// # }
/// ```
pub struct WorkerPool<F, W> {
    balancer: Balancer,
    start: F,
    /// In the order in which they were started.
    workers: Vec<Running<W>>,
    workers_max: usize,
    start_max: Duration,
    drain_max: Duration,
    started: u64,
}

struct Running<W> {
    id: Arc<str>,
    /// It is drained and gets no new leases.
    stopping: bool,
    worker: W,
}

impl<F, W> WorkerPool<F, W> {
    /// Makes a pool without workers.
    pub fn new<S>(balancer: &Balancer, start: F) -> Self
    where
        F: FnMut(u64) -> S + Send + 'static,
        S: Future<Output = io::Result<(Backend, W)>> + Send,
        W: Worker,
    {
        Self {
            balancer: balancer.clone(),
            start,
            workers: Vec::new(),
            workers_max: 16,
            start_max: Duration::from_secs(30),
            drain_max: Duration::from_secs(10),
            started: 0,
        }
    }

    /// Sets how many workers there are at most, whatever is advised; 16 unless told.
    #[must_use]
    pub fn workers_max(mut self, workers: usize) -> Self {
        self.workers_max = workers;
        self
    }

    /// Sets how long a worker may take to start; 30 s unless told.
    #[must_use]
    pub fn start_max(mut self, time: Duration) -> Self {
        self.start_max = time;
        self
    }

    /// Sets how long calls may go on in workers that are to stop; 10 s unless told.
    #[must_use]
    pub fn drain_max(mut self, time: Duration) -> Self {
        self.drain_max = time;
        self
    }

    /// Returns how many workers it has that are not about to stop.
    pub fn workers(&self) -> usize {
        self.workers.iter().filter(|running| !running.stopping).count()
    }

    /// Takes out of the set and drops those that are chosen.
    fn remove(&mut self, mut chosen: impl FnMut(&mut Running<W>) -> bool) {
        let balancer = &self.balancer;
        self.workers.retain_mut(|running| {
            let goes = chosen(running);
            if goes {
                balancer.remove(&running.id);
            }
            !goes
        });
    }
}

impl<F, S, W> WorkerPool<F, W>
where
    F: FnMut(u64) -> S + Send + 'static,
    S: Future<Output = io::Result<(Backend, W)>> + Send,
    W: Worker,
{
    /// Starts or stops workers until there are so many, or as many as there may be.
    ///
    /// # Errors
    ///
    /// [`ActuateError::Start`] and [`ActuateError::Backend`]; those that were started before stay.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops a worker that was about to start. Workers that were being drained stay
    /// so, and the next call stops them.
    pub async fn resize(&mut self, workers: usize) -> Result<(), ActuateError> {
        self.remove(|running| running.worker.has_ended());
        let workers = workers.min(self.workers_max);
        let surplus = self.workers().saturating_sub(workers);
        let youngest = self.workers.iter_mut().rev().filter(|running| !running.stopping);
        for running in youngest.take(surplus) {
            running.stopping = true;
            self.balancer.drain(&running.id);
        }
        let mut outcome = Ok(());
        while self.workers() < workers && outcome.is_ok() {
            outcome = self.start_one().await;
        }
        self.stop_drained().await;
        outcome
    }

    async fn start_one(&mut self) -> Result<(), ActuateError> {
        self.started += 1;
        let number = self.started;
        let late = |_| {
            let text = format!("it is not ready after {:?}", self.start_max);
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        };
        let started = timeout(self.start_max, (self.start)(number)).await.unwrap_or_else(late);
        let (backend, worker) = started.map_err(|source| ActuateError::Start { number, source })?;
        let id = Arc::clone(backend.id());
        self.balancer.insert(backend).map_err(|source| ActuateError::Backend { number, source })?;
        self.workers.push(Running { id, stopping: false, worker });
        Ok(())
    }

    /// Waits for the calls of those that are to stop, and stops them.
    async fn stop_drained(&mut self) {
        let deadline = Instant::now() + self.drain_max;
        while self.workers.iter().any(|running| running.stopping) {
            let backends = self.balancer.backends();
            let is_late = Instant::now() >= deadline;
            self.remove(|running| {
                let is_busy = |it: &crate::BackendStats| it.id == running.id && it.in_flight > 0;
                running.stopping && (is_late || !backends.iter().any(is_busy))
            });
            if self.workers.iter().any(|running| running.stopping) {
                sleep(LOOK).await;
            }
        }
    }
}

impl<F, S, W> Actuator for WorkerPool<F, W>
where
    F: FnMut(u64) -> S + Send + 'static,
    S: Future<Output = io::Result<(Backend, W)>> + Send,
    W: Worker,
{
    /// Adds or takes away the difference between what is and what should be.
    ///
    /// The set may hold backends that are not of this pool, and workers of it may be ejected.
    async fn act(&mut self, advice: ScaleAdvice) -> Result<(), ActuateError> {
        // What ended by itself was not counted by the advice either.
        self.remove(|running| running.worker.has_ended());
        let workers = (self.workers() + advice.desired).saturating_sub(advice.current);
        self.resize(workers).await
    }
}

impl<F, W> Drop for WorkerPool<F, W> {
    fn drop(&mut self) {
        self.remove(|_| true);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::advice::ScaleReason;
    use crate::backend::BackendState;
    use crate::pick::Pick;

    fn balancer() -> Balancer {
        Balancer::builder().build().expect("a valid set")
    }

    fn ids(balancer: &Balancer) -> Vec<String> {
        balancer.backends().iter().map(|it| it.id.to_string()).collect()
    }

    /// Counts itself while it runs.
    struct Counted(Arc<AtomicUsize>);

    impl Counted {
        fn new(running: &Arc<AtomicUsize>) -> Self {
            running.fetch_add(1, Ordering::SeqCst);
            Self(Arc::clone(running))
        }
    }

    impl Worker for Counted {
        fn has_ended(&mut self) -> bool {
            false
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_youngest_is_drained_and_then_stopped_and_the_end_of_the_pool_stops_all() {
        let (balancer, running) = (balancer(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&running);
        let mut pool = WorkerPool::new(&balancer, move |number| {
            let worker = Counted::new(&count);
            async move { Ok((Backend::new(format!("w{number}")), worker)) }
        })
        .workers_max(3);
        pool.resize(9).await.expect("all start");
        assert_eq!(
            (ids(&balancer), pool.workers()),
            (["w1", "w2", "w3"].map(String::from).into(), 3)
        );
        let call = balancer.try_acquire(&Pick::new().prefer("w3")).expect("there is room");
        let began = Instant::now();
        let (resized, ()) = tokio::join!(pool.resize(2), async {
            sleep(Duration::from_secs(2)).await;
            assert_eq!(balancer.backends()[2].state, BackendState::Draining);
            assert_eq!(running.load(Ordering::SeqCst), 3, "a call goes on");
            drop(call);
        });
        resized.expect("nothing to start");
        assert!(began.elapsed() < Duration::from_secs(3), "it goes when the call is over");
        assert_eq!((ids(&balancer).len(), running.load(Ordering::SeqCst)), (2, 2));
        let _endless = balancer.try_acquire(&Pick::new().prefer("w2")).expect("there is room");
        pool.resize(1).await.expect("nothing to start");
        assert_eq!(began.elapsed().as_secs(), 12, "a call may go on for 10 s");
        assert_eq!(ids(&balancer), ["w1"]);
        drop(pool);
        assert_eq!((ids(&balancer).len(), running.load(Ordering::SeqCst)), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_resize_is_finished_by_the_next() {
        let balancer = balancer();
        let mut pool = WorkerPool::new(&balancer, async |number| {
            Ok((Backend::new(format!("w{number}")), TaskWorker::spawn(pending())))
        });
        pool.resize(2).await.expect("all start");
        let call = balancer.try_acquire(&Pick::new().prefer("w2")).expect("there is room");
        assert!(timeout(Duration::from_secs(1), pool.resize(1)).await.is_err());
        assert_eq!((pool.workers(), ids(&balancer).len()), (1, 2));
        drop(call);
        pool.resize(2).await.expect("one starts");
        assert_eq!(ids(&balancer), ["w1", "w3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn advice_is_a_difference_and_what_ended_by_itself_is_replaced() {
        let balancer = balancer();
        balancer.insert(Backend::new("elsewhere")).expect("a valid backend");
        let mut pool = WorkerPool::new(&balancer, async |number| {
            // The second ends after a while.
            let task = async move {
                match number {
                    2 => sleep(Duration::from_secs(5)).await,
                    _ => pending().await,
                }
            };
            Ok((Backend::new(format!("w{number}")), TaskWorker::spawn(task)))
        });
        let advice =
            |desired, current| ScaleAdvice { desired, current, reason: ScaleReason::OutOfBounds };
        pool.act(advice(3, 1)).await.expect("two start");
        assert_eq!(ids(&balancer), ["elsewhere", "w1", "w2"]);
        sleep(Duration::from_secs(6)).await;
        // It was ejected meanwhile, so two are ready; three are wanted.
        pool.act(advice(3, 2)).await.expect("one starts");
        assert_eq!(ids(&balancer), ["elsewhere", "w1", "w3"]);
        pool.act(advice(0, 3)).await.expect("nothing to start");
        assert_eq!(ids(&balancer), ["elsewhere"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_start_in_time_or_at_all_is_an_error_with_its_number() {
        let balancer = balancer();
        let mut pool = WorkerPool::new(&balancer, async |number| {
            match number {
                1 => {}
                2 => return Err(io::Error::other("no memory")),
                3 => pending().await,
                _ => return Ok((Backend::new(""), TaskWorker::spawn(pending()))),
            }
            Ok((Backend::new(format!("w{number}")), TaskWorker::spawn(pending())))
        });
        let mut told = Vec::new();
        for _ in 0..3 {
            told.push(pool.resize(2).await.expect_err("only the first starts").to_string());
        }
        assert_eq!(told[0], "worker 2 did not start: no memory");
        assert_eq!(told[1], "worker 3 did not start: it is not ready after 30s");
        assert!(told[2].starts_with("the backend of worker 4 cannot be used: "), "{told:?}");
        assert_eq!(ids(&balancer), ["w1"]);
    }
}
