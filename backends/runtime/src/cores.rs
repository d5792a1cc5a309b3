//! Which core a thread runs on, and how it goes to another one.
//!
//! Invariant: the cores that a thread may run on are put back, where the system lets it. They are the thread's own from then on: it does not follow a
//! set of cores that is widened later.

/// The core that the calling thread runs on, where the system says.
#[cfg(target_os = "linux")]
pub(crate) fn current() -> Option<usize> {
    Some(rustix::thread::sched_getcpu())
}

/// Moves the calling thread to another core, where the process may run on another one. A scheduler that finds all cores busy wakes a thread on the
/// core of whoever woke it, and on virtual machines also where others are idle.
#[cfg(target_os = "linux")]
pub(crate) fn leave(core: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(own) = sched_getaffinity(None) else { return };
    let mut others = own;
    if core >= CpuSet::MAX_CPU {
        return;
    }
    others.unset(core);
    if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
        // Where this fails the thread keeps all cores but one, which costs little.
        let _ = sched_setaffinity(None, &own);
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn current() -> Option<usize> {
    None
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn leave(_: usize) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use rustix::thread::sched_getaffinity;

    #[test]
    fn a_thread_goes_to_another_core_and_keeps_its_choice() {
        let before = sched_getaffinity(None).unwrap();
        let mut left = before.count() < 2;
        // It may be moved back before it looks.
        for _ in 0..1000 {
            let here = current().unwrap();
            leave(here);
            left |= current() != Some(here);
            assert!(sched_getaffinity(None).unwrap() == before);
        }
        assert!(left);
        leave(usize::MAX);
        assert!(sched_getaffinity(None).unwrap() == before);
    }
}
