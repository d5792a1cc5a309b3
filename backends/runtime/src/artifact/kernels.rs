//! Where each kernel lies in a code section.
//!
//! Invariant: entry `n` is kernel `n` of the plan, for every CPU level, and every entry lies
//! inside the code. The text form has one line per kernel: `name offset bytes grain emitter programs`.

use kiln_ir::Expr;
use std::fmt;
use std::str::FromStr;

/// One kernel's machine code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelEntry {
    /// The kernel's name in the plan; no white space.
    pub name: String,
    /// Its first byte, from the start of the code section.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The fewest programs that are worth a thread of their own.
    pub grain: u64,
    /// The emitter that made it, for reports; no white space.
    pub emitter: String,
    /// How many programs its grid has, over the plan's symbols.
    pub programs: Expr,
}

/// The kernels of one code section in the order of the plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelTable(pub Vec<KernelEntry>);

/// Why a text is no kernel table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelTableError {
    /// A line is not `name offset bytes grain emitter programs`.
    #[error("line {0} of the kernel table is not `name offset bytes grain emitter programs`")]
    Line(usize),
    /// A kernel does not lie inside the code.
    #[error("kernel {name} lies outside the {code_bytes} bytes of machine code")]
    Outside {
        /// The kernel's name.
        name: String,
        /// Size of the code section.
        code_bytes: u64,
    },
}

impl KernelTable {
    /// Checks that all kernels lie inside `code_bytes` bytes of machine code.
    ///
    /// # Errors
    /// [`KernelTableError::Outside`] for the first that does not.
    pub fn check(&self, code_bytes: u64) -> Result<(), KernelTableError> {
        let inside = |entry: &&KernelEntry| {
            let end = entry.offset.checked_add(entry.bytes);
            entry.bytes > 0 && end.is_some_and(|end| end <= code_bytes)
        };
        match self.0.iter().find(|entry| !inside(entry)) {
            None => Ok(()),
            Some(entry) => Err(KernelTableError::Outside { name: entry.name.clone(), code_bytes }),
        }
    }
}

impl fmt::Display for KernelTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.0 {
            let KernelEntry { name, offset, bytes, grain, emitter, programs } = entry;
            writeln!(f, "{name} {offset} {bytes} {grain} {emitter} {programs}")?;
        }
        Ok(())
    }
}

impl FromStr for KernelTable {
    type Err = KernelTableError;

    fn from_str(text: &str) -> Result<Self, KernelTableError> {
        let entry = |line: &str| {
            let mut words = line.splitn(6, ' ');
            Some(KernelEntry {
                name: words.next().filter(|name| !name.is_empty())?.to_string(),
                offset: words.next()?.parse().ok()?,
                bytes: words.next()?.parse().ok()?,
                grain: words.next()?.parse().ok()?,
                emitter: words.next()?.to_string(),
                programs: words.next()?.parse().ok()?,
            })
        };
        text.lines()
            .enumerate()
            .map(|(index, line)| entry(line).ok_or(KernelTableError::Line(index + 1)))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_round_trip_and_are_checked() {
        let text = "k0 0 128 1 cranelift 7\nk1 128 64 2 wide 3*floordiv(n, 4) + 1\n";
        let table: KernelTable = text.parse().unwrap();
        assert_eq!(table.to_string(), text);
        assert_eq!(table.check(192), Ok(()));
        assert_eq!(table.check(191).unwrap_err().to_string(), "kernel k1 lies outside the 191 bytes of machine code");
        for bad in ["k0 0 128 1 c", "k0 0 128 1 cranelift 1 x", "k0 -1 4 1 c 1", "", " 0 1 1 c 1"] {
            let text = format!("k 0 1 1 c 1\n{bad}\n");
            assert_eq!(text.parse::<KernelTable>(), Err(KernelTableError::Line(2)), "{bad:?}");
        }
        let huge: KernelTable = format!("k {} 2 1 c 1\n", u64::MAX).parse().unwrap();
        assert!(huge.check(u64::MAX).is_err());
    }
}
