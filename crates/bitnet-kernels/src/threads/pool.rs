//! A thread pool for work of a few microseconds: fork and join in less than one.
//!
//! Workers spin on a counter between jobs, since a token is hundreds of short jobs a few
//! microseconds apart, and park after [`SPIN`] without a job, so that an idle program keeps no core
//! busy. With more threads than CPUs they park almost at once, because a spinning thread would then
//! keep a working one from running.
//!
//! A worker may be late: asleep, or without a CPU because other programs have them all. So each
//! thread claims a share before it begins it, and the calling thread, when its own share is done,
//! claims and runs the shares that no worker has begun. It waits only for workers that have begun.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::threads::disjoint::Disjoint;

/// How long a worker waits for the next job before it parks.
pub const SPIN: Duration = Duration::from_millis(1);

/// Rounds of spinning, some tens of nanoseconds each, before a waiting thread offers its CPU to
/// others: the thread it waits for may be among them when other programs keep the machine busy.
const SPINS_BEFORE_YIELD: u32 = 512;

/// The job of a worker: called with the worker's index, 0 being the thread that called
/// [`Pool::run`].
type Job = *const (dyn Fn(usize) + Sync);

/// Puts a value on its own cache line (two, since CPUs fetch them in pairs), so that threads do not
/// slow each other by sharing one.
#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    /// Grows by one with each job.
    epoch: Padded<AtomicU32>,
    /// For each worker the last epoch in which a thread claimed its share.
    claimed: Vec<Padded<AtomicU32>>,
    /// For each worker the last epoch in which its share finished.
    done: Vec<Padded<AtomicU32>>,
    /// Whether each worker is parked, or about to be.
    parked: Vec<Padded<AtomicBool>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    spin: Duration,
    job: UnsafeCell<Option<Job>>,
}

// SAFETY: `job` is written only by the thread that owns the pool, while no worker is between
// claiming a share and finishing it; the store and load of `epoch` order that write before the
// workers' reads. All other fields are atomic.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is only dereferenced while `Pool::run`, which borrows the job,
// is waiting.
unsafe impl Send for Shared {}

impl Shared {
    /// Claims a worker's share of an epoch: true for the first thread that calls this, false for
    /// all others.
    fn claim(&self, worker: usize, epoch: u32) -> bool {
        let before = epoch.wrapping_sub(1);
        self.claimed[worker]
            .0
            .compare_exchange(before, epoch, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}

/// A fixed set of threads that run one job at a time, each on its own share.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<(Thread, Option<JoinHandle<()>>)>,
    /// One job at a time: the pool may move to another thread but not be shared.
    not_sync: PhantomData<Cell<()>>,
}

impl Pool {
    /// A pool of `num_threads` threads (at least 1), including the calling thread.
    #[must_use]
    pub fn new(num_threads: usize) -> Self {
        let num_workers = num_threads.max(1) - 1;
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = if num_threads > available {
            Duration::from_micros(5)
        } else {
            SPIN
        };
        let shared = Arc::new(Shared {
            epoch: Padded(AtomicU32::new(0)),
            claimed: (0..num_workers)
                .map(|_| Padded(AtomicU32::new(0)))
                .collect(),
            done: (0..num_workers)
                .map(|_| Padded(AtomicU32::new(0)))
                .collect(),
            parked: (0..num_workers)
                .map(|_| Padded(AtomicBool::new(false)))
                .collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            spin,
            job: UnsafeCell::new(None),
        });
        let threads = (0..num_workers)
            .map_while(|worker| {
                let shared = Arc::clone(&shared);
                let name = format!("bitnet-{}", worker + 1);
                let handle = std::thread::Builder::new()
                    .name(name)
                    .spawn(move || work(&shared, worker))
                    .ok()?;
                Some((handle.thread().clone(), Some(handle)))
            })
            .collect();
        Self {
            shared,
            threads,
            not_sync: PhantomData,
        }
    }

    /// Number of threads that run a job: fewer than requested if the system refused to start more.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `job(0)`, `job(1)`, … one for each thread, and returns when all have finished. The
    /// calling thread runs `job(0)`, then the shares that no other thread has begun by then.
    ///
    /// # Panics
    /// If the job panicked on any thread.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.threads.is_empty() {
            return job(0);
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. `JoinOnDrop` below waits for every worker that has
        // claimed a share to finish with the pointer, and claims the remaining shares, before this
        // function returns or unwinds. No worker reads `job` now: all shares of the last epoch are
        // finished, and none of this one can be claimed yet.
        unsafe {
            *shared.job.get() = Some(std::mem::transmute::<
                *const (dyn Fn(usize) + Sync + '_),
                *const (dyn Fn(usize) + Sync + 'static),
            >(job));
        }
        let epoch = shared.epoch.0.load(Ordering::Relaxed).wrapping_add(1);
        // A swap, not a store: some emulators let a later load pass a sequentially consistent
        // store.
        shared.epoch.0.swap(epoch, Ordering::SeqCst);
        for ((thread, _), parked) in self.threads.iter().zip(&shared.parked) {
            if parked.0.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        let join = JoinOnDrop { pool: self, epoch };
        job(0);
        for worker in 0..self.threads.len() {
            if shared.claim(worker, epoch) {
                shared.done[worker].0.store(epoch, Ordering::Relaxed);
                job(worker + 1);
            }
        }
        drop(join);
        if shared.panicked.swap(false, Ordering::AcqRel) {
            resume_unwind(Box::new("a kernel panicked on a worker thread"));
        }
    }

    /// Splits `0..len` into one contiguous share for each thread, in multiples of `unit`, and runs
    /// `job(share)` on each.
    pub fn split(&self, len: usize, unit: usize, job: &(dyn Fn(Range<usize>) + Sync)) {
        let num_threads = self.num_threads();
        if num_threads == 1 || len <= unit {
            return job(0..len);
        }
        self.run(&|index| {
            let share = Self::share(len, unit, index, num_threads);
            if !share.is_empty() {
                job(share);
            }
        });
    }

    /// Splits the rows of `data`, `[rows, row_len]`, as [`Pool::split`] does, and runs `job(rows,
    /// their elements)` on each share.
    ///
    /// # Panics
    /// If `row_len` is 0 or does not divide `data`.
    pub fn split_mut<T: Send>(
        &self,
        data: &mut [T],
        row_len: usize,
        unit: usize,
        job: &(dyn Fn(Range<usize>, &mut [T]) + Sync),
    ) {
        assert!(
            row_len > 0 && data.len().is_multiple_of(row_len),
            "{} elements in rows of {row_len}",
            data.len()
        );
        let rows = data.len() / row_len;
        let data = Disjoint::new(data);
        self.split(rows, unit, &|share| {
            // SAFETY: each row is in one thread's share.
            let part = unsafe { data.slice(share.start * row_len..share.end * row_len) };
            job(share, part);
        });
    }

    /// Splits `0..len` into pieces, multiples of `unit`, gives each piece to the first free thread,
    /// and runs `job(piece)`.
    ///
    /// For long jobs that need no sequential stream of memory: cores differ in speed, and other
    /// programs take time from some of them. Pieces get smaller towards the end, so that all
    /// threads finish together.
    pub fn deal(&self, len: usize, unit: usize, job: &(dyn Fn(Range<usize>) + Sync)) {
        let num_threads = self.num_threads();
        if num_threads == 1 || len <= unit {
            return job(0..len);
        }
        let units = len.div_ceil(unit);
        let end = |first: usize| first + ((units - first) / (2 * num_threads)).max(1);
        let next = AtomicUsize::new(0);
        self.run(&|_| {
            let take = |first: usize| (first < units).then(|| end(first));
            while let Ok(first) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
                job(first * unit..len.min(end(first) * unit));
            }
        });
    }

    /// The `index`-th of `count` contiguous shares of `0..len`, each but the last a multiple of
    /// `unit`.
    pub(crate) fn share(len: usize, unit: usize, index: usize, count: usize) -> Range<usize> {
        let units = len.div_ceil(unit);
        let edge = |i: usize| (units * i / count * unit).min(len);
        edge(index)..edge(index + 1)
    }
}

/// Waits for the workers even if a share panics on the calling thread, since they borrow from its
/// stack frame.
struct JoinOnDrop<'a> {
    pool: &'a Pool,
    epoch: u32,
}

impl Drop for JoinOnDrop<'_> {
    fn drop(&mut self) {
        for worker in 0..self.pool.threads.len() {
            if self.pool.shared.claim(worker, self.epoch) {
                // After a panic this thread does not run its share.
                self.pool.shared.done[worker]
                    .0
                    .store(self.epoch, Ordering::Relaxed);
                continue;
            }
            let done = &self.pool.shared.done[worker].0;
            let mut spins = 0u32;
            while done.load(Ordering::Acquire) != self.epoch {
                spins += 1;
                if spins < SPINS_BEFORE_YIELD {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        for (thread, handle) in &mut self.threads {
            thread.unpark();
            if let Some(handle) = handle.take() {
                // A worker catches the panics of its jobs, so there is nothing to report here.
                let _ = handle.join();
            }
        }
    }
}

fn work(shared: &Shared, worker: usize) {
    let mut seen = 0;
    loop {
        seen = wait_for_job(shared, worker, seen);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        if !shared.claim(worker, seen) {
            continue;
        }
        // SAFETY: the share is claimed, so `run` has written `job` and waits for `done` before the
        // borrow it came from ends.
        let job = unsafe { (*shared.job.get()).map(|job| &*job) };
        let result = job.map(|job| catch_unwind(AssertUnwindSafe(|| job(worker + 1))));
        if matches!(result, Some(Err(_))) {
            shared.panicked.store(true, Ordering::Release);
        }
        shared.done[worker].0.store(seen, Ordering::Release);
    }
}

/// Returns the new epoch once it differs from `seen`: spins first, then parks.
fn wait_for_job(shared: &Shared, worker: usize, seen: u32) -> u32 {
    let start = Instant::now();
    loop {
        for _ in 0..SPINS_BEFORE_YIELD {
            let epoch = shared.epoch.0.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= shared.spin {
            break;
        }
        std::thread::yield_now();
    }
    // Both sides use sequential consistency: either this thread sees the new epoch, or `run` sees
    // the flag and unparks it.
    shared.parked[worker].0.swap(true, Ordering::SeqCst);
    let mut epoch = shared.epoch.0.load(Ordering::SeqCst);
    while epoch == seen {
        std::thread::park();
        epoch = shared.epoch.0.load(Ordering::SeqCst);
    }
    shared.parked[worker].0.store(false, Ordering::SeqCst);
    epoch
}

/// The default number of threads: one for each physical core, but no more than the process's CPU
/// affinity and cgroup quota allow.
#[must_use]
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().clamp(1, allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_run_once_with_any_number_of_threads() {
        for num_threads in [1, 2, 3, 7] {
            let pool = Pool::new(num_threads);
            for len in [0, 1, 31, 32, 33, 1000] {
                let counts: Vec<AtomicUsize> = (0..len).map(|_| AtomicUsize::new(0)).collect();
                let count = |range: Range<usize>| {
                    assert!(range.start.is_multiple_of(8));
                    for i in range {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    }
                };
                pool.split(len, 8, &count);
                pool.deal(len, 8, &count);
                assert!(
                    counts.iter().all(|c| c.load(Ordering::Relaxed) == 2),
                    "{num_threads} threads, {len} items"
                );
            }
        }
    }

    #[test]
    fn every_row_is_given_to_one_share() {
        for num_threads in [1, 3] {
            let pool = Pool::new(num_threads);
            let mut rows = vec![0; 3 * 37];
            pool.split_mut(&mut rows, 3, 4, &|share, rows| {
                for (index, row) in share.zip(rows.chunks_exact_mut(3)) {
                    row.iter_mut().for_each(|value| *value += index);
                }
            });
            assert!(rows.iter().enumerate().all(|(at, value)| *value == at / 3));
        }
    }

    #[test]
    fn a_job_runs_after_the_workers_have_parked() {
        let pool = Pool::new(2);
        let count = AtomicUsize::new(0);
        for _ in 0..3 {
            std::thread::sleep(SPIN * 5);
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(count.load(Ordering::Relaxed), 3 * pool.num_threads());
    }

    #[test]
    fn a_panic_on_a_worker_reaches_the_caller_and_the_pool_stays_usable() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|index| assert!(index == 0, "worker"))
        }));
        assert_eq!(result.is_err(), pool.num_threads() > 1);
        let count = AtomicUsize::new(0);
        pool.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), pool.num_threads());
    }
}
