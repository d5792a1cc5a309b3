//! Bulk copies, barriers in shared memory and products of four warps.
//!
//! Invariant: as in the rest of the crate; the results of a product have the registers of its addends, and descriptors are those
//! of the swizzle of 128 bytes, with 1,024 bytes from one group of eight rows to the next.

use crate::EmitError;
use crate::module::Emitter;
use crate::writer::Class;
use kiln_ir::warp::bulk::{Operand, Rows, SWIZZLED};
use kiln_ir::warp::{Address, Bulk, GroupProduct, LANES, Roles, ValueId};

/// What a descriptor says but for where its operand begins: the swizzle, and what is between the groups of rows, and between
/// parts of 64 places across the fold; in 16 bytes.
fn descriptor(rows: Rows) -> u64 {
    let groups = (SWIZZLED as u64 / 16) << 32;
    let apart = match rows {
        // Not looked at: the 16 places of the fold are within a row.
        Rows::Along => 1,
        Rows::Across(apart) => u64::from(apart) / 16,
    };
    1 << 62 | groups | apart << 16
}

impl Emitter<'_> {
    pub(crate) fn bulk(&mut self, bulk: &Bulk) -> Result<(), EmitError> {
        match bulk {
            Bulk::Initialise { barrier, arrivals } => {
                let place = self.address(barrier)?;
                let first = self.is_thread(0);
                self.plain(format!("@{first} mbarrier.init.shared::cta.b64 \t[{place}], {arrivals}"))
            }
            Bulk::Publish => {
                let first = self.is_thread(0);
                self.plain(format!("@{first} fence.mbarrier_init.release.cluster"))?;
                self.plain(format!("@{first} fence.proxy.async.shared::cta"))
            }
            Bulk::Expect { barrier, bytes } => {
                let place = self.address(barrier)?;
                self.plain(format!("mbarrier.arrive.expect_tx.shared::cta.b64 \t_, [{place}], {bytes}"))
            }
            Bulk::Fetch { to, map, at, barrier } => {
                let (to, barrier) = (self.register_address(to)?, self.register_address(barrier)?);
                let at: Vec<String> = at.iter().map(|&v| self.register(v)).collect();
                let map = self.maps.get(*map).cloned().unwrap_or_default();
                let (rank, at) = (at.len(), at.join(", "));
                let op = "shared::cluster.global.mbarrier::complete_tx::bytes";
                self.plain(format!("cp.async.bulk.tensor.{rank}d.{op} \t[{to}], [{map}, {{{at}}}], [{barrier}]"))
            }
            Bulk::Arrive { barrier, condition } => {
                let place = self.address(barrier)?;
                let (lane, first) = (self.out.temporary(Class::Word), self.out.temporary(Class::Predicate));
                self.out.line(format!("mov.u32 \t{lane}, %tid.x"));
                self.out.line(format!("and.b32 \t{lane}, {lane}, {}", LANES - 1));
                self.out.line(format!("setp.eq.u32 \t{first}, {lane}, 0"));
                if let Some(condition) = condition {
                    let condition = self.register(*condition);
                    self.out.line(format!("and.pred \t{first}, {first}, {condition}"));
                }
                self.plain(format!("@{first} mbarrier.arrive.shared::cta.b64 \t_, [{place}]"))
            }
            Bulk::Await { barrier, parity } => {
                let place = self.address(barrier)?;
                let parity = self.register(*parity);
                let (again, done) = (self.out.label(), self.out.temporary(Class::Predicate));
                self.out.place(&again);
                self.out.line(format!("mbarrier.try_wait.parity.shared::cta.b64 \t{done}, [{place}], {parity}"));
                self.plain(format!("@!{done} bra \t{again}"))
            }
            Bulk::Fence => self.plain("wgmma.fence.sync.aligned"),
            Bulk::Commit => self.plain("wgmma.commit_group.sync.aligned"),
            Bulk::Wait(groups) => self.plain(format!("wgmma.wait_group.sync.aligned \t{groups}")),
            Bulk::Roles(roles) => self.roles(roles),
        }
    }

    /// A predicate that holds in the thread of that number.
    fn is_thread(&mut self, number: u32) -> String {
        let (thread, is) = (self.out.temporary(Class::Word), self.out.temporary(Class::Predicate));
        self.out.line(format!("mov.u32 \t{thread}, %tid.x"));
        self.out.line(format!("setp.eq.u32 \t{is}, {thread}, {number}"));
        is
    }

    /// An address in one register.
    fn register_address(&mut self, address: &Address) -> Result<String, EmitError> {
        let place = self.address(address)?;
        let register = self.out.temporary(Class::Word);
        match place.split_once('+') {
            Some((base, offset)) if base.starts_with('%') => {
                self.out.line(format!("add.s32 \t{register}, {base}, {offset}"));
            }
            _ => self.out.line(format!("mov.u32 \t{register}, {place}")),
        }
        Ok(register)
    }

    fn roles(&mut self, roles: &Roles) -> Result<(), EmitError> {
        let Roles { threads, registers: [most, least], multiply, fetch } = roles;
        let (thread, other) = (self.out.temporary(Class::Word), self.out.temporary(Class::Predicate));
        let (fetches, end) = (self.out.label(), self.out.label());
        self.out.line(format!("mov.u32 \t{thread}, %tid.x"));
        self.out.line(format!("setp.ge.u32 \t{other}, {thread}, {threads}"));
        self.out.line(format!("@{other} bra \t{fetches}"));
        self.out.line(format!("setmaxnreg.inc.sync.aligned.u32 \t{most}"));
        self.barrier = format!("1, {threads}");
        self.within(multiply)?;
        self.out.line("ret");
        self.out.place(&fetches);
        self.out.line(format!("setmaxnreg.dec.sync.aligned.u32 \t{least}"));
        let idle = self.out.temporary(Class::Predicate);
        self.out.line(format!("setp.ne.u32 \t{idle}, {thread}, {threads}"));
        self.out.line(format!("@{idle} bra \t{end}"));
        self.within(fetch)?;
        self.out.place(&end);
        Ok(())
    }

    /// A descriptor of the operand, in a register.
    fn described(&mut self, operand: &Operand) -> Result<String, EmitError> {
        let place = self.register_address(&operand.address)?;
        let (begin, double) = (self.out.temporary(Class::Word), self.out.temporary(Class::Double));
        self.out.line(format!("shr.u32 \t{begin}, {place}, 4"));
        self.out.line(format!("cvt.u64.u32 \t{double}, {begin}"));
        let whole = self.out.temporary(Class::Double);
        self.out.line(format!("or.b64 \t{whole}, {double}, {}", descriptor(operand.rows)));
        Ok(whole)
    }

    pub(crate) fn group_product(&mut self, ids: &[ValueId], product: &GroupProduct) -> Result<(), EmitError> {
        let GroupProduct { dtype, a, b, c } = product;
        let (of_a, of_b) = (self.described(a)?, self.described(b)?);
        let mut sums = Vec::with_capacity(c.len());
        for (&id, &c) in ids.iter().zip(c) {
            if self.constants.contains_key(&c) {
                let (register, constant) = (self.target(id), self.operand(c));
                self.out.line(format!("mov.f32 \t{register}, {constant}"));
            } else {
                self.share(id, c);
            }
            sums.push(self.register(id));
        }
        let across = [a, b].map(|o| u32::from(matches!(o.rows, Rows::Across(_))));
        let [across_a, across_b] = across;
        let (columns, sums) = (2 * c.len(), sums.join(", "));
        let op = format!("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{dtype}.{dtype}");
        self.plain(format!("{op} \t{{{sums}}}, {of_a}, {of_b}, 1, 1, 1, {across_a}, {across_b}"))
    }
}
