//! A fork-join thread pool for grids of independent programs.
//!
//! Invariants: into which ranges and pieces a grid is cut depends only on the grid and the number of
//! threads, never on timing; a run allocates nothing; when [`Pool::run`] returns, no thread
//! touches its closure any more, panics included. Waiting is a bounded spin, then sleep, so an
//! idle or stopped process burns no CPU and no result depends on how long anything takes.
//!
//! Each worker owns a mailbox of one cache line. The caller writes an order into the mailboxes of
//! the workers it needs and flips their state; workers it does not need stay asleep. Each thread takes
//! the pieces of its own range one after the other, then what is left of the others': where programs are
//! not alike, or other processes keep a worker off the cores, those who have time do its work. What no
//! worker has begun when all is done is taken back. The last worker to finish releases the caller.

use crate::cores;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// The most threads a pool may have: more than any machine has cores, small enough to fail early
/// on a typing error.
pub const MAX_THREADS: usize = 1024;

/// How long a thread spins before it sleeps: about what a wake-up costs, so waiting is never much
/// more than twice as dear as the better of the two choices. On a virtual machine with two cores
/// the median empty run took 0.2 us with a spinning worker and 109 us with a sleeping one.
const SPIN: Duration = Duration::from_micros(100);

/// Spins between two looks at the clock, which itself costs tens of nanoseconds.
const SPINS_PER_LOOK: u32 = 32;

/// Why a pool could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The number of threads is out of range.
    #[error("{0} threads were asked for; the number must be from 1 to {MAX_THREADS}")]
    Threads(usize),
    /// The system refused a thread.
    #[error("cannot start a worker thread")]
    Spawn(#[source] std::io::Error),
}

/// Why a run failed. Of several failures the one of the lowest programs is reported, so the
/// answer is the same for any number of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// A program returned this status, which is not zero.
    #[error("a kernel stopped with status {0}")]
    Status(u32),
    /// A program panicked.
    #[error("a program panicked")]
    Panicked,
}

/// What [`Pool::run`] calls: programs `lo..hi` on thread `thread_index`, giving 0 or a status.
pub type Body<'a> = dyn Fn(u64, u64, usize) -> u32 + Sync + 'a;

/// The states of a mailbox.
const IDLE: u32 = 0;
const ASLEEP: u32 = 1;
const WORK: u32 = 2;
const EXIT: u32 = 3;
const RUNNING: u32 = 4;

/// Set in `Shared::pending` while the caller sleeps.
const CALLER_ASLEEP: usize = 1 << (usize::BITS - 1);

/// What a program range came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Status(u32),
    Panicked,
}

impl Outcome {
    fn of(body: &Body<'_>, lo: u64, hi: u64, thread_index: usize) -> Self {
        match catch_unwind(AssertUnwindSafe(|| body(lo, hi, thread_index))) {
            Ok(status) => Self::Status(status),
            Err(payload) => {
                // The payload is the panicking code's own type: dropping it may panic again, and
                // that would leave the caller waiting for ever.
                if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                    std::mem::forget(second);
                }
                Self::Panicked
            }
        }
    }

    fn into_result(self) -> Result<(), RunError> {
        match self {
            Self::Status(0) => Ok(()),
            Self::Status(status) => Err(RunError::Status(status)),
            Self::Panicked => Err(RunError::Panicked),
        }
    }
}

/// Where the first failure of a thread's pieces was, and what it was.
type Failure = Option<(u64, Outcome)>;

struct Order {
    /// The caller's closure with its lifetime erased. Only read between the flip to `RUNNING` and
    /// the decrement of `pending`, during which the caller waits.
    body: Option<*const Body<'static>>,
    split: Split,
    failure: Failure,
}

/// No core.
const NOWHERE: usize = usize::MAX;

/// Aligned to two cache lines because adjacent lines are fetched in pairs.
#[repr(align(128))]
struct Mailbox {
    state: AtomicU32,
    /// Belongs to the worker while `state` is `RUNNING`, and to the caller otherwise: whoever changes
    /// `WORK` to something else has the order.
    order: UnsafeCell<Order>,
}

/// How many pieces of a thread's range have been taken; whoever takes one counts it.
#[repr(align(128))]
struct Taken(AtomicU64);

struct Shared {
    mailboxes: Box<[Mailbox]>,
    /// For each thread, the caller's first.
    taken: Box<[Taken]>,
    pending: Pending,
    spin: Duration,
}

#[repr(align(128))]
struct Pending {
    /// Workers that have not finished, and `CALLER_ASLEEP`.
    count: AtomicUsize,
    /// The core that the caller runs on; [`NOWHERE`] where that is not known, or does not matter.
    core: AtomicUsize,
    /// The thread to wake; written by the caller while no worker runs.
    caller: UnsafeCell<Option<Thread>>,
}

// SAFETY: the cells are handed back and forth by the atomics beside them: `order` by `state` and
// `pending.count`, `caller` by `count`, as the comments on them say. The closure behind
// `Order::body` is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is only followed while the caller lends the closure.
unsafe impl Send for Shared {}

/// Spins until `done` or until the time is up, and says which.
fn spin_until(spin: Duration, done: impl Fn() -> bool) -> bool {
    if done() {
        return true;
    }
    if spin.is_zero() {
        return false;
    }
    let start = Instant::now();
    loop {
        for _ in 0..SPINS_PER_LOOK {
            spin_loop();
            if done() {
                return true;
            }
        }
        if start.elapsed() >= spin {
            return false;
        }
    }
}

impl Shared {
    fn work(&self, worker: usize) {
        // Starting a thread allocates; `Pool::new` waits for that, so that no run sees it.
        self.finish_one();
        let Some(mailbox) = self.mailboxes.get(worker) else {
            return;
        };
        let mut late = false;
        loop {
            let (state, slept) = self.next_state(mailbox, if late { Duration::ZERO } else { self.spin });
            if state == EXIT {
                return;
            }
            if state == WORK {
                self.apart();
            }
            // The caller may have taken the order back. Who is woken for nothing would only keep others
            // off the core by spinning.
            let gone = mailbox.state.compare_exchange(WORK, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_err();
            late = gone && slept;
            if gone {
                continue;
            }
            // SAFETY: the state is `RUNNING`, so the order is this thread's.
            let order = unsafe { &mut *mailbox.order.get() };
            if let Some(body) = order.body.take() {
                // SAFETY: the caller keeps the closure alive until `pending` reaches zero, which
                // needs the decrement below.
                let body = unsafe { &*body };
                order.failure = self.pieces(&order.split, body, worker + 1);
            }
            // The order goes back before the count, so that the caller may refill it at once.
            mailbox.state.store(IDLE, Ordering::Release);
            self.finish_one();
        }
    }

    /// Leaves the caller's core, on which one of the two would wait for the other.
    fn apart(&self) {
        let core = self.pending.core.load(Ordering::Relaxed);
        if core != NOWHERE && cores::current() == Some(core) {
            cores::leave(core);
        }
    }

    /// Runs pieces of the thread's own range, then those of the others' that nobody has taken.
    fn pieces(&self, split: &Split, body: &Body<'_>, thread: usize) -> Failure {
        let mut failure: Failure = None;
        for chunk in (thread..split.chunks).chain(0..thread.min(split.chunks)) {
            let Some(Taken(taken)) = self.taken.get(chunk) else { continue };
            // Looked at first: where nothing is left nobody's line of the cache is taken away.
            let left = || split.piece(chunk, taken.load(Ordering::Relaxed)).is_some();
            let next = || left().then(|| split.piece(chunk, taken.fetch_add(1, Ordering::Relaxed))).flatten();
            while let Some((lo, hi)) = next() {
                let outcome = Outcome::of(body, lo, hi, thread);
                if outcome != Outcome::Status(0) && failure.is_none_or(|(first, _)| lo < first) {
                    failure = Some((lo, outcome));
                }
            }
        }
        failure
    }

    /// Waits for the caller's next message, and says whether the thread slept.
    fn next_state(&self, mailbox: &Mailbox, spin: Duration) -> (u32, bool) {
        let state = || mailbox.state.load(Ordering::Acquire);
        let sleeps = !spin_until(spin, || state() != IDLE);
        if sleeps {
            // Fails only if a message has just come, and then there is no reason to sleep.
            let _ = mailbox.state.compare_exchange(IDLE, ASLEEP, Ordering::AcqRel, Ordering::Acquire);
            while state() == ASLEEP {
                thread::park();
            }
        }
        (state(), sleeps)
    }

    fn finish_one(&self) {
        let before = self.pending.count.fetch_sub(1, Ordering::AcqRel);
        if before == CALLER_ASLEEP | 1 {
            // The caller stays until the count is zero with the bit cleared, so `caller` may be
            // read up to that store, and the clone used after it.
            // SAFETY: the caller wrote it before it published this run, and waits.
            let caller = unsafe { (*self.pending.caller.get()).clone() };
            self.pending.count.store(0, Ordering::Release);
            if let Some(caller) = caller {
                caller.unpark();
            }
        }
    }

    fn wait_for_workers(&self) {
        let count = &self.pending.count;
        if spin_until(self.spin, || count.load(Ordering::Acquire) == 0) {
            return;
        }
        if count.fetch_or(CALLER_ASLEEP, Ordering::AcqRel) == 0 {
            // The last worker finished in between and saw no sleeper: nobody else clears the bit.
            count.store(0, Ordering::Relaxed);
            return;
        }
        while count.load(Ordering::Acquire) != 0 {
            thread::park();
        }
    }
}

/// A fixed set of threads, of which the caller of [`Pool::run`] is the first.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads including the caller's own: one thread spawns nothing.
    ///
    /// # Errors
    /// [`PoolError::Threads`] if the number is 0 or above [`MAX_THREADS`], [`PoolError::Spawn`] if
    /// the system refuses a thread (those already started are joined).
    pub fn new(threads: usize) -> Result<Self, PoolError> {
        if threads == 0 || threads > MAX_THREADS {
            return Err(PoolError::Threads(threads));
        }
        let mailbox = || Mailbox {
            state: AtomicU32::new(IDLE),
            order: UnsafeCell::new(Order { body: None, split: Split::new(0, 1, threads), failure: None }),
        };
        // With more threads than cores a spinning thread keeps a working one off its core.
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let spin = if threads > cores { Duration::ZERO } else { SPIN };
        let mut pool = Self {
            shared: Arc::new(Shared {
                mailboxes: (1..threads).map(|_| mailbox()).collect(),
                taken: (0..threads).map(|_| Taken(AtomicU64::new(0))).collect(),
                pending: Pending {
                    count: AtomicUsize::new(threads - 1),
                    core: AtomicUsize::new(NOWHERE),
                    caller: UnsafeCell::new(Some(thread::current())),
                },
                spin,
            }),
            workers: Vec::with_capacity(threads - 1),
        };
        for worker in 0..threads - 1 {
            let shared = Arc::clone(&pool.shared);
            let handle = thread::Builder::new()
                .name(format!("kiln-{}", worker + 1))
                .spawn(move || shared.work(worker))
                .map_err(PoolError::Spawn)?;
            pool.workers.push(handle);
        }
        pool.shared.wait_for_workers();
        Ok(pool)
    }

    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs programs `0..programs`, each exactly once.
    ///
    /// Each thread has a contiguous range, which is cut into some pieces; ranges and pieces start at multiples of `grain`
    /// (0 counts as 1), so a grid of fewer than `threads` grains leaves the last threads alone. A thread runs the pieces of its
    /// own range in their order, then what is left of the others'. `body` is never called twice at once with one
    /// `thread_index`, which is below [`Pool::threads`] and names the thread's own scratch memory.
    ///
    /// # Errors
    /// The first status that is not zero, in the order of programs, or [`RunError::Panicked`]. The
    /// other pieces still run.
    pub fn run(&mut self, programs: u64, grain: u64, body: &Body<'_>) -> Result<(), RunError> {
        let split = Split::new(programs, grain, self.threads());
        let Some((lo, hi)) = split.range(0) else {
            return Ok(());
        };
        if split.chunks == 1 {
            return Outcome::of(body, lo, hi, 0).into_result();
        }
        let shared = &self.shared;
        let others = || shared.mailboxes.iter().zip(&self.workers).take(split.chunks - 1);
        // SAFETY: only the lifetime changes. The pointer is not followed after this function
        // returns: each worker that gets it is counted in `pending`, and both this function and
        // its unwinding are past `wait_for_workers`, because `Outcome::of` catches panics.
        let erased: *const Body<'static> = unsafe { std::mem::transmute::<&Body<'_>, &Body<'static>>(body) };
        // SAFETY: no worker runs, because the last run waited for all of them and `&mut self`
        // excludes a second run.
        unsafe { *shared.pending.caller.get() = Some(thread::current()) };
        shared.pending.count.store(split.chunks - 1, Ordering::Release);
        // Published with the orders, as is the number of pieces taken. With more threads than cores some share one anyway.
        if !shared.spin.is_zero() {
            shared.pending.core.store(cores::current().unwrap_or(NOWHERE), Ordering::Relaxed);
        }
        shared.taken.iter().for_each(|Taken(taken)| taken.store(0, Ordering::Relaxed));
        for (mailbox, worker) in others() {
            // SAFETY: the worker is idle or asleep, so the order is the caller's.
            unsafe { *mailbox.order.get() = Order { body: Some(erased), split, failure: None } };
            if mailbox.state.swap(WORK, Ordering::AcqRel) == ASLEEP {
                worker.thread().unpark();
            }
        }
        let mut failure = shared.pieces(&split, body, 0);
        // Every piece is taken: who has not begun has nothing to do.
        for (mailbox, _) in others() {
            if mailbox.state.compare_exchange(WORK, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                shared.pending.count.fetch_sub(1, Ordering::AcqRel);
            }
        }
        shared.wait_for_workers();
        for (mailbox, _) in others() {
            // SAFETY: the workers are done and have handed their orders back.
            let found = unsafe { (*mailbox.order.get()).failure };
            failure = [failure, found].into_iter().flatten().min_by_key(|(first, _)| *first);
        }
        failure.map_or(Ok(()), |(_, outcome)| outcome.into_result())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (mailbox, worker) in self.shared.mailboxes.iter().zip(&self.workers) {
            if mailbox.state.swap(EXIT, Ordering::AcqRel) == ASLEEP {
                worker.thread().unpark();
            }
        }
        for worker in self.workers.drain(..) {
            // Workers catch every panic of the closures; there is nothing to hear from them.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

/// Into how many pieces a thread's range is cut: what a thread cannot do in time is taken over by others in such parts.
const PIECES: u64 = 8;

/// The static partition of a grid.
#[derive(Clone, Copy)]
struct Split {
    programs: u64,
    grain: u64,
    /// Grains that every chunk gets.
    each: u64,
    /// The first `extra` chunks get one more.
    extra: u64,
    /// Number of chunks that are not empty.
    chunks: usize,
}

impl Split {
    fn new(programs: u64, grain: u64, threads: usize) -> Self {
        let grain = grain.max(1);
        let grains = programs.div_ceil(grain);
        // At most `threads`, so it fits.
        let chunks = grains.min(threads as u64) as usize;
        let divisor = (chunks as u64).max(1);
        Self { programs, grain, each: grains / divisor, extra: grains % divisor, chunks }
    }

    /// The programs of a chunk; `None` for those that have none.
    fn range(&self, chunk: usize) -> Option<(u64, u64)> {
        if chunk >= self.chunks {
            return None;
        }
        let edge = |chunk: u64| {
            let grains = chunk * self.each + chunk.min(self.extra);
            grains.saturating_mul(self.grain).min(self.programs)
        };
        Some((edge(chunk as u64), edge(chunk as u64 + 1)))
    }

    /// The programs of a chunk's n-th piece; `None` beyond the last.
    fn piece(&self, chunk: usize, n: u64) -> Option<(u64, u64)> {
        let (lo, hi) = self.range(chunk)?;
        let size = (hi - lo).div_ceil(self.grain).div_ceil(PIECES).saturating_mul(self.grain);
        let lo = lo.checked_add(size.checked_mul(n)?).filter(|&lo| lo < hi)?;
        Some((lo, lo.saturating_add(size).min(hi)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;

    fn ranges(threads: usize, programs: u64, grain: u64) -> Vec<(u64, u64)> {
        let seen = Mutex::new(Vec::new());
        Pool::new(threads)
            .unwrap()
            .run(programs, grain, &|lo, hi, thread| {
                assert!(thread < threads);
                seen.lock().unwrap().push((lo, hi));
                0
            })
            .unwrap();
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        seen
    }

    #[test]
    fn the_partition_is_static() {
        assert_eq!(ranges(1, 10, 1), [(0, 10)]);
        // Two ranges of 10 grains and 9, in pieces of two.
        let pieces = [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 38];
        let pieces: Vec<(u64, u64)> = pieces.windows(2).map(|p| (p[0], p[1])).collect();
        assert_eq!(ranges(2, 38, 2), pieces);
        assert_eq!(ranges(4, 10, 4), [(0, 4), (4, 8), (8, 10)]);
        assert_eq!(ranges(4, 1, 0), [(0, 1)]);
        assert_eq!(ranges(4, 0, 1), []);
    }

    #[test]
    fn what_a_thread_does_not_come_to_is_done_by_others() {
        let mut pool = Pool::new(2).unwrap();
        let limit = Instant::now() + Duration::from_secs(20);
        let mut began = false;
        // The caller may do all of a run before the worker is awake.
        while !began && Instant::now() < limit {
            // The worker's first piece ends when all others have run, which it has no part in then.
            let (left, late) = (AtomicU64::new(32), Mutex::new(Vec::new()));
            pool.run(32, 1, &|lo, hi, thread| {
                if thread == 1 {
                    late.lock().unwrap().push(lo);
                    while left.load(Ordering::Relaxed) > hi - lo && Instant::now() < limit {
                        thread::yield_now();
                    }
                }
                left.fetch_sub(hi - lo, Ordering::Relaxed);
                0
            })
            .unwrap();
            let late = late.into_inner().unwrap();
            assert!(late.len() <= 1);
            began = !late.is_empty();
        }
        assert!(began && Instant::now() < limit);
    }

    proptest! {
        #[test]
        fn chunks_cover_the_grid_once(
            programs in prop_oneof![0..1000u64, Just(u64::MAX), any::<u64>()],
            grain in prop_oneof![0..20u64, Just(u64::MAX), any::<u64>()],
            threads in 1..40usize,
        ) {
            let split = Split::new(programs, grain, threads);
            let mut next = 0;
            for chunk in 0..threads {
                let Some((lo, hi)) = split.range(chunk) else { break };
                prop_assert_eq!(lo, next);
                prop_assert!(lo < hi);
                prop_assert_eq!(lo % grain.max(1), 0);
                let mut at = lo;
                for (from, to) in (0..=PIECES).map_while(|n| split.piece(chunk, n)) {
                    prop_assert_eq!(from, at);
                    prop_assert!(from < to);
                    prop_assert_eq!(from % grain.max(1), 0);
                    at = to;
                }
                prop_assert_eq!(at, hi);
                next = hi;
            }
            prop_assert_eq!(next, programs);
        }
    }

    #[test]
    fn many_runs_see_each_program_once() {
        for threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(threads).unwrap();
            for round in 0..2000u64 {
                let sum = AtomicU64::new(0);
                let programs = round % 37;
                pool.run(programs, 1 + round % 3, &|lo, hi, thread| {
                    assert!(thread < threads);
                    sum.fetch_add((lo..hi).map(|x| x + 1).sum(), Ordering::Relaxed);
                    0
                })
                .unwrap();
                assert_eq!(sum.into_inner(), programs * (programs + 1) / 2);
                // Now and then long enough for everyone to fall asleep.
                if round % 500 == 0 {
                    thread::sleep(SPIN * 10);
                }
            }
        }
    }

    #[test]
    fn the_caller_sleeps_through_long_work_and_wakes() {
        let mut pool = Pool::new(3).unwrap();
        for _ in 0..20 {
            pool.run(3, 1, &|_, _, thread| {
                if thread > 0 {
                    thread::sleep(Duration::from_millis(thread as u64));
                }
                0
            })
            .unwrap();
        }
    }

    #[test]
    fn the_lowest_failure_wins_and_the_pool_survives() {
        let mut pool = Pool::new(4).unwrap();
        let failing_at = |at: &'static [u64]| {
            move |lo: u64, hi: u64, _: usize| at.iter().find(|x| (lo..hi).contains(x)).map_or(0, |x| *x as u32)
        };
        assert_eq!(pool.run(100, 1, &failing_at(&[30, 99])), Err(RunError::Status(30)));
        assert_eq!(pool.run(100, 1, &failing_at(&[99])), Err(RunError::Status(99)));
        assert_eq!(pool.run(100, 1, &failing_at(&[])), Ok(()));
    }

    #[test]
    fn panics_are_errors_on_every_thread() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropping the payload panics too");
            }
        }
        let mut pool = Pool::new(3).unwrap();
        for victim in 0..3 {
            let outcome = pool.run(3, 1, &|lo, _, _| {
                if lo == victim {
                    std::panic::panic_any(Bomb);
                }
                0
            });
            assert_eq!(outcome, Err(RunError::Panicked));
        }
        // A status of lower programs comes before a panic of higher ones.
        let outcome = pool.run(3, 1, &|lo, _, _| match lo {
            0 => 0,
            1 => 7,
            _ => panic!("expected by this test"),
        });
        assert_eq!(outcome, Err(RunError::Status(7)));
        assert_eq!(pool.run(3, 1, &|_, _, _| 0), Ok(()));
    }

    #[test]
    fn one_thread_runs_on_the_caller() {
        let mut pool = Pool::new(1).unwrap();
        assert!(pool.workers.is_empty());
        let here = thread::current().id();
        pool.run(5, 1, &|_, _, _| u32::from(thread::current().id() != here)).unwrap();
    }

    #[test]
    fn thread_counts_are_checked() {
        assert!(matches!(Pool::new(0), Err(PoolError::Threads(0))));
        assert!(matches!(Pool::new(MAX_THREADS + 1), Err(PoolError::Threads(_))));
    }

    /// Stopping and continuing a process halts all its threads at arbitrary points.
    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
    fn a_stopped_process_carries_on() {
        const CHILD: &str = "KILN_POOL_TEST_CHILD";
        if std::env::var_os(CHILD).is_some() {
            let mut pool = Pool::new(2).unwrap();
            let start = Instant::now();
            let runs = AtomicU64::new(0);
            while start.elapsed() < Duration::from_millis(600) {
                pool.run(2, 1, &|_, _, _| {
                    runs.fetch_add(1, Ordering::Relaxed);
                    0
                })
                .unwrap();
            }
            assert!(runs.into_inner() > 0);
            return;
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pool::tests::a_stopped_process_carries_on"])
            .env(CHILD, "1")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let send = |signal| {
            thread::sleep(Duration::from_millis(40));
            // SAFETY: the child has not been waited for, so the number is still its own.
            assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        };
        for _ in 0..5 {
            send(libc::SIGSTOP);
            send(libc::SIGCONT);
        }
        // The child waits for nothing but its own threads; should they hang, so would this test
        // without the limit.
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success());
                return;
            }
            if Instant::now() > limit {
                child.kill().unwrap();
                panic!("the child hangs");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
