//! The text form of plans.

use super::{Place, Plan, Step};
use crate::text::Commas;
use std::fmt;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Weights(at) => write!(f, "weights {at}"),
            Place::Input(n) => write!(f, "input {n}"),
            Place::Output(n) => write!(f, "output {n}"),
            Place::Arena(at) => write!(f, "arena {at}"),
            Place::Region(n) => write!(f, "region {n}"),
            Place::Host => f.write_str("host"),
        }
    }
}

fn names(origin: &crate::Origin) -> String {
    origin.names().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {:?} {{", self.name)?;
        writeln!(f, "  arena {} live {} weights {}", self.arena_bytes, self.live_bytes, self.weight_bytes)?;
        for (symbol, (lo, hi)) in &self.symbols {
            writeln!(f, "  symbol {symbol} in {lo}..{hi}")?;
        }
        for (n, bytes) in self.regions.iter().enumerate() {
            writeln!(f, "  region {n} of {bytes}")?;
        }
        for r in &self.requirements {
            writeln!(f, "  require {} = {} from [{}]", r.left, r.right, names(&r.origin))?;
        }
        for k in &self.kernels {
            writeln!(
                f,
                "  kernel {:?} operations {} bytes {} what {:?} from [{}]",
                k.name,
                k.operations,
                k.bytes,
                k.what,
                names(&k.origin)
            )?;
        }
        for (id, slot) in self.slots.iter() {
            write!(f, "  slot {id}")?;
            if let Some(name) = &slot.name {
                write!(f, " {:?}", &**name)?;
            }
            writeln!(f, " : {} in {}", slot.ty, slot.place)?;
        }
        for (name, slot) in &self.inputs {
            writeln!(f, "  input {slot} {:?}", &**name)?;
        }
        for (name, slot) in &self.outputs {
            writeln!(f, "  output {slot} {:?}", &**name)?;
        }
        for step in &self.steps {
            let (reads, writes) = step.accesses();
            match step {
                Step::Launch { kernel, .. } => {
                    writeln!(f, "  launch {kernel}({}) -> ({})", Commas(reads), Commas(writes))?
                }
                Step::Host { op, origin, .. } => {
                    writeln!(f, "  host ({}) -> ({}) {op} from [{}]", Commas(reads), Commas(writes), names(origin))?
                }
                Step::Copy { from, to } => writeln!(f, "  copy {from} -> {to}")?,
            }
        }
        writeln!(f, "}}")
    }
}
