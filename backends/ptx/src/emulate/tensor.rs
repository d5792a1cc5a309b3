//! Tensor maps, and where swizzles put bytes.
//!
//! Invariant: a map is 128 bytes that only [`TensorMap::encode`] makes, as on a GPU only the driver makes them; bytes that are
//! none are refused, never followed.
//!
//! Sources: "CUDA Driver API", `cuTensorMapEncodeTiled`; "Parallel Thread Execution ISA", "Tensor swizzling modes" and
//! "Matrix descriptor format" of `wgmma`.

use kiln_ir::warp::Map;

/// Bytes of a tensor map.
pub const BYTES: usize = 128;

/// What our maps begin with.
const MAGIC: u64 = 0x6b69_6c6e_746d_6170;

/// How 16-byte pieces change places within rows of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// They do not.
    None,
    /// Rows of 32, 64 or 128 bytes.
    Row(u64),
}

impl Swizzle {
    /// Where the byte of an address lies: bits 4 to 6 are changed by the bits from 7 on, so many as the pieces of a row need.
    pub fn place(self, address: u64) -> u64 {
        match self {
            Swizzle::None => address,
            Swizzle::Row(bytes) => address ^ (address >> 7 & (bytes / 16 - 1)) << 4,
        }
    }
}

/// An array of which boxes are copied to shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Where the array begins.
    pub address: u64,
    /// Bytes of an element.
    pub element: u64,
    /// Elements along each axis, first that of neighbours; one to five axes.
    pub extents: Vec<u64>,
    /// Bytes from one place to the next along each axis but the first.
    pub strides: Vec<u64>,
    /// Elements of a box along each axis.
    pub shape: Vec<u32>,
    /// How a box lies in shared memory.
    pub swizzle: Swizzle,
}

impl From<&Map> for TensorMap {
    /// The map that a launch wants, its address counted from its buffer's.
    fn from(map: &Map) -> TensorMap {
        let Map { first, extents, strides, shape, .. } = map.clone();
        let strides = strides.into_iter().map(|s| 2 * s).collect();
        TensorMap { address: 2 * first, element: 2, extents, strides, shape, swizzle: Swizzle::Row(128) }
    }
}

impl TensorMap {
    /// The map as an argument, where the driver would make one of it.
    ///
    /// # Errors
    /// What the driver refuses, in words.
    pub fn encode(&self) -> Result<[u8; BYTES], String> {
        let TensorMap { address, element, extents, strides, shape, swizzle } = self;
        let rank = extents.len();
        if !(1..=5).contains(&rank) || strides.len() + 1 != rank || shape.len() != rank {
            return Err(format!("{rank} extents, {} strides and boxes of {} axes", strides.len(), shape.len()));
        }
        if !address.is_multiple_of(16) || strides.iter().any(|s| !s.is_multiple_of(16) || *s >= 1 << 40) {
            return Err("an address or a stride that is no multiple of 16".into());
        }
        if extents.iter().any(|e| !(1..=1 << 32).contains(e)) || shape.iter().any(|e| !(1..=256).contains(e)) {
            return Err(format!("extents of {extents:?} and boxes of {shape:?}"));
        }
        let row = u64::from(shape[0]) * element;
        let row_fits = match swizzle {
            Swizzle::None => true,
            Swizzle::Row(bytes) => matches!(bytes, 32 | 64 | 128) && row <= *bytes,
        };
        if !matches!(element, 1 | 2 | 4 | 8) || !row.is_multiple_of(16) || !row_fits {
            return Err(format!("rows of {row} bytes in boxes"));
        }
        let swizzle = if let Swizzle::Row(bytes) = swizzle { *bytes } else { 0 };
        let padded =
            |list: &[u64], n: usize| list.iter().copied().chain(std::iter::repeat(0)).take(n).collect::<Vec<_>>();
        let mut words = vec![MAGIC, *address, *element | (rank as u64) << 8 | swizzle << 16];
        words.extend(padded(extents, 5));
        words.extend(padded(strides, 4));
        // Three extents of a box, then two.
        let sizes = padded(&shape.iter().map(|&e| u64::from(e)).collect::<Vec<_>>(), 5);
        words.push(sizes.iter().take(3).rev().fold(0, |w, e| w << 16 | e));
        words.push(sizes.iter().skip(3).rev().fold(0, |w, e| w << 16 | e));
        let mut bytes = [0; BYTES];
        bytes.chunks_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        Ok(bytes)
    }

    /// The map of an argument; nothing where it is none.
    pub fn decode(bytes: &[u8]) -> Option<TensorMap> {
        let words: Vec<u64> =
            bytes.get(..BYTES)?.chunks(8).filter_map(|c| Some(u64::from_le_bytes(c.try_into().ok()?))).collect();
        let [magic, address, head, e0, e1, e2, e3, e4, s1, s2, s3, s4, low, high, ..] = words.as_slice() else {
            return None;
        };
        let rank = (head >> 8 & 0xff) as usize;
        if *magic != MAGIC || !(1..=5).contains(&rank) {
            return None;
        }
        let sizes = [*low, low >> 16, low >> 32, *high, high >> 16].map(|w| (w & 0xffff) as u32);
        let swizzle = match head >> 16 {
            0 => Swizzle::None,
            bytes => Swizzle::Row(bytes),
        };
        Some(TensorMap {
            address: *address,
            element: head & 0xff,
            extents: [*e0, *e1, *e2, *e3, *e4][..rank].to_vec(),
            strides: [*s1, *s2, *s3, *s4][..rank - 1].to_vec(),
            shape: sizes[..rank].to_vec(),
            swizzle,
        })
    }

    /// Bytes of a box.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.element, |n, &e| n * u64::from(e))
    }

    /// The elements of the box at these coordinates: where each lies in the box, and where in memory, or nowhere outside of
    /// the array.
    pub fn elements(&self, at: &[i64]) -> impl Iterator<Item = (u64, Option<u64>)> {
        let count = self.bytes() / self.element;
        (0..count).map(move |n| {
            let (mut rest, mut address, mut inside) = (n, self.address, true);
            for (axis, (&size, &first)) in self.shape.iter().zip(at).enumerate() {
                let place = first + (rest % u64::from(size)) as i64;
                rest /= u64::from(size);
                inside &= place >= 0 && (place as u64) < self.extents[axis];
                let stride = if axis == 0 { self.element } else { self.strides[axis - 1] };
                address = address.wrapping_add((place as u64).wrapping_mul(stride));
            }
            (n * self.element, inside.then_some(address))
        })
    }
}

/// A matrix descriptor of `wgmma`: where the elements of an operand in shared memory lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    begin: u64,
    leading: u64,
    stride: u64,
    swizzle: Swizzle,
}

impl Descriptor {
    /// The descriptor in a register; nothing where its base offset is not 0, which is not supported.
    pub fn of(word: u64) -> Option<Descriptor> {
        let field = |shift: u32| (word >> shift & 0x3fff) << 4;
        let swizzle = match word >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::Row(128),
            2 => Swizzle::Row(64),
            _ => Swizzle::Row(32),
        };
        (word >> 49 & 7 == 0).then_some(Descriptor { begin: field(0), leading: field(16), stride: field(32), swizzle })
    }

    /// Where the element of 2 bytes lies that is at place `n` across the fold and `k` along it (below 16). `across` where
    /// neighbours are across the fold.
    pub fn place(&self, across: bool, n: u64, k: u64) -> u64 {
        let Descriptor { begin, leading, stride, swizzle } = self;
        let at = match (swizzle, across) {
            (Swizzle::Row(row), false) => n / 8 * stride + n % 8 * row + 2 * k,
            (Swizzle::None, false) => n / 8 * stride + n % 8 * 16 + k / 8 * leading + 2 * (k % 8),
            (Swizzle::Row(row), true) => {
                let wide = row / 2;
                n / wide * leading + 2 * (n % wide) + k / 8 * stride + k % 8 * row
            }
            (Swizzle::None, true) => n / 8 * stride + 2 * (n % 8) + k / 8 * leading + k % 8 * 16,
        };
        swizzle.place(begin + at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the manual's figure of the 128-byte swizzle has 16-byte piece `p` of row `r`: rows of eight pieces, and in row `r` of
    /// each eight they are in the order of `r ^ 0`, `r ^ 1`, ...
    fn figure(row: u64, byte: u64) -> u64 {
        const ORDER: [[u64; 8]; 8] = [
            [0, 1, 2, 3, 4, 5, 6, 7],
            [1, 0, 3, 2, 5, 4, 7, 6],
            [2, 3, 0, 1, 6, 7, 4, 5],
            [3, 2, 1, 0, 7, 6, 5, 4],
            [4, 5, 6, 7, 0, 1, 2, 3],
            [5, 4, 7, 6, 1, 0, 3, 2],
            [6, 7, 4, 5, 2, 3, 0, 1],
            [7, 6, 5, 4, 3, 2, 1, 0],
        ];
        128 * row + 16 * ORDER[(row % 8) as usize][(byte / 16) as usize] + byte % 16
    }

    fn descriptor(begin: u64, leading: u64, stride: u64) -> Descriptor {
        Descriptor::of(begin >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | 1 << 62).expect("a descriptor")
    }

    #[test]
    fn products_find_what_copies_put_down() {
        for step in 0..4 {
            // Rows along the fold: 64 elements of it in a row, 16 of which a product takes.
            let along = descriptor(4096 + 32 * step, 16, 1024);
            for n in 0..256 {
                for k in 0..16 {
                    assert_eq!(along.place(false, n, k), 4096 + figure(n, 2 * (16 * step + k)), "{n} {k}");
                }
            }
            // Rows across it: 64 places in a row, then 64 rows further the next 64.
            let across = descriptor(4096 + 2048 * step, 8192, 1024);
            for n in 0..256 {
                for k in 0..16 {
                    let row = 64 * (n / 64) + 16 * step + k;
                    assert_eq!(across.place(true, n, k), 4096 + figure(row, 2 * (n % 64)), "{n} {k}");
                }
            }
        }
    }

    #[test]
    fn boxes_are_put_down_in_rows() {
        let map = TensorMap {
            address: 1 << 40,
            element: 2,
            extents: vec![100, 30, 3],
            strides: vec![208, 6400],
            shape: vec![64, 16, 1],
            swizzle: Swizzle::Row(128),
        };
        let encoded = map.encode().expect("a map");
        assert_eq!(TensorMap::decode(&encoded), Some(map.clone()));
        assert_eq!(TensorMap::decode(&[0; BYTES]), None);
        let all: Vec<(u64, Option<u64>)> = map.elements(&[64, 24, 2]).collect();
        assert_eq!(all.len(), 64 * 16);
        for (n, (at, from)) in all.into_iter().enumerate() {
            let (column, row) = (n as u64 % 64, n as u64 / 64);
            assert_eq!(map.swizzle.place(at), figure(row, 2 * column));
            let inside = 64 + column < 100 && 24 + row < 30;
            assert_eq!(from, inside.then_some((1 << 40) + 2 * (64 + column) + 208 * (24 + row) + 2 * 6400), "{n}");
        }
        let wrong = |change: &dyn Fn(&mut TensorMap)| {
            let mut map = map.clone();
            change(&mut map);
            map.encode().expect_err("no map")
        };
        wrong(&|m| m.address += 8);
        wrong(&|m| m.strides[0] = 200);
        wrong(&|m| m.shape[1] = 257);
        wrong(&|m| m.shape[0] = 128);
        wrong(&|m| m.extents.push(1));
    }
}
