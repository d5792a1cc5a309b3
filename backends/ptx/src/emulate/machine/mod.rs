//! Runs blocks of warps.
//!
//! Invariant: a warp goes through the text in groups of lanes that are at one place; of several groups the one that is
//! furthest behind goes on, and groups that meet are one again. A warp runs until it waits at a barrier or ends.
//!
//! Here is what is launched and whose turn it is; [`step`] is what instructions do, [`access`] where they read and write.

mod access;
mod bulk;
mod step;

use super::decode::Kernel;
use super::memory::{Global, Order, Shared};
use super::{Counts, Finding, Kind, Launch, Options, RunError};
use std::collections::BTreeMap;
use std::sync::Mutex;

type Lanes = [u64; 32];

const ALL: u32 = u32::MAX;

/// What is launched.
pub(super) struct Shape<'a> {
    pub kernel: &'a Kernel,
    pub launch: &'a Launch,
    pub threads: u32,
    pub shared: usize,
    pub parameters: &'a [u8],
    pub options: &'a Options,
}

/// Memory that all blocks see.
pub(super) struct Places<'a> {
    pub global: &'a [Global],
    pub variables: &'a [Global],
    pub lock: &'a Mutex<()>,
}

/// A copy under way.
struct Copy {
    lane: usize,
    group: u64,
    at: usize,
    bytes: usize,
    data: [u64; 2],
}

struct Warp {
    number: usize,
    /// Lanes that exist and have not ended.
    live: u32,
    /// Where groups of lanes are, by rising place.
    groups: Vec<(usize, u32)>,
    registers: Vec<Lanes>,
    /// Lanes in which each register was written.
    defined: Vec<u32>,
    copies: Vec<Copy>,
    /// Groups of copies that each lane has closed.
    closed: [u64; 32],
    waiting: Option<usize>,
    products: bulk::Products,
    steps: u64,
    local: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Barrier {
    threads: u32,
    wanted: u32,
    arrived: Vec<(usize, u32)>,
    waiting: Vec<usize>,
    line: usize,
}

enum Flow {
    Next,
    Jump(u32, usize),
    Wait,
    /// Waits, and executes the instruction again.
    Again,
    End,
}

pub(super) struct Machine<'a> {
    shape: &'a Shape<'a>,
    places: &'a Places<'a>,
    block: u64,
    index: [u32; 3],
    shared: Shared,
    order: Order,
    barriers: Vec<Barrier>,
    bulk: bulk::Barriers,
    /// When each thread's last `fence.proxy.async` was.
    fences: Vec<u32>,
    findings: BTreeMap<(usize, Kind), Finding>,
    counts: Counts,
    checks: bool,
    random: u64,
    warps: Vec<Warp>,
}

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| mask >> l & 1 != 0)
}

impl<'a> Machine<'a> {
    pub fn new(shape: &'a Shape<'a>, places: &'a Places<'a>) -> Machine<'a> {
        let checks = shape.options.checks;
        Machine {
            shape,
            places,
            block: 0,
            index: [0; 3],
            shared: Shared::new(shape.shared, shape.kernel.granule.max(1), checks),
            order: Order::new(0),
            barriers: Vec::new(),
            bulk: bulk::Barriers::new(),
            fences: Vec::new(),
            findings: BTreeMap::new(),
            counts: Counts::default(),
            checks,
            random: 0,
            warps: Vec::new(),
        }
    }

    pub fn done(self) -> (BTreeMap<(usize, Kind), Finding>, Counts) {
        (self.findings, self.counts)
    }

    fn random(&mut self) -> u64 {
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn block(&mut self, block: u64) -> Result<(), RunError> {
        let shape = self.shape;
        let [x, y, _] = shape.launch.grid.map(u64::from);
        self.block = block;
        self.index = [(block % x) as u32, (block / x % y) as u32, (block / x / y) as u32];
        let count = shape.threads.div_ceil(32) as usize;
        self.order = Order::new(count);
        self.shared.clear();
        self.barriers = (0..16).map(|_| Barrier::default()).collect();
        self.bulk.clear();
        self.fences = vec![0; 32 * count];
        self.random = shape.options.seed ^ block.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let registers = shape.kernel.registers.len();
        let mut warps = std::mem::take(&mut self.warps);
        warps.resize_with(count, || Warp {
            number: 0,
            live: 0,
            groups: Vec::new(),
            registers: vec![[0; 32]; registers],
            defined: vec![0; registers],
            copies: Vec::new(),
            closed: [0; 32],
            waiting: None,
            products: bulk::Products::default(),
            steps: 0,
            local: Vec::new(),
        });
        for (number, warp) in warps.iter_mut().enumerate() {
            let here = (shape.threads - 32 * number as u32).min(32);
            let live = ALL >> (32 - here);
            (warp.number, warp.live, warp.groups) = (number, live, vec![(0, live)]);
            warp.defined.fill(0);
            warp.copies.clear();
            warp.closed = [0; 32];
            (warp.waiting, warp.steps) = (None, 0);
            warp.products = bulk::Products::default();
            if shape.kernel.has_products() {
                warp.products.touched = vec![0; registers];
            }
            if shape.kernel.local > 0 {
                warp.local = vec![vec![0xff; shape.kernel.local]; 32];
            }
        }
        let result = self.run_warps(&mut warps);
        self.warps = warps;
        result
    }

    fn run_warps(&mut self, warps: &mut [Warp]) -> Result<(), RunError> {
        let mut order: Vec<usize> = (0..warps.len()).collect();
        loop {
            if self.shape.options.seed != 0 {
                for n in (1..order.len()).rev() {
                    let m = (self.random() % (n as u64 + 1)) as usize;
                    order.swap(n, m);
                }
            }
            let mut ran = false;
            for &w in &order {
                if warps[w].live == 0 || warps[w].waiting.is_some() || warps[w].products.blocked.is_some() {
                    continue;
                }
                ran = true;
                self.warp(&mut warps[w])?;
                self.release(warps);
            }
            if warps.iter().all(|w| w.live == 0) {
                return Ok(());
            }
            if !ran {
                // Everyone who is left waits: what they wait for never comes.
                let stuck = warps.iter().find_map(|w| Some((w.waiting?, w.number)));
                if let Some((id, warp)) = stuck {
                    let line = self.barriers[id].line;
                    let detail = format!("the threads at barrier {id} wait for others for ever");
                    self.report(Kind::MissingBarrier, line, 32 * warp as u32, detail);
                }
                let stuck = warps.iter().find_map(|w| Some((w.products.blocked?, w.number)));
                if let Some(((at, parity, line), warp)) = stuck {
                    let detail = format!("the phase of parity {parity} of the barrier at {at} never ends");
                    self.report(Kind::MissingBarrier, line, 32 * warp as u32, detail);
                }
                return Ok(());
            }
        }
    }

    /// Lets go of those who wait at barriers that all have reached.
    fn release(&mut self, warps: &mut [Warp]) {
        for warp in warps.iter_mut() {
            if warp.products.blocked.is_some_and(|(at, parity, _)| self.has_ended(at, parity)) {
                warp.products.blocked = None;
            }
        }
        let live = warps.iter().filter(|w| w.live != 0).count() as u32 * 32;
        for id in 0..self.barriers.len() {
            let barrier = &mut self.barriers[id];
            if barrier.arrived.is_empty() {
                continue;
            }
            let all = barrier.wanted == u32::MAX;
            let wanted = if all { live } else { barrier.wanted };
            if barrier.threads < wanted {
                continue;
            }
            let done = std::mem::take(barrier);
            if all && live < warps.len() as u32 * 32 {
                let ended = warps.iter().find(|w| w.live == 0).map_or(0, |w| w.number);
                let detail = format!("warp {ended} has ended and never reached barrier {id}");
                self.report(
                    Kind::MissingBarrier,
                    done.line,
                    32 * done.waiting.first().copied().unwrap_or(0) as u32,
                    detail,
                );
            }
            self.order.join(&done.arrived, &done.waiting);
            for &w in &done.waiting {
                warps[w].waiting = None;
            }
            self.counts.barriers += 1;
        }
    }

    fn report(&mut self, kind: Kind, line: usize, thread: u32, detail: String) {
        let kernel = self.shape.kernel;
        let entry = self.findings.entry((line, kind)).or_insert_with(|| {
            let n = kernel.instructions.iter().position(|i| i.line == line).unwrap_or(0);
            let source = (0..=n).rev().find_map(|n| kernel.comments.get(&n).cloned());
            Finding {
                kind,
                line,
                instruction: kernel.lines.get(n).cloned().unwrap_or_default(),
                source,
                block: self.block,
                thread,
                detail,
                count: 0,
            }
        });
        entry.count += 1;
    }

    fn warp(&mut self, warp: &mut Warp) -> Result<(), RunError> {
        let shape = self.shape;
        let instructions = &shape.kernel.instructions;
        loop {
            let Some(&(mut at, mask)) = warp.groups.first() else { return Ok(()) };
            // Further groups are ahead; where this one reaches the next, they are one again.
            let next = warp.groups.get(1).map_or(usize::MAX, |g| g.0);
            loop {
                if at >= next {
                    warp.groups[0].0 = at;
                    merge(&mut warp.groups);
                    break;
                }
                let Some(i) = instructions.get(at) else {
                    end(warp, mask);
                    break;
                };
                warp.steps += 1;
                if warp.steps > shape.options.steps {
                    let (block, steps) = (self.block, shape.options.steps);
                    return Err(RunError::Endless { kernel: shape.kernel.name.clone(), block, steps, line: i.line });
                }
                let active = match i.guard {
                    None => mask,
                    Some((register, not)) => {
                        let holds = self.predicate(warp, i, register, mask);
                        mask & if not { !holds } else { holds }
                    }
                };
                self.counts.instructions += 1;
                self.counts.thread_instructions += u64::from(active.count_ones());
                if active == 0 {
                    at += 1;
                    continue;
                }
                match self.step(warp, i, active, mask) {
                    Flow::Next => at += 1,
                    Flow::Jump(taken, to) => {
                        if taken == mask {
                            at = to;
                            if to < next {
                                continue;
                            }
                            warp.groups[0].0 = at;
                        } else {
                            warp.groups[0] = (at + 1, mask & !taken);
                            warp.groups.push((to, taken));
                        }
                        warp.groups.sort_unstable();
                        merge(&mut warp.groups);
                        break;
                    }
                    Flow::Wait => {
                        warp.groups[0].0 = at + 1;
                        merge(&mut warp.groups);
                        return Ok(());
                    }
                    Flow::Again => {
                        warp.groups[0].0 = at;
                        return Ok(());
                    }
                    Flow::End => {
                        end(warp, active);
                        if active != mask {
                            warp.groups.insert(0, (at + 1, mask & !active));
                            merge(&mut warp.groups);
                        }
                        break;
                    }
                }
            }
        }
    }
}

fn end(warp: &mut Warp, mask: u32) {
    warp.live &= !mask;
    warp.groups.remove(0);
}

/// Joins groups of lanes that are at one place.
fn merge(groups: &mut Vec<(usize, u32)>) {
    groups.sort_unstable();
    groups.dedup_by(|b, a| {
        let same = a.0 == b.0;
        if same {
            a.1 |= b.1;
        }
        same
    });
}
