//! The memory planner: offsets in the arena.
//!
//! Invariant: two slots whose lives share a step share no byte. The planner is checked by `Plan::verify`, which knows nothing
//! of how it decides.
//!
//! Source: "greedy by size" of Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference" (2020).

use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::plan::{Place, Plan, SlotId, nominal};

/// Arena offsets and sizes are multiples of this: a cache line, and the widest vector.
pub const ALIGNMENT: u64 = 64;

fn aligned(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

/// Gives every slot that lives in the arena its offset, or its region where its size depends on free dims, and fills in the
/// sizes of arena and regions and the arena's lower bound.
pub fn plan_memory(plan: &mut Plan) {
    let lives = plan.lives();
    let mut slots = Vec::new();
    let mut free = Vec::new();
    for (id, slot) in plan.slots.iter() {
        if slot.place == Place::Arena(0)
            && let Some((first, last)) = lives[id.index()]
        {
            match slot.ty.bytes() {
                bytes if bytes.as_const().is_none() => free.push((id, bytes, first, last)),
                _ => slots.push((id, aligned(plan.slot_bytes(id)), first, last)),
            }
        } else if slot.place == Place::Arena(0) && slot.ty.bytes().as_const().is_none() {
            free.push((id, slot.ty.bytes(), usize::MAX, usize::MAX));
        }
    }
    plan_regions(plan, free);
    plan.live_bytes = largest_sum(&slots.iter().map(|s| (s.1, s.2, s.3)).collect::<Vec<_>>());
    slots.sort_by_key(|&(id, bytes, ..)| (std::cmp::Reverse(bytes), id));
    // Placed slots by the steps that they live in: (offset, end, first, last), sorted by offset.
    let mut placed: Vec<(u64, u64, usize, usize)> = Vec::new();
    let mut end = 0;
    for (id, bytes, first, last) in slots {
        let (mut best, mut cursor): (Option<(u64, u64)>, u64) = (None, 0);
        for &(lo, hi, ..) in placed.iter().filter(|p| p.2 <= last && first <= p.3) {
            // The smallest gap that is large enough.
            if lo > cursor && lo - cursor >= bytes && best.is_none_or(|(gap, _)| lo - cursor < gap) {
                best = Some((lo - cursor, cursor));
            }
            cursor = cursor.max(hi);
        }
        let at = best.map_or(cursor, |(_, at)| at);
        let position = placed.partition_point(|p| p.0 <= at);
        placed.insert(position, (at, at + bytes, first, last));
        end = end.max(at + bytes);
        plan.slots[id].place = Place::Arena(at);
    }
    plan.arena_bytes = end;
}

/// A region under construction: its size, the nominal size, and the lives of its slots.
struct Region {
    bytes: Expr,
    nominal: i64,
    lives: Vec<(usize, usize)>,
}

/// Gives slots of run-time size their regions, in the order in which they come to life: each takes the free region whose
/// nominal size is nearest to its own, so that sizes which grow together end up together.
fn plan_regions(plan: &mut Plan, mut slots: Vec<(SlotId, Expr, usize, usize)>) {
    let ranges = plan.ranges();
    let value = |s: &Symbol| ranges.get(s).map(|&range| nominal(range));
    let mut regions: Vec<Region> = Vec::new();
    slots.sort_by_key(|&(id, _, first, _)| (first, id));
    for (id, bytes, first, last) in slots {
        let size = bytes.eval(&value).unwrap_or(0);
        let apart = |r: &&mut Region| r.lives.iter().all(|&(lo, hi)| hi < first || last < lo);
        // A region of another order of size would waste more than it saves where the dims are far from nominal.
        let near = |r: &&mut Region| r.nominal / 4 <= size && size / 4 <= r.nominal;
        let best = regions
            .iter_mut()
            .enumerate()
            .filter(|(_, r)| apart(r) && near(r))
            .min_by_key(|(n, r)| (r.bytes != bytes, r.nominal.abs_diff(size), *n));
        let n = match best {
            Some((n, region)) => {
                region.bytes = region.bytes.greatest(&bytes).simplify(&ranges);
                region.nominal = region.nominal.max(size);
                region.lives.push((first, last));
                n
            }
            None => {
                regions.push(Region { bytes, nominal: size, lives: vec![(first, last)] });
                regions.len() - 1
            }
        };
        plan.slots[id].place = Place::Region(n);
    }
    plan.regions = regions.into_iter().map(|r| r.bytes).collect();
}

/// The largest sum of bytes over the steps.
fn largest_sum(slots: &[(u64, usize, usize)]) -> u64 {
    let steps = slots.iter().map(|s| s.2 + 2).max().unwrap_or(0);
    let mut change = vec![0i128; steps];
    for &(bytes, first, last) in slots {
        change[first] += i128::from(bytes);
        change[last + 1] -= i128::from(bytes);
    }
    let (mut sum, mut most) = (0i128, 0i128);
    for c in change {
        sum += c;
        most = most.max(sum);
    }
    u64::try_from(most).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::plan::{Slot, Step};
    use kiln_ir::{DType, TensorType};

    proptest::proptest! {
        #[test]
        fn planned_arenas_verify_and_stay_near_the_bound(lives in proptest::collection::vec((0usize..30, 0usize..6, 1usize..5000), 1..60)) {
            let mut plan = Plan::default();
            let mut steps: Vec<Vec<_>> = vec![Vec::new(); 40];
            for (first, length, bytes) in lives {
                let ty = TensorType::of(DType::U8, &[bytes]);
                let slot = plan.slots.push(Slot { name: None, ty, place: Place::Arena(0) });
                for touched in &mut steps[first..=first + length] {
                    touched.push(slot);
                }
            }
            plan.kernels.push(kiln_ir::plan::Kernel {
                name: "k0".into(), origin: Default::default(), what: String::new(), operations: 0, bytes: 0,
            });
            for arguments in steps {
                let written = arguments.len();
                plan.steps.push(Step::Launch { kernel: 0, arguments, written });
            }
            plan_memory(&mut plan);
            proptest::prop_assert_eq!(plan.verify(), vec![]);
            proptest::prop_assert!(plan.arena_bytes >= plan.live_bytes);
            proptest::prop_assert!(plan.arena_bytes <= plan.live_bytes * 2);
        }
    }
}
