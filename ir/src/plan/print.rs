//! The text form of plans.

use super::{Elements, Loop, Place, Plan, Refusal, Step};
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
        // The last steps of the loops and branches around a step: it stands two columns further right for each.
        let mut around: Vec<usize> = Vec::new();
        for (n, step) in self.steps.iter().enumerate() {
            around.retain(|&last| n <= last);
            write!(f, "{:1$}", "", 2 + 2 * around.len())?;
            let (reads, writes) = step.accesses();
            match step {
                Step::Launch { kernel, .. } => {
                    writeln!(f, "launch {kernel}({}) -> ({})", Commas(reads.iter()), Commas(writes.iter()))?
                }
                Step::Host { op, origin, .. } => writeln!(
                    f,
                    "host ({}) -> ({}) {op} from [{}]",
                    Commas(reads.iter()),
                    Commas(writes.iter()),
                    names(origin)
                )?,
                Step::Copy { from, to } => writeln!(f, "copy {from} -> {to}")?,
                Step::Bind { from, to, origin } => writeln!(f, "bind {from} -> {to} from [{}]", names(origin))?,
                Step::Refuse { why: Refusal::Unequal(sides), origin } => {
                    let (left, right) = &**sides;
                    writeln!(f, "refuse unless {left} = {right} from [{}]", names(origin))?
                }
                Step::Refuse { why: Refusal::Always(message), origin } => {
                    writeln!(f, "refuse {message:?} from [{}]", names(origin))?
                }
                Step::If { condition, then, otherwise, origin } => {
                    writeln!(f, "if {condition} then {then} else {otherwise} from [{}]", names(origin))?
                }
                Step::Loop(l) => writeln!(f, "{l}")?,
            }
            if step.inner() > 0 {
                around.push(n.saturating_add(step.inner()));
            }
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Elements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}{}", self.element, self.whole, if self.backward { " backward" } else { "" })
    }
}

impl fmt::Display for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loop {}", self.body)?;
        let parts = [("times", self.times), ("first", self.first), ("again", self.again), ("counter", self.counter)];
        for (word, slot) in parts {
            if let Some(slot) = slot {
                write!(f, " {word} {slot}")?;
            }
        }
        let carried: Vec<String> = self.carried.iter().map(|(next, state)| format!("{next} -> {state}")).collect();
        let (scanned, collected) = (Commas(&self.scanned), Commas(&self.collected));
        write!(f, " scan ({scanned}) carry ({}) collect ({collected})", carried.join(", "))?;
        write!(f, " from [{}]", names(&self.origin))
    }
}
