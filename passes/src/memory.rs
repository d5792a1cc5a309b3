//! The memory planner: offsets in the arena.
//!
//! Invariant: two slots whose lives share a step share no byte. The planner is checked by `Plan::verify`, which knows nothing
//! of how it decides.
//!
//! Source: "greedy by size" of Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference" (2020).

use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::plan::{Place, Plan, SlotId, Step, nominal};

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

/// Puts the steps into an order in which less lives at once, and plans again; whether the arena became smaller, without which
/// nothing is changed. Greedy: of the steps that could come next the one after which the fewest bytes are live, then the first.
///
/// Steps on the host may give dims their values, and branches and loops run the steps behind them: a plan that has any of these is
/// left alone.
pub fn reorder(plan: &mut Plan) -> bool {
    let plain = |step: &Step| matches!(step, Step::Launch { .. } | Step::Copy { .. });
    if !plan.steps.iter().all(plain) {
        return false;
    }
    let Some(order) = least_live(plan) else { return false };
    let mut new = plan.clone();
    new.steps = order.into_iter().filter_map(|n| plan.steps.get(n).cloned()).collect();
    for slot in new.slots.ids().collect::<Vec<_>>() {
        if matches!(new.slots[slot].place, Place::Arena(_) | Place::Region(_)) {
            new.slots[slot].place = Place::Arena(0);
        }
    }
    plan_memory(&mut new);
    let ranges = plan.ranges();
    let value = |s: &Symbol| ranges.get(s).map(|&range| nominal(range));
    let size = |p: &Plan| {
        let regions = p.regions.iter().filter_map(|r| u64::try_from(r.eval(&value)?).ok()).sum::<u64>();
        p.arena_bytes.saturating_add(regions)
    };
    let better = new.steps.len() == plan.steps.len() && size(&new) < size(plan) && new.verify().is_empty();
    if better {
        *plan = new;
    }
    better
}

/// The order of [`reorder`].
fn least_live(plan: &Plan) -> Option<Vec<usize>> {
    let ranges = plan.ranges();
    let value = |s: &Symbol| ranges.get(s).map(|&range| nominal(range));
    let bytes = |slot: SlotId| match plan.slots[slot].place {
        Place::Arena(_) | Place::Region(_) => plan.slots[slot].ty.bytes().eval(&value).unwrap_or(0),
        Place::Weights(_) | Place::Input(_) | Place::Output(_) | Place::Host => 0,
    };
    // A step waits for those before it that touch a slot which it writes, and for those that write one which it reads.
    let count = plan.steps.len();
    let (mut waits, mut next) = (vec![0usize; count], vec![Vec::new(); count]);
    let mut uses = vec![0usize; plan.slots.len()];
    let mut touched: Vec<Vec<(usize, bool)>> = vec![Vec::new(); plan.slots.len()];
    for (n, step) in plan.steps.iter().enumerate() {
        let (reads, writes) = step.accesses();
        let accesses = reads.iter().map(|slot| (slot, false)).chain(writes.iter().map(|slot| (slot, true)));
        for (slot, written) in accesses {
            let before = touched.get_mut(slot.index())?;
            for &(earlier, _) in before.iter().filter(|(earlier, wrote)| *earlier != n && (written || *wrote)) {
                next[earlier].push(n);
                waits[n] += 1;
            }
            before.push((n, written));
            uses[slot.index()] += 1;
        }
    }
    let mut made = vec![false; plan.slots.len()];
    let mut ready: Vec<usize> = (0..count).filter(|&n| waits[n] == 0).collect();
    let mut order = Vec::with_capacity(count);
    while !ready.is_empty() {
        // What lives more after the step than before it.
        let growth = |n: usize| {
            let (reads, writes) = plan.steps[n].accesses();
            let new: i64 = writes.iter().filter(|s| !made[s.index()]).map(|&s| bytes(s)).sum();
            let mut all: Vec<SlotId> = reads.iter().chain(writes.iter()).copied().collect();
            let each = |slot: SlotId| reads.iter().chain(writes.iter()).filter(|s| **s == slot).count();
            all.sort_unstable();
            all.dedup();
            new - all.into_iter().filter(|&s| uses[s.index()] == each(s)).map(bytes).sum::<i64>()
        };
        let (at, &n) = ready.iter().enumerate().min_by_key(|(_, n)| (growth(**n), **n))?;
        ready.swap_remove(at);
        let (reads, writes) = plan.steps[n].accesses();
        reads.iter().chain(writes.iter()).for_each(|slot| uses[slot.index()] -= 1);
        writes.iter().for_each(|slot| made[slot.index()] = true);
        for &later in &next[n] {
            waits[later] -= 1;
            if waits[later] == 0 {
                ready.push(later);
            }
        }
        order.push(n);
    }
    Some(order)
}

/// A region under construction: the different sizes of its slots, its nominal size, and the lives of its slots.
struct Region {
    sizes: Vec<Expr>,
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
            .min_by_key(|(n, r)| (!r.sizes.contains(&bytes), r.nominal.abs_diff(size), *n));
        let n = match best {
            Some((n, region)) => {
                if !region.sizes.contains(&bytes) {
                    region.sizes.push(bytes);
                }
                region.nominal = region.nominal.max(size);
                region.lives.push((first, last));
                n
            }
            None => {
                regions.push(Region { sizes: vec![bytes], nominal: size, lives: vec![(first, last)] });
                regions.len() - 1
            }
        };
        plan.slots[id].place = Place::Region(n);
    }
    let greater = |a: Expr, b: Expr| a.greatest(&b).simplify(&ranges);
    plan.regions = regions.into_iter().map(|r| r.sizes.into_iter().reduce(greater).unwrap_or_default()).collect();
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
    use kiln_ir::plan::Slot;
    use kiln_ir::{DType, TensorType};

    #[test]
    fn an_order_with_less_live_at_once_is_found() {
        // Four large values are made one after another and then each is summed to a small one: in turns one large one lives.
        let mut plan = Plan::default();
        let mut slot =
            |bytes: usize, place| plan.slots.push(Slot { name: None, ty: TensorType::of(DType::U8, &[bytes]), place });
        let x = slot(8, Place::Input(0));
        let large: Vec<_> = (0..4).map(|_| slot(1 << 20, Place::Arena(0))).collect();
        let small: Vec<_> = (0..4).map(|_| slot(64, Place::Arena(0))).collect();
        let y = slot(8, Place::Output(0));
        plan.inputs.push(("x".into(), x));
        plan.outputs.push(("y".into(), y));
        let (name, what, origin) = ("k0".into(), String::new(), Default::default());
        plan.kernels.push(kiln_ir::plan::Kernel { name, origin, what, operations: 0, bytes: 0 });
        let mut step = |arguments: Vec<SlotId>| plan.steps.push(Step::Launch { kernel: 0, arguments, written: 1 });
        large.iter().for_each(|&l| step(vec![x, l]));
        large.iter().zip(&small).for_each(|(&l, &s)| step(vec![l, s]));
        step(small.iter().copied().chain([y]).collect());
        plan_memory(&mut plan);
        let before = plan.arena_bytes;
        assert!(before > 4 << 20 && reorder(&mut plan));
        assert_eq!(plan.verify(), vec![]);
        assert!(plan.arena_bytes < before / 3, "{} of {before}", plan.arena_bytes);
        assert!(!reorder(&mut plan), "it is as good as it gets");
    }

    #[test]
    fn a_region_names_each_size_once() {
        let n = Symbol::new("n");
        let mut plan = Plan { symbols: vec![(n.clone(), (0, 1000))], ..Plan::default() };
        // Layers: values of two sizes, of which neither is always the larger, come after one another.
        let sizes = [Expr::from(&n).scale(64), Expr::from(&n).add(&Expr::from(40i64)).scale(48)];
        let mut slot = |bytes: &Expr, place| {
            plan.slots.push(Slot { name: None, ty: TensorType::new(DType::U8, vec![bytes.clone()]), place })
        };
        let x = slot(&sizes[0], Place::Input(0));
        let between: Vec<_> = (0..20).map(|k| slot(&sizes[k % 2], Place::Arena(0))).collect();
        let y = slot(&sizes[0], Place::Output(0));
        plan.inputs.push(("x".into(), x));
        plan.outputs.push(("y".into(), y));
        let (name, what, origin) = ("k0".into(), String::new(), Default::default());
        plan.kernels.push(kiln_ir::plan::Kernel { name, origin, what, operations: 0, bytes: 0 });
        let chain: Vec<_> = [x].into_iter().chain(between).chain([y]).collect();
        for pair in chain.windows(2) {
            plan.steps.push(Step::Launch { kernel: 0, arguments: pair.to_vec(), written: 1 });
        }
        plan_memory(&mut plan);
        assert_eq!(plan.verify(), vec![]);
        // One value is read while the next is written.
        assert_eq!(plan.regions, sizes);
        // Where only one lives at a time, they share a region.
        plan.slots.ids().for_each(|s| {
            if matches!(plan.slots[s].place, Place::Region(_)) {
                plan.slots[s].place = Place::Arena(0);
            }
        });
        plan.steps = chain[1..21].iter().map(|&s| Step::Launch { kernel: 0, arguments: vec![s], written: 1 }).collect();
        plan_memory(&mut plan);
        assert_eq!(plan.regions, [sizes[0].greatest(&sizes[1])]);
    }

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
