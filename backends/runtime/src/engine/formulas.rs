//! The numbers of a plan that depend on its symbols: sizes of slots and regions, extents, counts of programs.
//!
//! Invariant: every distinct expression is evaluated once for each binding of the symbols, however many slots share it.

use std::collections::HashMap;

use kiln_ir::Expr;
use kiln_ir::plan::{MOST_BYTES, Plan, SlotId};

/// An index into the values of [`Formulas::values`].
type Number = usize;

/// The formulas of a plan.
pub(super) struct Formulas {
    exprs: Vec<Expr>,
    /// For each slot its bytes and dims.
    slots: Vec<(Number, Vec<Number>)>,
    regions: Vec<Number>,
    /// For each kernel the programs of its grid.
    programs: Vec<Number>,
    /// The two sides of each requirement.
    requirements: Vec<(Number, Number)>,
}

/// The value of each formula; nothing where a symbol has none yet.
pub(super) struct Values(Vec<Option<i64>>);

impl Formulas {
    /// The formulas of a plan whose kernels have these numbers of programs.
    pub(super) fn new<'a>(plan: &Plan, programs: impl Iterator<Item = &'a Expr>) -> Self {
        let (mut exprs, mut known): (Vec<Expr>, HashMap<Expr, Number>) = (Vec::new(), HashMap::new());
        let mut number = |e: Expr| {
            *known.entry(e).or_insert_with_key(|e| {
                exprs.push(e.clone());
                exprs.len() - 1
            })
        };
        let slots = plan.slots.iter().map(|(_, slot)| {
            let dims = slot.ty.dims.iter().map(|d| number(d.clone())).collect();
            (number(slot.ty.bytes()), dims)
        });
        let slots = slots.collect();
        let regions = plan.regions.iter().map(|e| number(e.clone())).collect();
        let programs = programs.map(|e| number(e.clone())).collect();
        let requirements = plan.requirements.iter().map(|r| (number(r.left.clone()), number(r.right.clone())));
        let requirements = requirements.collect();
        Self { exprs, slots, regions, programs, requirements }
    }

    /// All values, where `dims` are those of the plan's symbols.
    pub(super) fn values(&self, plan: &Plan, dims: &[Option<i64>]) -> Values {
        let value = |symbol: &kiln_ir::Symbol| {
            let n = plan.symbols.iter().position(|(s, _)| s == symbol)?;
            dims.get(n).copied().flatten()
        };
        Values(self.exprs.iter().map(|e| e.eval(&value)).collect())
    }

    /// Bytes of a slot. No slot has 2^48 bytes or more: such a size counts as unknown.
    pub(super) fn bytes(&self, values: &Values, slot: SlotId) -> Option<u64> {
        values.size(self.slots.get(slot.index())?.0)
    }

    /// Extents of a slot.
    pub(super) fn shape(&self, values: &Values, slot: SlotId) -> Option<Vec<usize>> {
        let dims = &self.slots.get(slot.index())?.1;
        dims.iter().map(|&n| values.size(n).and_then(|d| usize::try_from(d).ok())).collect()
    }

    /// Whether all extents of a slot are known and fit memory.
    pub(super) fn has_shape(&self, values: &Values, slot: SlotId) -> bool {
        let fits = |&n: &Number| values.size(n).is_some_and(|d| usize::try_from(d).is_ok());
        self.slots.get(slot.index()).is_some_and(|(_, dims)| dims.iter().all(fits))
    }

    /// Bytes of a region.
    pub(super) fn region(&self, values: &Values, n: usize) -> Option<u64> {
        values.size(*self.regions.get(n)?)
    }

    /// The first requirement that these values break, with what its sides come to.
    pub(super) fn broken(&self, values: &Values) -> Option<(usize, i64, i64)> {
        self.requirements.iter().enumerate().find_map(|(n, &(left, right))| {
            let (left, right) = (values.0.get(left).copied().flatten()?, values.0.get(right).copied().flatten()?);
            (left != right).then_some((n, left, right))
        })
    }

    /// Programs of a kernel's grid.
    pub(super) fn programs(&self, values: &Values, kernel: usize) -> Option<u64> {
        values.size(*self.programs.get(kernel)?)
    }
}

impl Values {
    fn size(&self, n: Number) -> Option<u64> {
        let value = self.0.get(n).copied().flatten()?;
        u64::try_from(value).ok().filter(|_| value < MOST_BYTES)
    }
}
