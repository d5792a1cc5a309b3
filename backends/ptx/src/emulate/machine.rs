//! Runs blocks of warps.
//!
//! Invariant: a warp goes through the text in groups of lanes that are at one place; of several groups the one that is
//! furthest behind goes on, and groups that meet are one again. A warp runs until it waits at a barrier or ends.

use super::alu::{self, FloatOp, IntOp, Mode, Ty};
use super::decode::{Address, Atom, Instruction, Join, Kernel, Op, Shuffle, Space, Special, Src, Three, Vote};
use super::matrix::{Product, product};
use super::memory::{Global, Order, Shared, Thread};
use super::{Counts, Finding, Kind, Launch, Options, RunError, SHARED_WINDOW, place_of};
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
    findings: BTreeMap<(usize, Kind), Finding>,
    counts: Counts,
    checks: bool,
    random: u64,
    warps: Vec<Warp>,
}

/// An address in bytes of the space that it is in.
enum Spot {
    Global(usize, usize),
    Shared(usize),
    Local(usize),
    Parameter(usize),
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
                if warps[w].live == 0 || warps[w].waiting.is_some() {
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
                return Ok(());
            }
        }
    }

    /// Lets go of those who wait at barriers that all have reached.
    fn release(&mut self, warps: &mut [Warp]) {
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

    fn predicate(&mut self, warp: &Warp, i: &Instruction, register: usize, mask: u32) -> u32 {
        self.defined(warp, i, register, mask);
        let values = &warp.registers[register];
        (0..32).fold(0, |m, l| m | u32::from(values[l] & 1 != 0) << l)
    }

    fn defined(&mut self, warp: &Warp, i: &Instruction, register: usize, mask: u32) {
        let missing = mask & !warp.defined[register];
        if self.checks && missing != 0 {
            let name = self.shape.kernel.registers.get(register).cloned().unwrap_or_default();
            let thread = 32 * warp.number as u32 + missing.trailing_zeros();
            self.report(Kind::UndefinedRegister, i.line, thread, format!("nothing was written to {name}"));
        }
    }

    fn get(&mut self, warp: &Warp, i: &Instruction, src: Src, mask: u32) -> Lanes {
        match src {
            Src::Imm(n) => [n; 32],
            Src::Reg(r) => {
                if self.checks {
                    self.defined(warp, i, r, mask);
                }
                warp.registers[r]
            }
            Src::Special(s) => self.special(warp, s),
        }
    }

    fn special(&self, warp: &Warp, s: Special) -> Lanes {
        let [x, y, _] = self.shape.launch.block;
        let each = |f: &dyn Fn(u32) -> u64| std::array::from_fn(|l| f(l as u32));
        let thread = |l: u32| 32 * warp.number as u32 + l;
        match s {
            Special::Tid(0) => each(&|l| u64::from(thread(l) % x)),
            Special::Tid(1) => each(&|l| u64::from(thread(l) / x % y)),
            Special::Tid(_) => each(&|l| u64::from(thread(l) / x / y)),
            Special::Ntid(n) => [u64::from(self.shape.launch.block.get(n).copied().unwrap_or(1)); 32],
            Special::Ctaid(n) => [u64::from(self.index.get(n).copied().unwrap_or(0)); 32],
            Special::Nctaid(n) => [u64::from(self.shape.launch.grid.get(n).copied().unwrap_or(1)); 32],
            Special::Lane => each(&u64::from),
            Special::Warp => [warp.number as u64; 32],
            Special::Nwarp => [u64::from(self.shape.threads.div_ceil(32)); 32],
            Special::Below => each(&|l| (1u64 << l) - 1),
            Special::BelowOrEqual => each(&|l| (2u64 << l) - 1),
            Special::Above => each(&|l| !((2u64 << l) - 1) & 0xffff_ffff),
            Special::AboveOrEqual => each(&|l| !((1u64 << l) - 1) & 0xffff_ffff),
            Special::Equal => each(&|l| 1u64 << l),
            Special::Clock => [self.counts.instructions; 32],
            Special::Zero => [0; 32],
        }
    }

    fn map1(&mut self, warp: &mut Warp, i: &Instruction, mask: u32, d: usize, a: Src, f: impl Fn(u64) -> u64) {
        let a = self.get(warp, i, a, mask);
        put(warp, d, mask, |l| f(a[l]));
    }

    #[allow(clippy::too_many_arguments)] // Where, who, what: an instruction's parts.
    fn map2(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        mask: u32,
        d: usize,
        a: Src,
        b: Src,
        f: impl Fn(u64, u64) -> u64,
    ) {
        let (a, b) = (self.get(warp, i, a, mask), self.get(warp, i, b, mask));
        put(warp, d, mask, |l| f(a[l], b[l]));
    }

    #[allow(clippy::too_many_arguments)] // Where, who, what: an instruction's parts.
    fn map3(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        mask: u32,
        d: usize,
        [a, b, c]: [Src; 3],
        f: impl Fn(u64, u64, u64) -> u64,
    ) {
        let [a, b, c] = [a, b, c].map(|s| self.get(warp, i, s, mask));
        put(warp, d, mask, |l| f(a[l], b[l], c[l]));
    }

    /// Executes an instruction for the lanes `active` of a group of lanes.
    fn step(&mut self, warp: &mut Warp, i: &'a Instruction, active: u32, group: u32) -> Flow {
        match &i.op {
            Op::Nop => {}
            Op::Mov(d, a, bits) => self.map1(warp, i, active, *d, *a, |a| a & bits),
            Op::Int(op, ty, d, a, b) => {
                let ty = *ty;
                match (op, ty.bytes()) {
                    (IntOp::Add, 4) => {
                        self.map2(warp, i, active, *d, *a, *b, |a, b| u64::from((a as u32).wrapping_add(b as u32)));
                    }
                    (IntOp::Add, 8) => self.map2(warp, i, active, *d, *a, *b, u64::wrapping_add),
                    _ => self.map2(warp, i, active, *d, *a, *b, |a, b| alu::int_op(*op, ty, a, b)),
                }
            }
            Op::Float(op, ty, mode, d, a, b) => self.float(warp, i, active, (*op, *ty, *mode), *d, [*a, *b]),
            Op::Fma(ty, mode, d, a, b, c) => self.fma(warp, i, active, (*ty, *mode), *d, [*a, *b, *c]),
            Op::Three(op, ty, d, a, b, c) => self.three(warp, i, active, (*op, *ty), *d, [*a, *b, *c]),
            Op::Bfi(ty, d, sources) => {
                let [a, b, c, e] = sources.map(|s| self.get(warp, i, s, active));
                put(warp, *d, active, |l| alu::bfi(*ty, a[l], b[l], c[l], e[l]));
            }
            Op::Pack(d, parts, bits) => {
                let parts: Vec<Lanes> = parts.iter().map(|p| self.get(warp, i, *p, active)).collect();
                let low = u64::MAX >> (64 - bits);
                put(warp, *d, active, |l| parts.iter().rev().fold(0, |v, p| (v << (bits % 64)) | (p[l] & low)));
            }
            Op::Unpack(parts, a, bits) => {
                let a = self.get(warp, i, *a, active);
                let low = u64::MAX >> (64 - bits);
                for (n, d) in parts.iter().enumerate() {
                    if let Some(d) = d {
                        put(warp, *d, active, |l| a[l] >> (n as u32 * bits) & low);
                    }
                }
            }
            Op::Setp { .. } => self.setp(warp, i, active),
            Op::Set { compare, ty, float, d, a, b } => {
                // The manual: the result is all ones, or 1.0 for a float.
                let yes = if *float { 0x3f80_0000 } else { 0xffff_ffff };
                self.map2(warp, i, active, *d, *a, *b, |a, b| if alu::compare(*compare, *ty, a, b) { yes } else { 0 });
            }
            Op::Selp(bits, d, a, b, p, not) => {
                let holds = self.predicate(warp, i, *p, active) ^ if *not { ALL } else { 0 };
                // What is not chosen may be undefined.
                let a = self.get(warp, i, *a, active & holds);
                let b = self.get(warp, i, *b, active & !holds);
                put(warp, *d, active, |l| if holds >> l & 1 != 0 { a[l] & bits } else { b[l] & bits });
            }
            Op::Cvt(to, from, mode, d, a) => {
                self.map1(warp, i, active, *d, *a, |a| to.extend(alu::convert(*to, *from, *mode, a)));
            }
            Op::CvtPack(Ty::F32, _, d, a, _) => {
                // tf32: rounded to nearest, ties away from zero.
                self.map1(warp, i, active, *d, *a, |a| {
                    let nan = f32::from_bits(a as u32).is_nan();
                    if nan { 0x7fff_ffff } else { ((a as u32).wrapping_add(0x1000) & 0xffff_e000).into() }
                });
            }
            Op::CvtPack(to, mode, d, a, b) => {
                let half = if *to == Ty::F16x2 { Ty::F16 } else { Ty::BF16 };
                self.map2(warp, i, active, *d, *a, *b, |a, b| {
                    let part = |x| alu::convert(half, Ty::F32, *mode, x) & 0xffff;
                    part(a) << 16 | part(b)
                });
            }
            Op::Ld { space, ty, targets, address } => self.load(warp, i, active, *space, *ty, targets, *address),
            Op::St { space, ty, sources, address } => self.store(warp, i, active, *space, *ty, sources, *address),
            Op::Atom { .. } => self.atom(warp, i, active),
            Op::Bra(to) => return Flow::Jump(active, *to),
            Op::Ret => return Flow::End,
            Op::Trap => {
                let thread = 32 * warp.number as u32 + active.trailing_zeros();
                self.report(Kind::Trap, i.line, thread, "the kernel stops itself".into());
                return Flow::End;
            }
            Op::Bar { id, count, arrive } => return self.barrier(warp, i, active, (*id, *count, *arrive)),
            Op::WarpSync(members) => {
                let members = self.get(warp, i, *members, active)[active.trailing_zeros() as usize] as u32;
                self.all_here(warp, i, active, members);
                self.order.join_warp(warp.number);
            }
            Op::Shfl { mode, d, p, a, b, c, members } => {
                self.shuffle(warp, i, active, (*mode, *d, *p), [*a, *b, *c, *members]);
            }
            Op::Vote { mode, d, a, not, members } => {
                let holds = self.predicate(warp, i, *a, active) ^ if *not { ALL } else { 0 };
                let members = self.members(warp, i, active, *members);
                let yes = holds & members;
                let result = match mode {
                    Vote::All => u64::from(yes == members),
                    Vote::Any => u64::from(yes != 0),
                    Vote::Uni => u64::from(yes == 0 || yes == members),
                    Vote::Ballot => u64::from(yes),
                };
                put(warp, *d, active, |_| result);
            }
            Op::Redux { op, ty, d, a, members } => {
                let a = self.get(warp, i, *a, active);
                let members = self.members(warp, i, active, *members);
                let sum = lanes(members & active).map(|l| a[l]).reduce(|x, y| alu::int_op(*op, *ty, x, y)).unwrap_or(0);
                put(warp, *d, active, |_| sum);
            }
            Op::Active(d) => put(warp, *d, active, |_| u64::from(group)),
            Op::Ldmatrix { trans, targets, address } => self.matrices(warp, i, active, *trans, targets, *address),
            Op::Mma(m) => {
                self.all_here(warp, i, active, ALL);
                let mut all = |list: &[Src]| list.iter().map(|s| self.get(warp, i, *s, active)).collect::<Vec<Lanes>>();
                let (a, b, c) = (all(&m.a), all(&m.b), all(&m.c));
                let accumulate = self.shape.options.accumulate;
                let d = product(&Product {
                    depth: m.depth,
                    a_type: m.a_type,
                    b_type: m.b_type,
                    half: m.half,
                    accumulate,
                    a: &a,
                    b: &b,
                    c: &c,
                });
                self.counts.mma += 1;
                for (r, values) in m.d.iter().zip(d) {
                    put(warp, *r, active, |l| values[l]);
                }
            }
            Op::CpAsync { to, from, bytes, read, off } => {
                self.copy(warp, i, active, (*to, *from), *bytes, (*read, *off));
            }
            Op::Commit => lanes(active).for_each(|l| warp.closed[l] += 1),
            Op::Wait(groups) => {
                let copies = std::mem::take(&mut warp.copies);
                let (done, open): (Vec<Copy>, Vec<Copy>) = copies.into_iter().partition(|c| {
                    let waited = groups.is_none_or(|n| c.group + n < warp.closed[c.lane]);
                    active >> c.lane & 1 != 0 && waited
                });
                warp.copies = open;
                for c in done {
                    let me = (32 * warp.number + c.lane) as u32;
                    for (n, word) in c.data.iter().enumerate().take(c.bytes.div_ceil(8)) {
                        self.shared.put(c.at + 8 * n, c.bytes.min(8), *word);
                    }
                    self.shared.landed(c.at, c.bytes, me, self.order.clock);
                }
            }
        }
        Flow::Next
    }

    #[allow(clippy::too_many_arguments)] // Where, who, what: an instruction's parts.
    fn float(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        mask: u32,
        (op, ty, mode): (FloatOp, Ty, Mode),
        d: usize,
        [a, b]: [Src; 2],
    ) {
        if mode.error > 0.0 && self.shape.options.seed != 0 && ty == Ty::F32 {
            let (a, b) = (self.get(warp, i, a, mask), self.get(warp, i, b, mask));
            let noise: Lanes = std::array::from_fn(|_| self.random());
            return put(warp, d, mask, |l| {
                let bits = alu::float_op(op, ty, mode, a[l], b[l]);
                let value = f32::from_bits(bits as u32);
                if !value.is_normal() {
                    return bits;
                }
                let share = noise[l] as i64 as f64 / i64::MAX as f64;
                let off = f64::from(value) * (1.0 + share * f64::from(mode.error) / f64::from(1 << 24));
                u64::from((off as f32).to_bits())
            });
        }
        self.map2(warp, i, mask, d, a, b, |a, b| alu::float_op(op, ty, mode, a, b));
    }

    fn fma(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        mask: u32,
        (ty, mode): (Ty, Mode),
        d: usize,
        sources: [Src; 3],
    ) {
        let [a, b, c] = sources.map(|s| self.get(warp, i, s, mask));
        if ty == Ty::F32 && mode == Mode::default() {
            let values = fma_lanes(&a, &b, &c);
            return put(warp, d, mask, |l| values[l]);
        }
        put(warp, d, mask, |l| alu::fma(ty, mode, a[l], b[l], c[l]));
    }

    fn three(&mut self, warp: &mut Warp, i: &Instruction, mask: u32, (op, ty): (Three, Ty), d: usize, s: [Src; 3]) {
        match op {
            Three::Lop3(table) => self.map3(warp, i, mask, d, s, |a, b, c| alu::lop3(a, b, c, table.into())),
            Three::Prmt => self.map3(warp, i, mask, d, s, alu::prmt),
            Three::Bfe => self.map3(warp, i, mask, d, s, |a, b, c| alu::bfe(ty, a, b, c)),
            Three::Shf { left, wrap } => self.map3(warp, i, mask, d, s, |a, b, c| alu::shf(left, wrap, a, b, c)),
            Three::Sad => self.map3(warp, i, mask, d, s, |a, b, c| {
                ((alu::int(ty, a) - alu::int(ty, b)).unsigned_abs() as u64).wrapping_add(c) & ty.mask()
            }),
            Three::MadLo if ty.bytes() == 4 => self.map3(warp, i, mask, d, s, |a, b, c| {
                u64::from((a as u32).wrapping_mul(b as u32).wrapping_add(c as u32))
            }),
            Three::MadLo => self.map3(warp, i, mask, d, s, |a, b, c| a.wrapping_mul(b).wrapping_add(c) & ty.mask()),
            Three::MadHi => self
                .map3(warp, i, mask, d, s, |a, b, c| alu::int_op(IntOp::MulHi, ty, a, b).wrapping_add(c) & ty.mask()),
            Three::MadWide if ty == Ty::S32 => self.map3(warp, i, mask, d, s, |a, b, c| {
                (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64
            }),
            Three::MadWide => self.map3(warp, i, mask, d, s, |a, b, c| {
                let sum = alu::int_op(IntOp::MulWide, ty, a, b).wrapping_add(c);
                if ty.bytes() < 4 { sum & 0xffff_ffff } else { sum }
            }),
            Three::Slct => self.map3(warp, i, mask, d, s, |a, b, c| if (c as i32) >= 0 { a } else { b } & ty.mask()),
        }
    }

    fn setp(&mut self, warp: &mut Warp, i: &Instruction, mask: u32) {
        let Op::Setp { compare, ty, ftz, join, p, q, a, b } = &i.op else { return };
        let (mut a, mut b) = (self.get(warp, i, *a, mask), self.get(warp, i, *b, mask));
        if *ftz {
            let flush = |x: &mut u64| *x = u64::from(alu::flush(f32::from_bits(*x as u32)).to_bits());
            a.iter_mut().chain(&mut b).for_each(flush);
        }
        let holds = lanes(mask).fold(0u32, |m, l| m | u32::from(alu::compare(*compare, *ty, a[l], b[l])) << l);
        let (yes, no) = match join {
            None => (holds, !holds),
            Some((join, r, not)) => {
                let other = self.predicate(warp, i, *r, mask) ^ if *not { ALL } else { 0 };
                match join {
                    Join::And => (holds & other, !holds & other),
                    Join::Or => (holds | other, !holds | other),
                    Join::Xor => (holds ^ other, !holds ^ other),
                }
            }
        };
        if let Some(p) = p {
            put(warp, *p, mask, |l| u64::from(yes >> l & 1));
        }
        if let Some(q) = q {
            put(warp, *q, mask, |l| u64::from(no >> l & 1));
        }
    }

    /// A finding unless all these lanes are here.
    fn all_here(&mut self, warp: &Warp, i: &Instruction, active: u32, members: u32) {
        let missing = members & warp.live & !active;
        if missing != 0 {
            let thread = 32 * warp.number as u32 + missing.trailing_zeros();
            self.report(Kind::Divergent, i.line, thread, "this thread is not there".into());
        }
    }

    fn members(&mut self, warp: &Warp, i: &Instruction, active: u32, members: Src) -> u32 {
        let members = self.get(warp, i, members, active)[active.trailing_zeros() as usize & 31] as u32;
        self.all_here(warp, i, active, members);
        members & active
    }

    fn shuffle(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        active: u32,
        (mode, d, p): (Shuffle, usize, Option<usize>),
        sources: [Src; 4],
    ) {
        let [a, b, c, _] = sources.map(|s| self.get(warp, i, s, active));
        let members = self.members(warp, i, active, sources[3]);
        let (mut values, mut found) = ([0; 32], 0u32);
        for l in lanes(active) {
            let (offset, bound) = (b[l] as u32 & 31, c[l] as u32 & 31);
            let segment = c[l] as u32 >> 8 & 31;
            let lane = l as u32;
            let most = lane & segment | bound & !segment;
            let least = lane & segment;
            let (j, inside) = match mode {
                Shuffle::Up => (lane.wrapping_sub(offset), lane as i32 - offset as i32 >= most as i32),
                Shuffle::Down => (lane + offset, lane + offset <= most),
                Shuffle::Bfly => (lane ^ offset, lane ^ offset <= most),
                Shuffle::Idx => (least | offset & !segment, least | offset & !segment <= most),
            };
            let inside = match mode {
                Shuffle::Idx => (least | offset & !segment) <= most,
                Shuffle::Bfly => (lane ^ offset) <= most,
                Shuffle::Up | Shuffle::Down => inside,
            };
            let from = if inside { j & 31 } else { lane };
            if members >> from & 1 == 0 {
                let detail = format!("lane {from} does not take part");
                self.report(Kind::AbsentLane, i.line, 32 * warp.number as u32 + lane, detail);
            }
            values[l] = a[from as usize] & 0xffff_ffff;
            found |= u32::from(inside) << l;
        }
        put(warp, d, active, |l| values[l]);
        if let Some(p) = p {
            put(warp, p, active, |l| u64::from(found >> l & 1));
        }
    }

    fn barrier(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        active: u32,
        (id, count, arrive): (Src, Option<Src>, bool),
    ) -> Flow {
        let first = active.trailing_zeros() as usize & 31;
        let id = self.get(warp, i, id, active)[first] as usize & 15;
        let count = count.map(|c| self.get(warp, i, c, active)[first] as u32);
        let thread = 32 * warp.number as u32 + first as u32;
        if active != warp.live {
            let detail = "other lanes of the warp are elsewhere".to_string();
            self.report(Kind::Divergent, i.line, thread, detail);
            // It cannot be said what happens, so nobody waits.
            return Flow::Next;
        }
        self.order.join_warp(warp.number);
        let barrier = &mut self.barriers[id];
        barrier.threads += 32;
        barrier.wanted = count.unwrap_or(u32::MAX);
        barrier.line = i.line;
        barrier.arrived.push((warp.number, self.order.clock));
        if arrive {
            return Flow::Next;
        }
        barrier.waiting.push(warp.number);
        warp.waiting = Some(id);
        Flow::Wait
    }

    /// Where an access of one lane goes; nothing (and a finding) where that is nowhere.
    fn spot(&mut self, i: &Instruction, space: Space, address: u64, bytes: usize, thread: u32) -> Option<Spot> {
        if !address.is_multiple_of(bytes.max(1) as u64) {
            let detail = format!("{bytes} bytes at address {address:#x}");
            self.report(Kind::Misaligned, i.line, thread, detail);
            return None;
        }
        let (space, address) = match space {
            Space::Generic if address >= SHARED_WINDOW => (Space::Shared, address - SHARED_WINDOW),
            Space::Generic => (Space::Global, address),
            other => (other, address),
        };
        let inside = |len: usize, at: usize| at.checked_add(bytes).is_some_and(|end| end <= len);
        match space {
            Space::Global | Space::Generic => {
                let (global, variables) = (self.places.global, self.places.variables);
                let found = place_of(address, global.len(), variables.len());
                if let Some((n, at)) = found
                    && let Some(buffer) = global.get(n).or_else(|| variables.get(n - global.len()))
                {
                    if inside(buffer.bytes, at) {
                        return Some(Spot::Global(n, at));
                    }
                    let detail = format!("{bytes} bytes at {at} of buffer {n}, which has {}", buffer.bytes);
                    self.report(Kind::OutOfBounds, i.line, thread, detail);
                    return None;
                }
                self.report(Kind::OutOfBounds, i.line, thread, format!("address {address:#x} is in no buffer"));
            }
            Space::Shared => {
                let at = (address & 0xffff_ffff) as usize;
                if inside(self.shape.shared, at) {
                    return Some(Spot::Shared(at));
                }
                let detail = format!("{bytes} bytes at {at} of {} shared ones", self.shape.shared);
                self.report(Kind::OutOfBounds, i.line, thread, detail);
            }
            Space::Local => {
                let at = (address & 0xffff_ffff) as usize;
                if inside(self.shape.kernel.local, at) {
                    return Some(Spot::Local(at));
                }
                self.report(Kind::OutOfBounds, i.line, thread, format!("{bytes} bytes at {at} of local memory"));
            }
            Space::Param => {
                if inside(self.shape.parameters.len(), address as usize) {
                    return Some(Spot::Parameter(address as usize));
                }
                self.report(Kind::OutOfBounds, i.line, thread, format!("parameter byte {address}"));
            }
        }
        None
    }

    fn buffer(&self, n: usize) -> Option<&'a Global> {
        let global = self.places.global;
        global.get(n).or_else(|| self.places.variables.get(n.checked_sub(global.len())?))
    }

    fn thread(&self, me: u32) -> Thread {
        Thread { first: (self.block * u64::from(self.shape.threads)) as u32, me }
    }

    /// What is wrong with a race or a read, as a finding.
    fn wrong(&mut self, i: &Instruction, me: u32, found: Option<(Kind, u32)>) {
        let Some((kind, other)) = found else { return };
        let detail = match kind {
            Kind::SharedRace => match other {
                u32::MAX | 0xffff_fffe => "several threads access it too".to_string(),
                _ => format!("thread {other} accesses it too, and nothing orders them"),
            },
            Kind::GlobalRace => "another thread accesses it too, and nothing orders them".to_string(),
            Kind::Pending => format!("a copy of thread {other} has not been waited for"),
            Kind::ReadOnly => "the buffer is not declared as written".to_string(),
            _ => "nothing was written there".to_string(),
        };
        self.report(kind, i.line, me, detail);
    }

    fn read(&mut self, warp: &Warp, i: &Instruction, spot: &Spot, lane: usize, each: usize, count: usize) -> [u64; 8] {
        let me = (32 * warp.number + lane) as u32;
        let mut values = [0; 8];
        match *spot {
            Spot::Global(n, at) => {
                let Some(buffer) = self.buffer(n) else { return values };
                if self.checks {
                    let threads = self.shape.threads;
                    let found = buffer.reads(at, each * count, self.thread(me), threads, &self.order);
                    self.wrong(i, me, found);
                }
                for (k, v) in values.iter_mut().enumerate().take(count) {
                    *v = buffer.read(at + k * each, each);
                }
            }
            Spot::Shared(at) => {
                if self.checks {
                    let found = self.shared.reads(at, each * count, me, &self.order);
                    self.wrong(i, me, found);
                }
                for (k, v) in values.iter_mut().enumerate().take(count) {
                    *v = self.shared.fetch(at + k * each, each);
                }
            }
            Spot::Local(at) => {
                for (k, v) in values.iter_mut().enumerate().take(count) {
                    *v = word(warp.local.get(lane).map_or(&[], Vec::as_slice), at + k * each, each);
                }
            }
            Spot::Parameter(at) => {
                for (k, v) in values.iter_mut().enumerate().take(count) {
                    *v = word(self.shape.parameters, at + k * each, each);
                }
            }
        }
        values
    }

    fn write(&mut self, warp: &mut Warp, i: &Instruction, spot: &Spot, lane: usize, each: usize, values: &[u64]) {
        let me = (32 * warp.number + lane) as u32;
        match *spot {
            Spot::Global(n, at) => {
                let Some(buffer) = self.buffer(n) else { return };
                if self.checks {
                    let same = values
                        .iter()
                        .enumerate()
                        .all(|(k, v)| buffer.read(at + k * each, each) == v & u64::MAX >> (64 - 8 * each));
                    let (thread, threads) = (self.thread(me), self.shape.threads);
                    let found = buffer.writes(at, each * values.len(), thread, threads, &self.order, same);
                    self.wrong(i, me, found);
                }
                for (k, v) in values.iter().enumerate() {
                    buffer.write(at + k * each, each, *v);
                }
            }
            Spot::Shared(at) => {
                if self.checks {
                    let same = values
                        .iter()
                        .enumerate()
                        .all(|(k, v)| self.shared.fetch(at + k * each, each) == v & u64::MAX >> (64 - 8 * each));
                    let found = self.shared.writes(at, each * values.len(), me, &self.order, (same, false));
                    self.wrong(i, me, found);
                }
                for (k, v) in values.iter().enumerate() {
                    self.shared.put(at + k * each, each, *v);
                }
            }
            Spot::Local(at) => {
                if let Some(local) = warp.local.get_mut(lane) {
                    for (k, v) in values.iter().enumerate() {
                        if let Some(to) = local.get_mut(at + k * each..at + (k + 1) * each) {
                            to.copy_from_slice(&v.to_le_bytes()[..each]);
                        }
                    }
                }
            }
            Spot::Parameter(_) => self.report(Kind::ReadOnly, i.line, me, "parameters are only read".into()),
        }
    }

    fn addresses(&mut self, warp: &Warp, i: &Instruction, address: Address, mask: u32) -> Lanes {
        self.get(warp, i, address.base, mask).map(|a| a.wrapping_add(address.offset as u64))
    }

    #[allow(clippy::too_many_arguments)] // Where, who, what: an instruction's parts.
    fn load(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        mask: u32,
        space: Space,
        ty: Ty,
        targets: &[Option<usize>],
        address: Address,
    ) {
        let addresses = self.addresses(warp, i, address, mask);
        let (each, count) = (ty.bytes(), targets.len().min(8));
        if space == Space::Param {
            // The same for all threads.
            let spot = self.spot(i, space, addresses[mask.trailing_zeros() as usize & 31], each * count, 0);
            let values = spot.map_or([0; 8], |s| self.read(warp, i, &s, 0, each, count));
            for (target, value) in targets.iter().zip(values) {
                if let Some(d) = target {
                    put(warp, *d, mask, |_| ty.extend(value));
                }
            }
            return;
        }
        self.count(space, &addresses, mask, each * count);
        let mut results = [[0u64; 32]; 8];
        for l in lanes(mask) {
            let thread = (32 * warp.number + l) as u32;
            if let Some(spot) = self.spot(i, space, addresses[l], each * count, thread) {
                let values = self.read(warp, i, &spot, l, each, count);
                for (result, v) in results.iter_mut().zip(values).take(count) {
                    result[l] = ty.extend(v);
                }
            }
        }
        for (target, result) in targets.iter().zip(&results) {
            if let Some(d) = target {
                put(warp, *d, mask, |l| result[l]);
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // Where, who, what: an instruction's parts.
    fn store(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        mask: u32,
        space: Space,
        ty: Ty,
        sources: &[Src],
        address: Address,
    ) {
        let addresses = self.addresses(warp, i, address, mask);
        let values: Vec<Lanes> = sources.iter().map(|s| self.get(warp, i, *s, mask)).collect();
        let bytes = ty.bytes() * values.len();
        self.count(space, &addresses, mask, bytes);
        for l in lanes(mask) {
            let thread = (32 * warp.number + l) as u32;
            if let Some(spot) = self.spot(i, space, addresses[l], bytes, thread) {
                let mut own = [0; 8];
                own.iter_mut().zip(&values).for_each(|(o, v)| *o = v[l]);
                self.write(warp, i, &spot, l, ty.bytes(), &own[..values.len().min(8)]);
            }
        }
    }

    fn atom(&mut self, warp: &mut Warp, i: &Instruction, mask: u32) {
        let Op::Atom { space, op, ty, d, address, b, c } = &i.op else { return };
        let addresses = self.addresses(warp, i, *address, mask);
        let (b, c) = (self.get(warp, i, *b, mask), self.get(warp, i, *c, mask));
        let size = ty.bytes();
        let mut results = [0; 32];
        for l in lanes(mask) {
            let thread = (32 * warp.number + l) as u32;
            let Some(spot) = self.spot(i, *space, addresses[l], size, thread) else { continue };
            let (op, ty, b, c) = (*op, *ty, b[l], c[l]);
            let change = move |old: u64| match op {
                Atom::Int(op) => alu::int_op(op, ty, old, b),
                Atom::Float => alu::float_op(FloatOp::Add, ty, Mode::default(), old, b),
                Atom::Exchange => b,
                Atom::Cas => {
                    if old == b & ty.mask() {
                        c
                    } else {
                        old
                    }
                }
                Atom::Inc => {
                    if old >= b & ty.mask() {
                        0
                    } else {
                        old + 1
                    }
                }
                Atom::Dec => {
                    if old == 0 || old > b & ty.mask() {
                        b
                    } else {
                        old - 1
                    }
                }
            };
            results[l] = match spot {
                Spot::Global(n, at) => match self.buffer(n) {
                    Some(buffer) => {
                        buffer.touched(at, size);
                        buffer.update(at, size, self.places.lock, change)
                    }
                    None => 0,
                },
                Spot::Shared(at) => {
                    let old = self.shared.fetch(at, size);
                    self.shared.put(at, size, change(old));
                    old
                }
                Spot::Local(_) | Spot::Parameter(_) => 0,
            };
        }
        if let Some(d) = d {
            put(warp, *d, mask, |l| results[l]);
        }
    }

    fn matrices(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        active: u32,
        trans: bool,
        targets: &[usize],
        address: Address,
    ) {
        self.all_here(warp, i, active, ALL);
        let used = ALL >> (32 - (8 * targets.len()).clamp(1, 32));
        let addresses = self.addresses(warp, i, address, used);
        self.count(Space::Shared, &addresses, used, 16);
        for (j, target) in targets.iter().enumerate() {
            let mut rows = [[0u64; 2]; 8];
            for (row, words) in rows.iter_mut().enumerate() {
                let lane = (8 * j + row) & 31;
                let thread = (32 * warp.number + lane) as u32;
                if let Some(spot) = self.spot(i, Space::Shared, addresses[lane] & 0xffff_ffff, 16, thread) {
                    let values = self.read(warp, i, &spot, lane, 8, 2);
                    *words = [values[0], values[1]];
                }
            }
            let element = |r: usize, c: usize| rows[r][c / 4] >> (16 * (c % 4)) & 0xffff;
            put(warp, *target, active, |l| {
                let (r, c) = (l / 4, l % 4 * 2);
                if trans { element(c, r) | element(c + 1, r) << 16 } else { element(r, c) | element(r, c + 1) << 16 }
            });
        }
    }

    fn copy(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        mask: u32,
        (to, from): (Address, Address),
        bytes: usize,
        (read, off): (Option<Src>, Option<usize>),
    ) {
        let (to, from) = (self.addresses(warp, i, to, mask), self.addresses(warp, i, from, mask));
        let read = read.map(|r| self.get(warp, i, r, mask));
        let off = off.map_or(0, |p| self.predicate(warp, i, p, mask));
        let reading = lanes(mask).filter(|l| off >> l & 1 == 0 && read.is_none_or(|r| r[*l] as u32 != 0));
        let reading = reading.fold(0u32, |m, l| m | 1 << l);
        self.count(Space::Global, &from, reading, bytes);
        self.count(Space::Shared, &to, mask, bytes);
        for l in lanes(mask) {
            let me = (32 * warp.number + l) as u32;
            let mut data = [0u64; 2];
            if reading >> l & 1 != 0
                && let Some(spot) = self.spot(i, Space::Global, from[l], bytes, me)
            {
                let each = bytes.min(8);
                let values = self.read(warp, i, &spot, l, each, bytes / each);
                data = [values[0], values[1]];
                let wanted = read.map_or(bytes, |r| r[l] as u32 as usize).min(bytes);
                for (n, word) in data.iter_mut().enumerate() {
                    let kept = wanted.saturating_sub(8 * n).min(8);
                    *word &= if kept == 0 { 0 } else { u64::MAX >> (64 - 8 * kept) };
                }
            }
            let target = if to[l] >= SHARED_WINDOW { to[l] - SHARED_WINDOW } else { to[l] };
            let Some(Spot::Shared(at)) = self.spot(i, Space::Shared, target & 0xffff_ffff, bytes, me) else { continue };
            if self.checks {
                let found = self.shared.writes(at, bytes, me, &self.order, (false, true));
                self.wrong(i, me, found);
            }
            for n in 0..bytes.div_ceil(8) {
                self.shared.put(at + 8 * n, bytes.min(8), u64::MAX);
            }
            warp.copies.push(Copy { lane: l, group: warp.closed[l], at, bytes, data });
        }
    }

    /// Counts what an access of so many bytes in each lane costs.
    fn count(&mut self, space: Space, addresses: &Lanes, mask: u32, bytes: usize) {
        if !self.checks || mask == 0 {
            return;
        }
        let shared = match space {
            Space::Shared => true,
            Space::Generic => addresses[mask.trailing_zeros() as usize & 31] >= SHARED_WINDOW,
            Space::Global => false,
            Space::Local | Space::Param => return,
        };
        let bytes = bytes.max(1);
        if shared {
            // 128 bytes go at once: all lanes of a 4-byte access, a quarter of those of a 16-byte access.
            let together = (128 / bytes.max(4)).clamp(1, 32);
            for first in (0..32).step_by(together) {
                let part = mask >> first & (ALL >> (32 - together as u32));
                if part == 0 {
                    continue;
                }
                let mut words: Vec<u64> = lanes(part)
                    .flat_map(|l| {
                        let at = addresses[first + l] & 0xffff_ffff;
                        at / 4..(at + bytes as u64).div_ceil(4)
                    })
                    .collect();
                words.sort_unstable();
                words.dedup();
                let mut banks = [0u32; 32];
                words.iter().for_each(|w| banks[(w % 32) as usize] += 1);
                self.counts.wavefronts += u64::from(banks.iter().copied().max().unwrap_or(0));
                self.counts.least_wavefronts += words.len().div_ceil(32) as u64;
            }
            return;
        }
        let distinct = |unit: u64| {
            let ends = lanes(mask).flat_map(|l| {
                let at = addresses[l];
                at / unit..at.saturating_add(bytes as u64).div_ceil(unit)
            });
            let mut all: Vec<u64> = ends.collect();
            all.sort_unstable();
            all.dedup();
            all.len() as u64
        };
        let granule = bytes.next_power_of_two().min(16) as u64;
        self.counts.sectors += distinct(32);
        self.counts.least_sectors += (distinct(granule) * granule).div_ceil(32);
    }
}

fn word(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(from) = bytes.get(at..at + size.min(8)) {
        word[..from.len()].copy_from_slice(from);
    }
    u64::from_le_bytes(word)
}

/// Writes a register in the lanes of the mask.
#[inline]
fn put(warp: &mut Warp, d: usize, mask: u32, f: impl Fn(usize) -> u64) {
    let register = &mut warp.registers[d];
    if mask == ALL {
        for (l, slot) in register.iter_mut().enumerate() {
            *slot = f(l);
        }
    } else {
        for l in lanes(mask) {
            register[l] = f(l);
        }
    }
    warp.defined[d] |= mask;
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

/// `a * b + c` of f32 in all lanes.
fn fma_lanes(a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn wide(a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
            plain(a, b, c)
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the features that the function needs have just been detected.
            return unsafe { wide(a, b, c) };
        }
    }
    plain(a, b, c)
}

#[inline(always)]
fn plain(a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    let mut d = [0; 32];
    for l in 0..32 {
        let f = |x: u64| f32::from_bits(x as u32);
        let value = f(a[l]).mul_add(f(b[l]), f(c[l]));
        d[l] = if value.is_nan() { 0x7fff_ffff } else { u64::from(value.to_bits()) };
    }
    d
}
