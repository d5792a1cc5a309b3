//! Expressions as code against their evaluation.

use super::asm::{self, Routine};
use super::data::Data;
use super::formulas::Formulas;
use kiln_ir::expr::{Expr, Symbol};

/// Runs routine bytes that refer to nothing.
fn call(bytes: &[u8], dims: &[i64], values: &mut [i64]) {
    let mut pages = memmap2::MmapMut::map_anon(bytes.len()).unwrap();
    pages.copy_from_slice(bytes);
    let pages = pages.make_exec().unwrap();
    // SAFETY: the bytes are a function that was compiled with this signature; it reads the dims and writes the values, as many
    // as it was made for.
    let routine: unsafe extern "C" fn(*const i64, *mut i64) -> i64 = unsafe { std::mem::transmute(pages.as_ptr()) };
    // SAFETY: as above; the pages live to the end of the call.
    unsafe { routine(dims.as_ptr(), values.as_mut_ptr()) };
}

/// Numbers that look random and are the same on every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below
    }

    fn constant(&mut self) -> i64 {
        match self.next(8) {
            0 => i64::MIN,
            1 => i64::MAX,
            2 => -1,
            3 => 0,
            _ => self.next(40) as i64 - 12,
        }
    }

    fn expr(&mut self, symbols: &[Symbol], depth: u32) -> Expr {
        if depth == 0 || self.next(6) == 0 {
            return match self.next(2) {
                0 => Expr::from(self.constant()),
                _ => Expr::from(&symbols[self.next(symbols.len() as u64) as usize]),
            };
        }
        let (a, b) = (self.expr(symbols, depth - 1), self.expr(symbols, depth - 1));
        match self.next(7) {
            0 => a.sub(&b),
            1 => a.mul(&b),
            2 => a.floor_div(&b),
            3 => a.modulo(&b),
            4 => a.least(&b),
            5 => a.greatest(&b),
            _ => a.add(&b),
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn formulas_compute_what_expressions_evaluate_to() {
    let mut numbers = Numbers(7);
    let names = ["a", "b", "c"].map(Symbol::new);
    let ranges = [(1, 1000), (i64::MIN, i64::MAX), (-5, 5)];
    let symbols: Vec<(Symbol, (i64, i64))> = names.iter().cloned().zip(ranges).collect();
    let mut distinct = 0;
    for round in 0..60 {
        let exprs: Vec<Expr> = (0..8).map(|_| numbers.expr(&names, 4)).collect();
        let made = asm::compile(Routine::Formulas, &mut Data::default(), |c, p| {
            let mut formulas = Formulas::load(c, &symbols, p[0]);
            for (n, e) in exprs.iter().enumerate() {
                let value = formulas.value(c, e);
                c.store(value, p[1], n as i32 * 8);
            }
            let zero = c.int(0);
            c.ret(zero);
        });
        let made = made.unwrap();
        assert!(made.calls.is_empty() && made.references.is_empty());
        for _ in 0..6 {
            let wide = numbers.constant();
            let dims = [1 + numbers.next(1000) as i64, wide, numbers.next(11) as i64 - 5];
            let mut values = vec![0; exprs.len()];
            call(&made.bytes, &dims, &mut values);
            for (e, value) in exprs.iter().zip(values) {
                let want = e.eval(&|s| Some(dims[names.iter().position(|n| n == s).unwrap()])).unwrap();
                assert_eq!(value, want, "round {round}: {e} for {dims:?}");
                distinct += u32::from(want != 0);
            }
        }
    }
    assert!(distinct > 500, "most expressions must be worth comparing: {distinct}");
}
