//! Extents as tensors that the model computes from its inputs' shapes.

use super::{Export, ExportError, int};
use kiln_ir::expr::{Atom, Expr};

impl Export<'_> {
    /// A tensor `[extents]` of i64.
    pub(super) fn extents(&mut self, extents: &[Expr]) -> Result<String, ExportError> {
        let fixed: Option<Vec<i64>> = extents.iter().map(Expr::as_const).collect();
        if let Some(fixed) = fixed {
            return self.numbers("shape", &fixed);
        }
        let mut parts = Vec::with_capacity(extents.len());
        for extent in extents {
            parts.push(self.extent(extent)?);
        }
        match parts.as_slice() {
            [one] => Ok(one.clone()),
            parts => {
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                Ok(self.add("shape", "Concat", &parts, &[("axis", int(0))]))
            }
        }
    }

    /// A tensor `[1]` of i64.
    fn extent(&mut self, extent: &Expr) -> Result<String, ExportError> {
        if let Some(known) = self.extents.get(extent) {
            return Ok(known.clone());
        }
        let made = self.sum(extent)?;
        self.extents.insert(extent.clone(), made.clone());
        Ok(made)
    }

    fn sum(&mut self, extent: &Expr) -> Result<String, ExportError> {
        let mut sum: Option<String> = None;
        for (atoms, coefficient) in extent.terms() {
            let mut product: Option<String> = None;
            for atom in atoms {
                let factor = self.atom(atom)?;
                product = Some(self.joined("Mul", product, factor));
            }
            let mut product = product.ok_or_else(|| ExportError::Extent(extent.to_string()))?;
            if coefficient != 1 {
                let factor = self.numbers("factor", &[coefficient])?;
                product = self.joined("Mul", Some(product), factor);
            }
            sum = Some(self.joined("Add", sum, product));
        }
        match (sum, extent.constant()) {
            (Some(sum), 0) => Ok(sum),
            (sum, constant) => {
                let constant = self.numbers("number", &[constant])?;
                Ok(self.joined("Add", sum, constant))
            }
        }
    }

    fn joined(&mut self, op: &str, left: Option<String>, right: String) -> String {
        match left {
            None => right,
            Some(left) => self.add("extent", op, &[&left, &right], &[]),
        }
    }

    fn atom(&mut self, atom: &Atom) -> Result<String, ExportError> {
        let both = |work: &mut Self, a: &Expr, b: &Expr| Ok((work.extent(a)?, work.extent(b)?));
        match atom {
            Atom::Symbol(symbol) => {
                let place = self.symbols.get(symbol).cloned();
                let (input, axis) = place.ok_or_else(|| ExportError::Extent(symbol.to_string()))?;
                let part = [("start", int(axis)), ("end", int(axis + 1))];
                Ok(self.add(symbol.name(), "Shape", &[&input], &part))
            }
            Atom::FloorDiv(a, b) => {
                // ONNX's quotient is rounded towards 0; without the remainder, which has the divisor's sign, it is exact.
                let (a, b) = both(self, a, b)?;
                let rest = self.add("extent", "Mod", &[&a, &b], &[]);
                let whole = self.add("extent", "Sub", &[&a, &rest], &[]);
                Ok(self.add("extent", "Div", &[&whole, &b], &[]))
            }
            Atom::Mod(a, b) => {
                let (a, b) = both(self, a, b)?;
                Ok(self.add("extent", "Mod", &[&a, &b], &[]))
            }
            Atom::Min(a, b) => {
                let (a, b) = both(self, a, b)?;
                Ok(self.add("extent", "Min", &[&a, &b], &[]))
            }
            Atom::Max(a, b) => {
                let (a, b) = both(self, a, b)?;
                Ok(self.add("extent", "Max", &[&a, &b], &[]))
            }
        }
    }
}
