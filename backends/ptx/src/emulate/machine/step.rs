//! What each instruction does.
//!
//! Invariant: an instruction changes registers in the lanes that execute it only; what it reads there was written, or that
//! is a finding. Memory is accessed in [`super::access`].

use super::super::Kind;
use super::super::alu::{self, FloatOp, IntOp, Mode, Ty};
use super::super::decode::{Instruction, Join, Op, Shuffle, Special, Src, Three, Vote};
use super::super::matrix::{Product, product};
use super::access::Access;
use super::{ALL, Copy, Flow, Lanes, Machine, Warp, lanes};
use kiln_ir::float8;

impl<'a> Machine<'a> {
    pub(super) fn predicate(&mut self, warp: &Warp, i: &Instruction, register: usize, mask: u32) -> u32 {
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

    pub(super) fn get(&mut self, warp: &Warp, i: &Instruction, src: Src, mask: u32) -> Lanes {
        match src {
            Src::Imm(n) => [n; 32],
            Src::Reg(r) => {
                if self.checks {
                    self.defined(warp, i, r, mask);
                    if !warp.products.under_way.is_empty() {
                        self.not_busy(warp, i, r);
                    }
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

    fn map2(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        mask: u32,
        d: usize,
        [a, b]: [Src; 2],
        f: impl Fn(u64, u64) -> u64,
    ) {
        let (a, b) = (self.get(warp, i, a, mask), self.get(warp, i, b, mask));
        put(warp, d, mask, |l| f(a[l], b[l]));
    }

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
    pub(super) fn step(&mut self, warp: &mut Warp, i: &'a Instruction, active: u32, group: u32) -> Flow {
        match &i.op {
            Op::Nop => {}
            Op::Mov(d, a, bits) => self.map1(warp, i, active, *d, *a, |a| a & bits),
            Op::Int(op, ty, d, a, b) => {
                let ty = *ty;
                match (op, ty.bytes()) {
                    (IntOp::Add, 4) => {
                        self.map2(warp, i, active, *d, [*a, *b], |a, b| u64::from((a as u32).wrapping_add(b as u32)));
                    }
                    (IntOp::Add, 8) => self.map2(warp, i, active, *d, [*a, *b], u64::wrapping_add),
                    _ => self.map2(warp, i, active, *d, [*a, *b], |a, b| alu::int_op(*op, ty, a, b)),
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
                self.map2(
                    warp,
                    i,
                    active,
                    *d,
                    [*a, *b],
                    |a, b| if alu::compare(*compare, *ty, a, b) { yes } else { 0 },
                );
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
                self.map2(warp, i, active, *d, [*a, *b], |a, b| {
                    let part = |x| alu::convert(half, Ty::F32, *mode, x) & 0xffff;
                    part(a) << 16 | part(b)
                });
            }
            Op::CvtToEight { to, from, relu, d, a, b } => {
                let eight = |x: f32| {
                    let x = if *relu && x <= 0.0 { 0.0 } else { x };
                    // The manual: NaN is the one with all bits set but the sign.
                    u64::from(if x.is_nan() { 0x7f } else { float8::encode(*to, x, true) })
                };
                let half = |bits: u64| alu::float(Ty::F16, bits) as f32;
                self.map2(warp, i, active, *d, [*a, *b], |a, b| match from {
                    Ty::F16x2 => eight(half(a >> 16)) << 8 | eight(half(a)),
                    _ => eight(f32::from_bits(a as u32)) << 8 | eight(f32::from_bits(b as u32)),
                });
            }
            Op::CvtFromEight { from, relu, d, a } => {
                let half = |byte: u64| {
                    let value = f64::from(float8::decode(*from, byte as u8));
                    let value = if *relu && value <= 0.0 { 0.0 } else { value };
                    alu::rounded(Ty::F16, value, alu::Round::Nearest)
                };
                self.map1(warp, i, active, *d, *a, |a| half(a >> 8) << 16 | half(a));
            }
            Op::Ld { space, ty, targets, address } => {
                self.load(warp, i, active, Access { space: *space, ty: *ty, address: *address }, targets);
            }
            Op::St { space, ty, sources, address } => {
                self.store(warp, i, active, Access { space: *space, ty: *ty, address: *address }, sources);
            }
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
            Op::Bulk(bulk) => return self.bulk(warp, i, active, bulk),
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
        self.map2(warp, i, mask, d, [a, b], |a, b| alu::float_op(op, ty, mode, a, b));
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
            Three::Dot { left, right } => {
                self.map3(warp, i, mask, d, s, |a, b, c| alu::dot_of_bytes((left, right), a, b, c));
            }
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
    pub(super) fn all_here(&mut self, warp: &Warp, i: &Instruction, active: u32, members: u32) {
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
}

/// Writes a register in the lanes of the mask.
#[inline]
pub(super) fn put(warp: &mut Warp, d: usize, mask: u32, f: impl Fn(usize) -> u64) {
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
    if let Some(touched) = warp.products.touched.get_mut(d) {
        *touched = warp.steps;
    }
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
