//! How a tensor's elements are stored.
//!
//! Invariant: elements come in blocks along the last axis; a block has a fixed number of elements and of bytes.

use std::fmt;

macro_rules! encodings {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $text:literal, $elements:literal, $bytes:literal;)*) => {
        /// How a tensor's elements are stored; the numbers are those of the file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types)]
        pub enum Encoding { $($(#[$doc])* $name = $id),* }

        impl Encoding {
            /// All that are read.
            pub const ALL: &'static [Encoding] = &[$(Encoding::$name),*];

            /// The encoding with that number in a file.
            pub fn from_id(id: u32) -> Option<Encoding> {
                match id { $($id => Some(Encoding::$name),)* _ => None }
            }

            /// The name that ggml gives it.
            pub fn name(self) -> &'static str {
                match self { $(Encoding::$name => $text),* }
            }

            /// Elements of one block.
            pub fn block_elements(self) -> usize {
                match self { $(Encoding::$name => $elements),* }
            }

            /// Bytes of one block.
            pub fn block_bytes(self) -> usize {
                match self { $(Encoding::$name => $bytes),* }
            }
        }
    };
}

encodings! {
    /// IEEE 754 binary32.
    F32 = 0, "F32", 1, 4;
    /// IEEE 754 binary16.
    F16 = 1, "F16", 1, 2;
    /// A scale and 32 four-bit numbers, less 8.
    Q4_0 = 2, "Q4_0", 32, 18;
    /// A scale, a least value and 32 four-bit numbers.
    Q4_1 = 3, "Q4_1", 32, 20;
    /// A scale and 32 five-bit numbers, less 16.
    Q5_0 = 6, "Q5_0", 32, 22;
    /// A scale, a least value and 32 five-bit numbers.
    Q5_1 = 7, "Q5_1", 32, 24;
    /// A scale and 32 signed bytes.
    Q8_0 = 8, "Q8_0", 32, 34;
    /// 8 groups of 32 four-bit numbers, each with a six-bit scale and least value, and a scale for each of those.
    Q4_K = 12, "Q4_K", 256, 144;
    /// As [`Encoding::Q4_K`], with five-bit numbers.
    Q5_K = 13, "Q5_K", 256, 176;
    /// 16 groups of 16 six-bit numbers less 32, each with an eight-bit scale, and a scale for those.
    Q6_K = 14, "Q6_K", 256, 210;
    /// The upper half of an IEEE 754 binary32.
    BF16 = 30, "BF16", 1, 2;
}

impl Encoding {
    /// Bytes of that many elements; nothing where they are no whole number of blocks, or too many.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let blocks = elements / self.block_elements();
        elements.is_multiple_of(self.block_elements()).then(|| blocks.checked_mul(self.block_bytes())).flatten()
    }

    /// Whether elements share a scale.
    pub fn is_quantized(self) -> bool {
        self.block_elements() > 1
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
