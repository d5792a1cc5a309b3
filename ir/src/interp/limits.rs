//! What evaluations on this thread may take: time, and memory of graphs within graphs.
//!
//! Invariant: a limit holds for all that is evaluated inside of [`scope`], however deep, and never outlives it. Loops ask at
//! every step.

use crate::ops::OpError;
use std::cell::Cell;
use std::time::Instant;

/// Limits; nothing is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// When evaluation stops.
    pub deadline: Option<Instant>,
    /// Bytes that a graph within a graph may take at once.
    pub bytes: Option<u64>,
}

thread_local! {
    static CURRENT: Cell<Limits> = const { Cell::new(Limits { deadline: None, bytes: None }) };
}

/// The limits that hold now.
pub fn current() -> Limits {
    CURRENT.get()
}

/// Restores the limits, also when a caller's code panics.
struct Restore(Limits);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Runs `f` under limits, which may only be stricter than those that hold already.
pub fn scope<T>(limits: Limits, f: impl FnOnce() -> T) -> T {
    let outer = CURRENT.get();
    let _restore = Restore(outer);
    let tighter = |a: Option<_>, b: Option<_>| a.into_iter().chain(b).min();
    let bytes: Option<u64> = outer.bytes.into_iter().chain(limits.bytes).min();
    CURRENT.set(Limits { deadline: tighter(outer.deadline, limits.deadline), bytes });
    f()
}

/// Fails once the deadline has passed.
///
/// # Errors
/// The time is up.
pub fn check_time() -> Result<(), OpError> {
    match CURRENT.get().deadline {
        Some(deadline) if Instant::now() >= deadline => Err(OpError::new("the time limit has been reached")),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_only_tighten_and_end() {
        let limit = |bytes| Limits { deadline: None, bytes: Some(bytes) };
        scope(limit(10), || {
            scope(limit(20), || assert_eq!(current().bytes, Some(10)));
            scope(limit(5), || assert_eq!(current().bytes, Some(5)));
            assert_eq!(current().bytes, Some(10));
        });
        assert_eq!(current(), Limits::default());
        let over = Limits { deadline: Some(Instant::now()), bytes: None };
        scope(over, || assert!(check_time().is_err()));
        assert!(check_time().is_ok());
    }
}
