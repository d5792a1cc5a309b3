//! What a run needs: its peak memory as a formula of the free dims.
//!
//! Invariant: the formula is what the engine charges to its budget for a context of its own that runs once at these dims:
//! weights, arena, regions, outputs and one empty tensor. Inputs are the caller's; those that are not aligned are copied and
//! come on top. What host steps take while they run, and the machine code, do not belong to a plan.

use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::plan::Plan;
use kiln_runtime::memory::ALIGNMENT;

/// Bytes that a run needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Footprint {
    /// Weights, which processes share.
    pub weights: u64,
    /// What is the same at all dims: the arena, outputs of constant size.
    pub fixed: u64,
    /// What depends on the dims: regions and outputs.
    pub free: Expr,
}

impl Footprint {
    /// Of a plan.
    pub fn of(plan: &Plan) -> Footprint {
        let ranges = plan.ranges();
        // The engine gives strings a buffer of the size that their type has, like any other output.
        let outputs = plan.outputs.iter().map(|(_, slot)| plan.slots[*slot].ty.bytes());
        let mut free = Expr::from(0i64);
        let mut fixed = plan.arena_bytes.saturating_add(ALIGNMENT as u64);
        for bytes in plan.regions.iter().cloned().chain(outputs) {
            match bytes.as_const() {
                Some(bytes) => fixed = fixed.saturating_add(u64::try_from(bytes).unwrap_or(0)),
                None => free = free.add(&bytes),
            }
        }
        Footprint { weights: plan.weight_bytes, fixed, free: free.simplify(&ranges) }
    }

    /// The bytes of everything, over the plan's symbols.
    pub fn formula(&self) -> Expr {
        let fixed = i64::try_from(self.weights.saturating_add(self.fixed)).unwrap_or(i64::MAX);
        self.free.add(&Expr::from(fixed))
    }

    /// The bytes at these values of the plan's symbols; nothing where one is missing or the sum is absurd.
    pub fn bytes(&self, plan: &Plan, dims: &[Option<i64>]) -> Option<u64> {
        let value = |s: &Symbol| dims.get(plan.symbols.iter().position(|(name, _)| name == s)?).copied().flatten();
        self.formula().eval(&value).and_then(|bytes| u64::try_from(bytes).ok())
    }
}
