//! What of a plan is a CUDA graph, and what the host does between graphs.
//!
//! Invariant: every step is in one segment, those of a branch in the segments of their side. A branch is the host's to take: it waits for
//! the condition, so a run does the steps of one side only, and so does everything that asks what the last run did.

use super::super::{CudaError, meaning};
use super::{Model, Visit};
use cudarc::driver::CudaGraph;
use kiln_ir::Tensor;
use kiln_ir::plan::{SlotId, Step};
use std::collections::HashMap;
use std::ops::Range;

/// What the host starts or does at once.
pub(super) enum Segment {
    /// Steps of the device, as a graph.
    Graph(CudaGraph),
    /// The number of a step that the host does.
    Host(usize),
    /// The number of a branch, whose condition lies in the slot, and what is run where it holds and where it does not.
    If { step: usize, condition: SlotId, then: Vec<Segment>, otherwise: Vec<Segment> },
}

/// Whether a step ends a graph: the host does it, or looks where to go on.
fn is_of_host(step: &Step) -> bool {
    match step {
        Step::Host { .. } | Step::Refuse { .. } | Step::If { .. } => true,
        Step::Launch { .. } | Step::Copy { .. } | Step::Bind { .. } | Step::Loop(_) => false,
    }
}

impl Model {
    /// The CUDA graphs, of all branches.
    pub fn graph_count(&self) -> usize {
        fn count(segments: &[Segment]) -> usize {
            let of = |s: &Segment| match s {
                Segment::Graph(_) => 1,
                Segment::Host(_) => 0,
                Segment::If { then, otherwise, .. } => count(then) + count(otherwise),
            };
            segments.iter().map(of).sum()
        }
        count(&self.segments)
    }

    /// Captures what lies between steps of the host.
    pub(super) fn graphs(&self, range: Range<usize>) -> Result<Vec<Segment>, CudaError> {
        let mut segments = Vec::new();
        let mut next = range.start;
        while let Some(step) = self.plan.steps.get(next).filter(|_| next < range.end) {
            let first = next + 1;
            match step {
                Step::If { condition, then, otherwise, .. } => {
                    let (middle, end) = (first + then, first + then + otherwise);
                    let (then, otherwise) = (self.graphs(first..middle)?, self.graphs(middle..end)?);
                    segments.push(Segment::If { step: next, condition: *condition, then, otherwise });
                    next = end;
                }
                step if is_of_host(step) => {
                    segments.push(Segment::Host(next));
                    next = first;
                }
                _ => {
                    if let Some(graph) = self.captured(|| self.begin_steps(&mut next, range.end))? {
                        segments.push(Segment::Graph(graph));
                    }
                }
            }
        }
        Ok(segments)
    }

    /// Begins steps up to the next one of the host, or to the end of a range.
    pub(super) fn begin_steps(&self, next: &mut usize, end: usize) -> Result<(), CudaError> {
        let first = *next;
        let steps = self.plan.steps.get(first..end).unwrap_or_default();
        let count = steps.iter().take_while(|s| !is_of_host(s)).count();
        self.memory.clear(self.layout.status + 4 * first as u64, 4 * count)?;
        for n in first..first + count {
            self.begin(n)?;
        }
        *next = first + count;
        Ok(())
    }

    /// Runs segments one after another; notes which branches were taken.
    pub(super) fn play(
        &self,
        segments: &[Segment],
        held: &mut HashMap<SlotId, Tensor>,
        taken: &mut HashMap<usize, bool>,
    ) -> Result<(), CudaError> {
        let fails = |e| CudaError::Driver { doing: "starts a graph", what: meaning(e) };
        for segment in segments {
            match segment {
                Segment::Graph(graph) => graph.launch().map_err(fails)?,
                Segment::Host(n) => self.host(*n, held)?,
                Segment::If { step, condition, then, otherwise } => {
                    let holds = self.holds(*condition, held)?;
                    taken.insert(*step, holds);
                    self.play(if holds { then } else { otherwise }, held, taken)?;
                }
            }
        }
        Ok(())
    }

    /// The truth value of a slot, once everything that was begun is done.
    pub(super) fn holds(&self, slot: SlotId, held: &HashMap<SlotId, Tensor>) -> Result<bool, CudaError> {
        Ok(self.tensor(slot, held)?.bytes().iter().any(|b| *b != 0))
    }

    pub(super) fn visit_steps(
        &self,
        range: Range<usize>,
        held: &mut HashMap<SlotId, Tensor>,
        seen: &mut dyn FnMut(&Visit<'_>),
    ) -> Result<(), CudaError> {
        let mut n = range.start;
        while let Some(step) = self.plan.steps.get(n).filter(|_| n < range.end) {
            let next = n + 1 + step.inner();
            match step {
                Step::Host { .. } | Step::Refuse { .. } => self.host(n, held)?,
                Step::If { condition, then, .. } => {
                    let middle = n + 1 + then;
                    let side = if self.holds(*condition, held)? { n + 1..middle } else { middle..next };
                    self.visit_steps(side, held, seen)?;
                }
                Step::Copy { .. } | Step::Bind { .. } | Step::Loop(_) => self.begin(n)?,
                Step::Launch { kernel, arguments, .. } => {
                    let contents = || arguments.iter().map(|slot| self.contents(*slot)).collect::<Result<Vec<_>, _>>();
                    let before = contents()?;
                    self.begin(n)?;
                    seen(&Visit { kernel: *kernel, before: &before, after: &contents()? });
                }
            }
            n = next;
        }
        Ok(())
    }

    /// The steps among these that the last run did.
    pub(super) fn done(&self, range: Range<usize>) -> Vec<usize> {
        let (mut all, mut n) = (Vec::new(), range.start);
        while let Some(step) = self.plan.steps.get(n).filter(|_| n < range.end) {
            let next = n + 1 + step.inner();
            all.push(n);
            if let Step::If { then, .. } = step {
                let middle = n + 1 + then;
                match self.taken.get(&n) {
                    Some(true) => all.extend(self.done(n + 1..middle)),
                    Some(false) => all.extend(self.done(middle..next)),
                    None => {}
                }
            }
            n = next;
        }
        all
    }

    /// Seconds of the graphs among segments, of branches those that the last run took.
    pub(super) fn seconds_of(&self, segments: &[Segment]) -> Result<f64, CudaError> {
        let fails = |e| CudaError::Driver { doing: "starts a graph", what: meaning(e) };
        let mut all = 0.0;
        for segment in segments {
            all += match segment {
                Segment::Graph(graph) => self.clocked(|| graph.launch().map_err(fails))?,
                Segment::Host(_) => 0.0,
                Segment::If { step, then, otherwise, .. } => match self.taken.get(step) {
                    Some(true) => self.seconds_of(then)?,
                    Some(false) => self.seconds_of(otherwise)?,
                    None => 0.0,
                },
            };
        }
        Ok(all)
    }
}
