//! Barriers in shared memory, bulk copies and products of four warps.
//!
//! Invariant: that of the module around it. Of clusters there is only that of one block, so `shared::cluster` is the block's own.

use super::super::parse::Operand;
use super::{Address, Decoder, Element, Result1, Src, Words};

/// What one instruction of this kind does.
#[derive(Clone, Debug)]
pub(in super::super) enum Bulk {
    /// `mbarrier.init`
    Init { barrier: Address, arrivals: Src },
    /// `mbarrier.arrive`, with the bytes of `.expect_tx`.
    Arrive { barrier: Address, bytes: Option<Src> },
    /// `mbarrier.try_wait.parity`
    TryWait { d: usize, barrier: Address, parity: Src },
    /// `cp.async.bulk.tensor` to shared memory.
    Fetch { to: Address, map: Src, at: Vec<Src>, barrier: Address },
    /// `fence.proxy.async`
    ProxyFence,
    /// `wgmma.fence`
    Fence,
    /// `wgmma.mma_async`
    Mma(GroupMma),
    /// `wgmma.commit_group`
    Commit,
    /// `wgmma.wait_group`
    Wait(u64),
    /// `setmaxnreg`
    Registers,
}

/// `wgmma.mma_async` with both operands in shared memory and sums in f32.
#[derive(Clone, Debug)]
pub(in super::super) struct GroupMma {
    pub element: Element,
    /// Addends and results.
    pub d: Vec<usize>,
    pub a: Src,
    pub b: Src,
    /// Whether there are addends.
    pub add: Scale,
    /// Whether neighbours of each operand are across the fold.
    pub across: [bool; 2],
}

/// Whether a product adds.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Scale {
    Known(bool),
    Predicate(usize, bool),
}

impl Decoder<'_> {
    /// The instruction; nothing where it is none of this kind.
    pub(super) fn bulk(&self, w: &Words<'_>) -> Result1<Option<Bulk>> {
        let number = |o: &Operand| match o {
            Operand::Number(n) => Ok(*n),
            _ => Err("a number belongs here".to_string()),
        };
        Ok(Some(match w.name.as_slice() {
            ["mbarrier", rest @ .., "b64"] if rest.iter().all(|m| !matches!(*m, "shared::cluster" | "cluster")) => {
                match rest.first().copied() {
                    Some("init") => Bulk::Init { barrier: self.address(w.at(0)?)?, arrivals: self.src(w.at(1)?)? },
                    Some("arrive") if *w.at(0)? == Operand::Nothing && !w.has("noComplete") => {
                        let (barrier, second) = (self.address(w.at(1)?)?, w.operand(2));
                        let bytes = second.map(|o| self.src(o)).transpose()?;
                        if bytes.is_some() != w.has("expect_tx") {
                            return Err(w.unknown());
                        }
                        Bulk::Arrive { barrier, bytes }
                    }
                    Some("try_wait") if w.has("parity") && w.statement.operands.len() == 3 => Bulk::TryWait {
                        d: self.reg(w.at(0)?)?,
                        barrier: self.address(w.at(1)?)?,
                        parity: self.src(w.at(2)?)?,
                    },
                    _ => return Err(w.unknown()),
                }
            }
            ["fence", "proxy", "async", ..] => Bulk::ProxyFence,
            ["cp", "async", "bulk", "tensor", rank, rest @ ..] => {
                let known = ["shared::cluster", "shared::cta", "global", "tile", "mbarrier::complete_tx::bytes"];
                let (to, source, barrier) = (self.address(w.at(0)?)?, w.at(1)?, self.address(w.at(2)?)?);
                let Operand::Tensor(map, list) = source else { return Err(w.unknown()) };
                let rank = rank.strip_suffix('d').and_then(|n| n.parse::<usize>().ok());
                let inward = matches!(rest.first().copied(), Some("shared::cluster" | "shared::cta"));
                if !inward
                    || rest.iter().any(|m| !known.contains(m))
                    || w.statement.operands.len() > 3
                    || rank != Some(list.len())
                {
                    return Err(w.unknown());
                }
                let list = list.iter().map(|o| self.src(o)).collect::<Result1<Vec<_>>>()?;
                Bulk::Fetch { to, map: self.src(map)?, at: list, barrier }
            }
            ["wgmma", "fence", "sync", "aligned"] => Bulk::Fence,
            ["wgmma", "commit_group", "sync", "aligned"] => Bulk::Commit,
            ["wgmma", "wait_group", "sync", "aligned"] => Bulk::Wait(number(w.at(0)?)?),
            ["setmaxnreg", "inc" | "dec", "sync", "aligned", "u32"] => {
                let registers = number(w.at(0)?)?;
                if !(24..=256).contains(&registers) || !registers.is_multiple_of(8) {
                    return Err("`setmaxnreg` takes a multiple of 8 from 24 to 256".into());
                }
                Bulk::Registers
            }
            ["wgmma", "mma_async", "sync", "aligned", shape, "f32", a, b] if a == b => {
                let element = match *a {
                    "f16" => Element::F16,
                    "bf16" => Element::BF16,
                    _ => return Err(w.unknown()),
                };
                let columns = shape.strip_prefix("m64n").and_then(|s| s.strip_suffix("k16")?.parse::<usize>().ok());
                let columns =
                    columns.filter(|n| (8..=256).contains(n) && n.is_multiple_of(8)).ok_or_else(|| w.unknown())?;
                let d = self.list(w.at(0)?, |s, o| s.reg(o))?;
                if d.len() != columns / 2 || matches!(w.at(1)?, Operand::List(_)) {
                    return Err(w.unknown());
                }
                let add = match w.at(3)? {
                    Operand::Number(n) => Scale::Known(*n != 0),
                    Operand::Register(r) => Scale::Predicate(*r, false),
                    Operand::Not(r) => Scale::Predicate(*r, true),
                    _ => return Err(w.unknown()),
                };
                if number(w.at(4)?)? != 1 || number(w.at(5)?)? != 1 {
                    return Err("operands that are negated are not supported".into());
                }
                let across = [number(w.at(6)?)? != 0, number(w.at(7)?)? != 0];
                Bulk::Mma(GroupMma { element, d, a: self.src(w.at(1)?)?, b: self.src(w.at(2)?)?, add, across })
            }
            ["mbarrier" | "wgmma" | "setmaxnreg", ..] | ["cp", "async", "bulk", ..] => return Err(w.unknown()),
            _ => return Ok(None),
        }))
    }
}
