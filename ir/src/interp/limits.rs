//! What evaluations on this thread may take: time, and memory of graphs within graphs; and whether someone has cancelled them.
//!
//! Invariant: a limit holds for all that is evaluated inside of [`scope`], however deep, and never outlives it. Loops ask at
//! every step, the engine between the steps of a plan.

use crate::ops::OpError;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Bytes that the host may take for what it evaluates where nobody says otherwise.
pub const DEFAULT_BYTES: u64 = 8 << 30;

/// Limits; nothing is unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// When evaluation stops.
    pub deadline: Option<Instant>,
    /// Bytes that a graph within a graph may take at once.
    pub bytes: Option<u64>,
    /// What stops evaluation from another thread.
    pub cancel: Option<Cancel>,
}

/// A flag that stops what runs under it; clones are the same flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not raised.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Stops what runs under the flag at its next step, and everything that is started under it later.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the flag is raised.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl PartialEq for Cancel {
    fn eq(&self, other: &Cancel) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Cancel {}

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reached {
    /// The deadline has passed.
    #[error("the time limit has been reached")]
    Time,
    /// Someone has raised the flag.
    #[error("the run was cancelled")]
    Cancelled,
    /// What is to be allocated does not fit.
    #[error("the memory limit has been reached")]
    Memory,
}

thread_local! {
    static CURRENT: RefCell<Limits> = const { RefCell::new(Limits { deadline: None, bytes: None, cancel: None }) };
    static REACHED: Cell<Option<Reached>> = const { Cell::new(None) };
}

/// The limits that hold now.
pub fn current() -> Limits {
    CURRENT.with_borrow(Limits::clone)
}

/// Restores the limits, also when a caller's code panics.
struct Restore(Limits);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(std::mem::take(&mut self.0));
    }
}

/// Runs `f` under limits, which may only be stricter than those that hold already; an inner flag takes the place of an outer one.
pub fn scope<T>(limits: Limits, f: impl FnOnce() -> T) -> T {
    let outer = current();
    let tighter = |a: Option<_>, b: Option<_>| a.into_iter().chain(b).min();
    let bytes: Option<u64> = outer.bytes.into_iter().chain(limits.bytes).min();
    let deadline = tighter(outer.deadline, limits.deadline);
    let cancel = limits.cancel.or_else(|| outer.cancel.clone());
    let _restore = Restore(outer);
    CURRENT.set(Limits { deadline, bytes, cancel });
    f()
}

/// Runs `f` and says which limit has refused something meanwhile, so that a caller can tell its errors from others.
pub fn watch<T>(f: impl FnOnce() -> T) -> (T, Option<Reached>) {
    let outer = REACHED.take();
    let result = f();
    (result, REACHED.replace(outer))
}

/// Notes that an allocation was refused.
pub(crate) fn refuse_memory() {
    REACHED.set(Some(Reached::Memory));
}

/// Fails once the deadline has passed, or the flag is raised.
///
/// # Errors
/// Which it is.
pub fn check() -> Result<(), Reached> {
    let reached = CURRENT.with_borrow(|limits| {
        if limits.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            return Some(Reached::Cancelled);
        }
        limits.deadline.filter(|&deadline| Instant::now() >= deadline).map(|_| Reached::Time)
    });
    match reached {
        None => Ok(()),
        Some(reached) => {
            REACHED.set(Some(reached));
            Err(reached)
        }
    }
}

/// [`check`], as ops report it.
///
/// # Errors
/// As [`check`].
pub fn check_time() -> Result<(), OpError> {
    check().map_err(|reached| OpError::new(reached.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_only_tighten_and_end() {
        let limit = |bytes| Limits { bytes: Some(bytes), ..Limits::default() };
        scope(limit(10), || {
            scope(limit(20), || assert_eq!(current().bytes, Some(10)));
            scope(limit(5), || assert_eq!(current().bytes, Some(5)));
            assert_eq!(current().bytes, Some(10));
        });
        assert_eq!(current(), Limits::default());
        let over = Limits { deadline: Some(Instant::now()), ..Limits::default() };
        scope(over, || assert!(check_time().is_err()));
        assert!(check_time().is_ok());
    }

    #[test]
    fn a_flag_stops_from_outside_and_is_told_apart() {
        let cancel = Cancel::new();
        let limits = Limits { cancel: Some(cancel.clone()), ..Limits::default() };
        let (result, reached) = watch(|| {
            scope(limits, || {
                check_time().unwrap();
                cancel.cancel();
                check_time()
            })
        });
        assert_eq!(result.unwrap_err().0, "the run was cancelled");
        assert_eq!(reached, Some(Reached::Cancelled));
        assert_eq!(watch(|| ()).1, None);
    }
}
