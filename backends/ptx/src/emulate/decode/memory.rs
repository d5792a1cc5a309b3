//! Loads, stores, atomics and asynchronous copies.
//!
//! Invariant: that of the module around it. Caches are not modelled: what only hints at them does nothing.

use super::super::alu::{IntOp, Ty};
use super::super::parse::Operand;
use super::{Atom, Bulk, Decoder, Op, Result1, Space, Src, Words};

impl Decoder<'_> {
    /// The instruction; nothing where it is none of this kind.
    pub(super) fn accesses(&self, w: &Words<'_>) -> Result1<Option<Op>> {
        let space = if w.has("global") || w.has("const") {
            Space::Global
        } else if w.has("shared") || w.has("shared::cta") {
            Space::Shared
        } else if w.has("local") {
            Space::Local
        } else if w.has("param") {
            Space::Param
        } else {
            Space::Generic
        };
        let done = match w.name[0] {
            "ld" | "ldu" => {
                let targets = self.list(w.at(0)?, |s, o| s.target(o))?;
                Ok(Op::Ld { space, ty: w.typed()?, targets, address: self.address(w.at(1)?)? })
            }
            "st" => {
                let ty = w.typed()?;
                let sources = self.list(w.at(1)?, |s, o| s.float_src(ty, o))?;
                Ok(Op::St { space, ty, sources, address: self.address(w.at(0)?)? })
            }
            "atom" | "red" if w.name[0] == "atom" || !w.has("async") => self.atom(w, space),
            "fence" if w.has("mbarrier_init") => Ok(Op::Bulk(Box::new(Bulk::ProxyFence))),
            "membar" | "fence" | "prefetch" | "prefetchu" | "nanosleep" | "discard" | "applypriority" => Ok(Op::Nop),
            "createpolicy" => Ok(Op::Mov(self.reg(w.at(0)?)?, Src::Imm(0), u64::MAX)),
            "griddepcontrol" => Ok(Op::Nop),
            "cp" => {
                if !w.has("async") || w.has("bulk") || w.has("mbarrier") || w.has("reduce") {
                    return Err(w.unknown());
                }
                match w.name.get(2).copied() {
                    Some("commit_group") => Ok(Op::Commit),
                    Some("wait_all") => Ok(Op::Wait(None)),
                    Some("wait_group") => match self.src(w.at(0)?)? {
                        Src::Imm(n) => Ok(Op::Wait(Some(n))),
                        _ => Err("the number of groups is no number".into()),
                    },
                    _ => {
                        let Src::Imm(bytes @ (4 | 8 | 16)) = self.src(w.at(2)?)? else {
                            return Err("an asynchronous copy has 4, 8 or 16 bytes".into());
                        };
                        let (read, off) = match w.operand(3) {
                            None => (None, None),
                            Some(Operand::Register(r))
                                if self.entry.registers.get(*r).is_some_and(|n| n.starts_with("%p")) =>
                            {
                                (None, Some(*r))
                            }
                            Some(other) => (Some(self.src(other)?), None),
                        };
                        let (to, from) = (self.address(w.at(0)?)?, self.address(w.at(1)?)?);
                        Ok(Op::CpAsync { to, from, bytes: bytes as usize, read, off })
                    }
                }
            }
            _ => return Ok(None),
        };
        done.map(Some)
    }

    fn atom(&self, w: &Words<'_>, space: Space) -> Result1<Op> {
        let ty = w.name.last().and_then(|n| Ty::parse(n)).ok_or_else(|| w.unknown())?;
        let ops = [
            ("add", Atom::Int(IntOp::Add)),
            ("min", Atom::Int(IntOp::Min)),
            ("max", Atom::Int(IntOp::Max)),
            ("and", Atom::Int(IntOp::And)),
            ("or", Atom::Int(IntOp::Or)),
            ("xor", Atom::Int(IntOp::Xor)),
            ("exch", Atom::Exchange),
            ("cas", Atom::Cas),
            ("inc", Atom::Inc),
            ("dec", Atom::Dec),
        ];
        let op = ops.iter().find(|(n, _)| w.has(n)).map(|(_, o)| *o).ok_or_else(|| w.unknown())?;
        let op = match (op, ty.is_float()) {
            (Atom::Int(IntOp::Add), true) => Atom::Float,
            (Atom::Int(_), true) => return Err(w.unknown()),
            (other, _) => other,
        };
        if w.name.iter().any(|n| matches!(*n, "v2" | "v4" | "v8")) || ty.bytes() < 2 {
            return Err(w.unknown());
        }
        let first = usize::from(w.name[0] == "atom");
        let d = if first == 1 { self.target(w.at(0)?)? } else { None };
        let b = self.float_src(ty, w.at(first + 1)?)?;
        let c = if op == Atom::Cas { self.src(w.at(first + 2)?)? } else { Src::Imm(0) };
        Ok(Op::Atom { space, op, ty, d, address: self.address(w.at(first)?)?, b, c })
    }
}
