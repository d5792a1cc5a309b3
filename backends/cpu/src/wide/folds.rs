//! Several vectors folded at once, each to a lane of the result.
//!
//! Invariant: every lane is folded in the order in which a fold by itself would do it: lanes `i` and `i + n/2` first. Two vectors that
//! hold what is left of some values, a part of each in neighbouring lanes, become one that holds what is left of all of them in parts of half
//! the width: the lower halves of all parts with the upper ones. Folding one by one takes as many steps for each value.

use super::codes;
use super::emit::{Emitter, imm8};
use super::machine::{Arg, Width};
use crate::Error;
use kiln_ir::vector::{ValueId, VectorType};
use kiln_ir::{BinaryOp, DType};
use regalloc2::VReg;

/// Lanes of the 16 bytes within which instructions move single lanes.
const CHUNK: usize = 4;

/// The lower (or upper) halves of the parts of one vector, then of another, as the instructions of [`Emitter::halves_of_parts`] have
/// them: within 16 bytes, or of the whole where a part is longer.
fn halves_of_parts<T: Copy>(a: &[T], b: &[T], part: usize, upper: bool) -> Vec<T> {
    let group = if part > CHUNK { a.len() } else { CHUNK };
    let half = |lanes: &[T]| -> Vec<T> {
        let wanted = |n: &usize| (n % part >= part / 2) == upper;
        (0..lanes.len()).filter(wanted).map(|n| lanes[n]).collect()
    };
    a.chunks(group).zip(b.chunks(group)).flat_map(|(a, b)| [half(a), half(b)].concat()).collect()
}

/// Which of so many vectors each lane of the result comes from.
fn order(vectors: usize, lanes: usize) -> Vec<usize> {
    let mut rest: Vec<Vec<usize>> = (0..vectors).map(|n| vec![n; lanes]).collect();
    let mut part = lanes;
    while part > 1 {
        if let [one] = rest.as_slice() {
            let (low, high) = one.split_at(one.len() / 2);
            rest = vec![low.to_vec(), high.to_vec()];
        }
        rest = rest.chunks(2).map(|pair| halves_of_parts(&pair[0], &pair[pair.len() - 1], part, false)).collect();
        part /= 2;
    }
    rest.concat()
}

impl Emitter<'_> {
    /// A vector whose lanes are the folds of as many vectors with lanes of 4 bytes, a power of two of them; nothing where that is no
    /// vector of 16 bytes or more, or has more lanes than they.
    pub fn folded_together(&mut self, op: BinaryOp, vectors: &[ValueId]) -> Result<Option<VReg>, Error> {
        let Some(&first) = vectors.first() else { return Ok(None) };
        let ty = self.ty(first);
        let (count, lanes) = (vectors.len(), ty.lanes as usize);
        if count < CHUNK || count > lanes || !count.is_power_of_two() {
            return Ok(None);
        }
        let mut places = vec![0; count];
        for (lane, &at) in order(count, lanes).iter().enumerate() {
            places[at] = lane;
        }
        let mut rest = places.iter().map(|&lane| self.vector_of(vectors[lane])).collect::<Result<Vec<_>, _>>()?;
        let (mut width, mut part) = (ty, lanes);
        while part > 1 {
            if let [one] = *rest {
                let upper = self.upper_half(width, one)?;
                width = VectorType { lanes: width.lanes / 2, ..width };
                rest = vec![one, upper];
            }
            let mut next = Vec::new();
            for pair in rest.chunks(2) {
                let &[a, b] = pair else { return Err(self.unsupported("a fold of an odd number of vectors")) };
                let low = self.halves_of_parts(width, (a, b), part, false)?;
                let high = self.halves_of_parts(width, (a, b), part, true)?;
                let high = Arg::Use(high, self.width(width)?);
                next.push(self.lanes_binary(width, op, low, high)?);
            }
            rest = next;
            part /= 2;
        }
        Ok(rest.first().copied())
    }

    /// The upper half of a vector of more than 16 bytes.
    fn upper_half(&mut self, ty: VectorType, vector: VReg) -> Result<VReg, Error> {
        if self.width(ty)? == Width::Y {
            return self.chunk(vector, Width::Y, 1);
        }
        let (code, to) = (self.code(codes::VEXTRACTF64X4, Width::Z)?, self.vector());
        self.ins(code, &[Arg::Def(to, Width::Y), Arg::Use(vector, Width::Z), imm8(1)]);
        Ok(to)
    }

    /// See the function of this name.
    fn halves_of_parts(
        &mut self,
        ty: VectorType,
        (a, b): (VReg, VReg),
        part: usize,
        upper: bool,
    ) -> Result<VReg, Error> {
        let width = self.width(ty)?;
        let (row, [low, high]) = match (part, ty.lanes) {
            (2, _) => (codes::VSHUFPS, [0x88, 0xdd]),
            (4, _) => (codes::VSHUFPS, [0x44, 0xee]),
            (8, 8) if self.wide() => (codes::VSHUFF32X4, [0, 3]),
            (8, 8) => (codes::VPERM2F128, [0x20, 0x31]),
            (8, 16) => (codes::VSHUFF32X4, [0x88, 0xdd]),
            (16, 16) => (codes::VSHUFF32X4, [0x44, 0xee]),
            _ => return Err(self.unsupported(format!("parts of {part} lanes of {ty}"))),
        };
        self.binary_with(row, width, a, Arg::Use(b, width), if upper { high } else { low })
    }
}

impl<'a> Emitter<'a> {
    /// One lane of each of as many vectors as they have lanes. All lanes are made together, where the first one of a block is.
    pub fn column(&mut self, ty: VectorType, vectors: &'a [ValueId], lane: u32) -> Result<VReg, Error> {
        if !self.columns.contains_key(vectors) {
            let own = vectors.iter().map(|&v| self.vector_of(v)).collect::<Result<Vec<_>, _>>()?;
            let made = self.transposed(ty, &own)?;
            self.columns.insert(vectors, made);
        }
        let made = self.columns.get(vectors).and_then(|made| made.get(lane as usize));
        made.copied().ok_or_else(|| self.unsupported(format!("lane {lane} of {ty}")))
    }

    /// Vectors transposed: first within 16 bytes, as many vectors at a time as these have lanes, then the 16 bytes of them.
    fn transposed(&mut self, ty: VectorType, vectors: &[VReg]) -> Result<Vec<VReg>, Error> {
        let (width, size) = (self.width(ty)?, ty.dtype.size());
        let (low, high) = match size {
            1 => (codes::VPUNPCKLBW, codes::VPUNPCKHBW),
            2 => (codes::VPUNPCKLWD, codes::VPUNPCKHWD),
            4 => (codes::VUNPCKLPS, codes::VUNPCKHPS),
            8 => (codes::VUNPCKLPD, codes::VUNPCKHPD),
            _ => return Err(self.unsupported(format!("{ty} transposed"))),
        };
        let within = 16 / size;
        if vectors.len() < within {
            return Err(self.unsupported(format!("{ty} transposed")));
        }
        let mut groups: Vec<Vec<VReg>> = Vec::new();
        for group in vectors.chunks(within) {
            // Each round brings the lanes of a vector and of that half of them further together, until those of all are.
            let mut group = group.to_vec();
            for _ in 0..within.ilog2() {
                let (first, second) = group.split_at(group.len() / 2);
                let mut next = Vec::new();
                for (&a, &b) in first.iter().zip(second) {
                    next.push(self.binary(low, width, a, Arg::Use(b, width))?);
                    next.push(self.binary(high, width, a, Arg::Use(b, width))?);
                }
                group = next;
            }
            groups.push(group);
        }
        // Whatever the lanes are, 16 bytes are moved whole.
        let words = VectorType { dtype: DType::F32, lanes: (size * ty.lanes as usize / 4) as u32 };
        // Of each group of vectors: lane `n` of each 16 bytes. The 16 bytes of all groups come together.
        let mut lanes = vec![None; vectors.len()];
        for n in 0..within {
            let chunks: Vec<VReg> = groups.iter().filter_map(|group| group.get(n).copied()).collect();
            let made = match *chunks {
                [one] => vec![one],
                [a, b] => [false, true]
                    .map(|upper| self.halves_of_parts(words, (a, b), 8, upper))
                    .into_iter()
                    .collect::<Result<_, _>>()?,
                [a, b, c, d] => {
                    let mut half = |a, b, upper| self.halves_of_parts(words, (a, b), 8, upper);
                    let (even, odd) =
                        ([half(a, b, false)?, half(c, d, false)?], [half(a, b, true)?, half(c, d, true)?]);
                    let [first, third] = [half(even[0], even[1], false)?, half(even[0], even[1], true)?];
                    let [second, fourth] = [half(odd[0], odd[1], false)?, half(odd[0], odd[1], true)?];
                    vec![first, second, third, fourth]
                }
                _ => vec![],
            };
            for (at, vector) in made.into_iter().enumerate() {
                if let Some(lane) = lanes.get_mut(within * at + n) {
                    *lane = Some(vector);
                }
            }
        }
        lanes.into_iter().collect::<Option<_>>().ok_or_else(|| self.unsupported(format!("{ty} transposed")))
    }
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn every_vector_comes_to_a_lane() {
        for lanes in [4, 8, 16] {
            for count in [4, 8, 16].into_iter().filter(|&count| count <= lanes) {
                let mut found = order(count, lanes);
                found.sort_unstable();
                assert_eq!(found, (0..count).collect::<Vec<_>>(), "{count} vectors of {lanes} lanes");
            }
        }
    }
}
