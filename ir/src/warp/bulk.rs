//! What copies and multiplies for a whole block: bulk copies, barriers in shared memory, products of four warps.
//!
//! Invariant: a block that has [`Roles`] ends with them: a first part of its threads multiplies, and one more thread fetches.
//! They meet only at barriers in shared memory. Such a barrier is a u64; its phase ends when all of its arrivals and all
//! bytes that it expects are there, and its parity, 0 at first, then changes.
//!
//! A fetched box lies in shared memory in rows of 128 bytes, of which eight are a group of 1,024 bytes: piece `p` of 16 bytes
//! of row `r` lies at `p ^ (r % 8)`. So does what products read.
//!
//! The text form, beside that of [`crate::warp`]:
//!
//! ```text
//! warp @k3(b0 x: f16[98304], ...) grid(4) threads 384 shared(s0: f16[32768], s1: u64[8]) maps(
//!     m0: b0[0] extents(768, 128) strides(768) box(64, 128)) {
//!   initialise s1[0], 1
//!   publish
//!   barrier
//!   roles 256 registers(232, 40) {
//!     await s1[%3], %4
//!     fence_products
//!     %9: f32, ... = group_mma_f16 s0[%5] along, s0[%6] across 8192, (%8, ...)
//!     commit_products
//!     wait_products 0
//!     arrive s1[%3 + 4]
//!   } fetch {
//!     await s1[%10 + 4], %11
//!     expect s1[%10], 32768
//!     fetch s0[%12], m0(%13, %14), s1[%10]
//!   }
//! }
//! ```

use super::{Address, Stmt, ValueId};
use crate::dtype::DType;
use crate::text::Commas;
use std::fmt::{self, Display, Formatter};

/// Threads of the warps that multiply together.
pub const GROUP: u32 = 128;

/// Bytes of a row of a fetched box.
pub const ROW: usize = 128;

/// Bytes to a multiple of which fetched boxes begin: those of eight rows.
pub const SWIZZLED: usize = 8 * ROW;

/// Elements of the fold that a product of four warps takes at a time, of 2 bytes each.
pub const DEPTH: usize = 16;

/// An array in a buffer of which boxes are fetched. Elements of a box that are outside of it are zeros.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Map {
    /// The buffer, of elements of 2 bytes.
    pub buffer: usize,
    /// Its element where the array begins, a multiple of 8.
    pub first: u64,
    /// Elements along each axis; first the axis along which they are neighbours. Two to five.
    pub extents: Vec<u64>,
    /// Elements from one place to the next along each axis but the first, multiples of 8.
    pub strides: Vec<u64>,
    /// Elements of a box along each axis, 256 at most; the first is the 64 of a row.
    pub shape: Vec<u32>,
}

impl Map {
    /// Elements of a box.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1usize, |n, &e| n.saturating_mul(e as usize))
    }

    /// The first element after the last one of the array; nothing where that does not fit.
    pub fn end(&self) -> Option<u64> {
        let strides = std::iter::once(&1).chain(&self.strides);
        let last = self.extents.iter().zip(strides).try_fold(self.first, |sum, (extent, stride)| {
            sum.checked_add(extent.checked_sub(1)?.checked_mul(*stride)?)
        });
        last?.checked_add(1)
    }
}

/// An operand of a product of four warps, in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Its first element: of a row of 64 that begins a group of rows, or 16 times a number after it.
    pub address: Address,
    /// How its rows go.
    pub rows: Rows,
}

/// How the rows of 128 bytes of an operand go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// Each is 64 elements along the fold; the next row is the next place along the other axis.
    Along,
    /// Each is 64 places along the other axis; the next row is the next one of the fold. So many bytes on are the next 64.
    Across(u32),
}

/// A statement of this kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Bulk {
    /// One thread makes a barrier, whose phases end with so many arrivals.
    Initialise {
        /// The barrier.
        barrier: Address,
        /// Arrivals, at least 1.
        arrivals: u32,
    },
    /// What was initialised is seen by bulk copies after the block's next [`Stmt::Barrier`].
    Publish,
    /// The phase ends not before so many bytes were fetched; also an arrival.
    Expect {
        /// The barrier.
        barrier: Address,
        /// Bytes.
        bytes: u32,
    },
    /// Begins to fetch the box of a map at these coordinates, i32, first that of the first axis.
    Fetch {
        /// Where it is put.
        to: Address,
        /// The map.
        map: usize,
        /// Coordinates.
        at: Vec<ValueId>,
        /// The barrier that is told.
        barrier: Address,
    },
    /// Each warp arrives once, where the condition holds in its first lane.
    Arrive {
        /// The barrier.
        barrier: Address,
        /// Bool; nothing for always.
        condition: Option<ValueId>,
    },
    /// Waits for the end of the barrier's phase of that parity, an i32.
    Await {
        /// The barrier.
        barrier: Address,
        /// 0 or 1; that of the phase before the first one, 1, has ended.
        parity: ValueId,
    },
    /// Before the first product, and where other statements have written the registers of its addends.
    Fence,
    /// Closes the group of the products since the last one.
    Commit,
    /// Waits until at most so many of the latest groups are under way.
    Wait(u32),
    /// Threads do different things from here on.
    Roles(Roles),
}

/// The end of a kernel whose threads do different things.
#[derive(Clone, Debug, PartialEq)]
pub struct Roles {
    /// Threads that multiply, a multiple of [`GROUP`]; the block has [`GROUP`] more.
    pub threads: u32,
    /// Registers that each of those may have, and each other thread: multiples of 8.
    pub registers: [u32; 2],
    /// What the first threads do. Their barrier is only theirs.
    pub multiply: Vec<Stmt>,
    /// What the first of the other threads does alone.
    pub fetch: Vec<Stmt>,
}

impl Bulk {
    /// The bodies within.
    pub fn bodies(&self) -> [&[Stmt]; 2] {
        match self {
            Bulk::Roles(Roles { multiply, fetch, .. }) => [multiply, fetch],
            Bulk::Initialise { .. } | Bulk::Publish | Bulk::Expect { .. } | Bulk::Fetch { .. } => [&[], &[]],
            Bulk::Arrive { .. } | Bulk::Await { .. } | Bulk::Fence | Bulk::Commit | Bulk::Wait(_) => [&[], &[]],
        }
    }

    /// Calls `f` with every value that the statement itself reads.
    pub fn for_each_operand(&self, mut f: impl FnMut(ValueId)) {
        let (addresses, values): (Vec<&Address>, &[ValueId]) = match self {
            Bulk::Initialise { barrier, .. } | Bulk::Expect { barrier, .. } => (vec![barrier], &[]),
            Bulk::Arrive { barrier, condition } => (vec![barrier], condition.as_slice()),
            Bulk::Fetch { to, at, barrier, .. } => (vec![to, barrier], at),
            Bulk::Await { barrier, parity } => (vec![barrier], std::slice::from_ref(parity)),
            Bulk::Publish | Bulk::Fence | Bulk::Commit | Bulk::Wait(_) | Bulk::Roles(_) => (vec![], &[]),
        };
        addresses.into_iter().filter_map(|a| a.index).chain(values.iter().copied()).for_each(&mut f);
    }
}

impl Display for Map {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Map { buffer, first, extents, strides, shape } = self;
        let (extents, strides, shape) = (Commas(extents), Commas(strides), Commas(shape));
        write!(f, "b{buffer}[{first}] extents({extents}) strides({strides}) box({shape})")
    }
}

impl Display for Operand {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.rows {
            Rows::Along => write!(f, "{} along", self.address),
            Rows::Across(apart) => write!(f, "{} across {apart}", self.address),
        }
    }
}

impl Display for Bulk {
    /// The first line in the text form.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Bulk::Initialise { barrier, arrivals } => write!(f, "initialise {barrier}, {arrivals}"),
            Bulk::Publish => f.write_str("publish"),
            Bulk::Expect { barrier, bytes } => write!(f, "expect {barrier}, {bytes}"),
            Bulk::Fetch { to, map, at, barrier } => write!(f, "fetch {to}, m{map}({}), {barrier}", Commas(at)),
            Bulk::Arrive { barrier, condition } => {
                write!(f, "arrive {barrier}")?;
                condition.map_or(Ok(()), |c| write!(f, " if {c}"))
            }
            Bulk::Await { barrier, parity } => write!(f, "await {barrier}, {parity}"),
            Bulk::Fence => f.write_str("fence_products"),
            Bulk::Commit => f.write_str("commit_products"),
            Bulk::Wait(groups) => write!(f, "wait_products {groups}"),
            Bulk::Roles(Roles { threads, registers: [most, least], .. }) => {
                write!(f, "roles {threads} registers({most}, {least}) {{")
            }
        }
    }
}

/// What [`super::Op::GroupMma`] multiplies: `a[64 g, 16] · b[16, n] + c[64 g, n]` in f32, 64 rows for each of the `g` groups of
/// four warps, in the registers of PTX `wgmma.m64nNk16`. All operands but `c` are the block's; a group's own rows of `a` begin at
/// its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupProduct {
    /// f16 or bf16.
    pub dtype: DType,
    /// Left side.
    pub a: Operand,
    /// Right side.
    pub b: Operand,
    /// Addend, `n / 2` f32, whose registers the result takes: nothing else may read them afterwards.
    pub c: Vec<ValueId>,
}

impl Display for GroupProduct {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let GroupProduct { dtype, a, b, c } = self;
        write!(f, "group_mma_{dtype} {a}, {b}, ({})", Commas(c))
    }
}
