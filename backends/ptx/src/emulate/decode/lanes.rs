//! What lanes and warps do together, and where they go next: branches, barriers, shuffles, votes and products of matrices.
//!
//! Invariant: that of the module around it.

use super::super::alu::IntOp;
use super::super::parse::Operand;
use super::{Decoder, Element, Mma, Op, Result1, Shuffle, Src, Vote, Words};

impl Decoder<'_> {
    /// The instruction; nothing where it is none of this kind.
    pub(super) fn together(&self, w: &Words<'_>) -> Result1<Option<Op>> {
        let done = match w.name[0] {
            "bra" => self.label(w.at(0)?).map(Op::Bra),
            "ret" | "exit" => Ok(Op::Ret),
            "trap" | "brkpt" => Ok(Op::Trap),
            "bar" | "barrier" => {
                let first = self.src(w.at(0)?)?;
                if w.has("warp") {
                    Ok(Op::WarpSync(first))
                } else if w.has("red") || w.has("cluster") {
                    Err(w.unknown())
                } else {
                    let count = w.operand(1).map(|c| self.src(c)).transpose()?;
                    Ok(Op::Bar { id: first, count, arrive: w.has("arrive") })
                }
            }
            "shfl" => {
                let mode = match w.name.get(2).or(w.name.get(1)).copied() {
                    Some("up") => Shuffle::Up,
                    Some("down") => Shuffle::Down,
                    Some("bfly") => Shuffle::Bfly,
                    Some("idx") => Shuffle::Idx,
                    _ => return Err(w.unknown()),
                };
                let (d, p) = match w.at(0)? {
                    Operand::Pair(d, p) => (*d, *p),
                    other => (self.reg(other)?, None),
                };
                let members = w.operand(4).map_or(Ok(Src::Imm(0xffff_ffff)), |m| self.src(m))?;
                Ok(Op::Shfl {
                    mode,
                    d,
                    p,
                    a: self.src(w.at(1)?)?,
                    b: self.src(w.at(2)?)?,
                    c: self.src(w.at(3)?)?,
                    members,
                })
            }
            "vote" => {
                let mode = [("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uni), ("ballot", Vote::Ballot)];
                let mode = mode.iter().find(|(m, _)| w.has(m)).map(|(_, v)| *v).ok_or_else(|| w.unknown())?;
                let (a, not) = match w.at(1)? {
                    Operand::Register(p) => (*p, false),
                    Operand::Not(p) => (*p, true),
                    _ => return Err("the second operand is no predicate".into()),
                };
                let members = w.operand(2).map_or(Ok(Src::Imm(0xffff_ffff)), |m| self.src(m))?;
                Ok(Op::Vote { mode, d: self.reg(w.at(0)?)?, a, not, members })
            }
            "redux" => {
                let ops = [
                    ("add", IntOp::Add),
                    ("min", IntOp::Min),
                    ("max", IntOp::Max),
                    ("and", IntOp::And),
                    ("or", IntOp::Or),
                    ("xor", IntOp::Xor),
                ];
                let op = ops.iter().find(|(m, _)| w.has(m)).map(|(_, v)| *v).ok_or_else(|| w.unknown())?;
                Ok(Op::Redux {
                    op,
                    ty: w.typed()?,
                    d: self.reg(w.at(0)?)?,
                    a: self.src(w.at(1)?)?,
                    members: self.src(w.at(2)?)?,
                })
            }
            "activemask" => Ok(Op::Active(self.reg(w.at(0)?)?)),
            "ldmatrix" => {
                if !w.has("m8n8") || w.last() != "b16" {
                    return Err(w.unknown());
                }
                let targets = self.list(w.at(0)?, |s, o| s.reg(o))?;
                Ok(Op::Ldmatrix { trans: w.has("trans"), targets, address: self.address(w.at(1)?)? })
            }
            "mma" => self.mma(w),
            _ => return Ok(None),
        };
        done.map(Some)
    }

    fn mma(&self, w: &Words<'_>) -> Result1<Op> {
        let ["mma", "sync", "aligned", shape, "row", "col", rest @ ..] = w.name.as_slice() else {
            return Err(w.unknown());
        };
        let rest: Vec<&str> = rest.iter().copied().filter(|m| *m != "satfinite").collect();
        let [d_type, a_type, b_type, c_type] = rest.as_slice() else { return Err(w.unknown()) };
        let element = |n: &str| {
            Some(match n {
                "f16" => Element::F16,
                "bf16" => Element::BF16,
                "tf32" => Element::TF32,
                "s8" => Element::S8,
                "u8" => Element::U8,
                "e4m3" => Element::E4M3,
                "e5m2" => Element::E5M2,
                _ => return None,
            })
        };
        let (a_type, b_type) =
            (element(a_type).ok_or_else(|| w.unknown())?, element(b_type).ok_or_else(|| w.unknown())?);
        let depth = match *shape {
            "m16n8k4" => 4,
            "m16n8k8" => 8,
            "m16n8k16" => 16,
            "m16n8k32" => 32,
            _ => return Err(w.unknown()),
        };
        let (bits, fine) = match a_type {
            Element::F16 | Element::BF16 => (16, matches!(depth, 8 | 16)),
            Element::TF32 => (32, matches!(depth, 4 | 8)),
            Element::S8 | Element::U8 => (8, matches!(depth, 16 | 32)),
            // Of 16 places they are of later versions, which add up in f16, too.
            Element::E4M3 | Element::E5M2 => (8, depth == 32),
        };
        let floats = |e: &Element| matches!(e, Element::E4M3 | Element::E5M2);
        let whole = matches!(a_type, Element::S8 | Element::U8);
        let half = *d_type == "f16";
        let accumulators = if whole { *d_type == "s32" } else { half || *d_type == "f32" };
        let pair = whole && matches!(b_type, Element::S8 | Element::U8) || floats(&a_type) && floats(&b_type);
        let same = d_type == c_type && (a_type == b_type || pair);
        if !fine || !accumulators || !same || half && a_type != Element::F16 {
            return Err(w.unknown());
        }
        let d = self.list(w.at(0)?, |s, o| s.reg(o))?;
        let [a, b, c] = [1, 2, 3].map(|n| w.at(n).and_then(|o| self.list(o, |s, o| s.src(o))));
        let (a, b, c) = (a?, b?, c?);
        let words = |rows: usize| rows * depth * bits / 32 / 32;
        let results = if half { 2 } else { 4 };
        if a.len() != words(16) || b.len() != words(8) || d.len() != results || c.len() != results {
            return Err(format!("`{}` has other numbers of registers", w.whole()));
        }
        Ok(Op::Mma(Box::new(Mma { depth, a_type, b_type, half, d, a, b, c })))
    }
}
