//! Instructions as they are executed.
//!
//! Invariant: names are gone: registers are numbers into the kernel's, places to go to are numbers of instructions, and addresses of
//! variables and parameters are numbers too.

use super::super::alu::{Compare, Convert, FloatOp, IntOp, Mode, Ty};
use super::Bulk;
use kiln_ir::DType;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) enum Src {
    Reg(usize),
    Imm(u64),
    Special(Special),
}

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    Warp,
    Nwarp,
    Below,
    BelowOrEqual,
    Above,
    AboveOrEqual,
    Equal,
    Clock,
    Zero,
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Space {
    Global,
    Shared,
    Local,
    Param,
    Generic,
}

#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Address {
    pub base: Src,
    pub offset: i64,
}

/// What an atomic operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Atom {
    Int(IntOp),
    Float,
    Exchange,
    Cas,
    Inc,
    Dec,
}

/// An operation on three words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Three {
    Lop3(u8),
    Prmt,
    Bfe,
    Shf {
        left: bool,
        wrap: bool,
    },
    Sad,
    MadLo,
    MadHi,
    MadWide,
    Slct,
    /// The dot product of bytes, added to; whether those of either side have a sign.
    Dot {
        left: bool,
        right: bool,
    },
}

/// Which lane a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// What a vote says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// The types of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Element {
    F16,
    BF16,
    TF32,
    S8,
    U8,
    E4M3,
    E5M2,
}

/// `mma.sync`: 16 rows, 8 columns.
#[derive(Clone, Debug)]
pub(in super::super) struct Mma {
    pub depth: usize,
    pub a_type: Element,
    pub b_type: Element,
    /// Whether the accumulators are f16, in pairs.
    pub half: bool,
    pub d: Vec<usize>,
    pub a: Vec<Src>,
    pub b: Vec<Src>,
    pub c: Vec<Src>,
}

/// How the result of a comparison is joined with a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Join {
    And,
    Or,
    Xor,
}

#[derive(Clone, Debug)]
pub(in super::super) enum Op {
    Nop,
    Mov(usize, Src, u64),
    Pack(usize, Vec<Src>, u32),
    Unpack(Vec<Option<usize>>, Src, u32),
    Int(IntOp, Ty, usize, Src, Src),
    Float(FloatOp, Ty, Mode, usize, Src, Src),
    Fma(Ty, Mode, usize, Src, Src, Src),
    Three(Three, Ty, usize, Src, Src, Src),
    Bfi(Ty, usize, [Src; 4]),
    Setp {
        compare: Compare,
        ty: Ty,
        ftz: bool,
        join: Option<(Join, usize, bool)>,
        p: Option<usize>,
        q: Option<usize>,
        a: Src,
        b: Src,
    },
    Set {
        compare: Compare,
        ty: Ty,
        float: bool,
        d: usize,
        a: Src,
        b: Src,
    },
    Selp(u64, usize, Src, Src, usize, bool),
    Cvt(Ty, Ty, Convert, usize, Src),
    CvtPack(Ty, Convert, usize, Src, Src),
    /// Two numbers, or a pair of f16, to a pair of floats of 8 bits: the type, of what, whether negative ones become 0, and the second
    /// number, which there is of f32 alone and becomes the low byte.
    CvtToEight {
        to: DType,
        from: Ty,
        relu: bool,
        d: usize,
        a: Src,
        b: Src,
    },
    /// A pair of floats of 8 bits to a pair of f16.
    CvtFromEight {
        from: DType,
        relu: bool,
        d: usize,
        a: Src,
    },
    Ld {
        space: Space,
        ty: Ty,
        targets: Vec<Option<usize>>,
        address: Address,
    },
    St {
        space: Space,
        ty: Ty,
        sources: Vec<Src>,
        address: Address,
    },
    Atom {
        space: Space,
        op: Atom,
        ty: Ty,
        d: Option<usize>,
        address: Address,
        b: Src,
        c: Src,
    },
    Bra(usize),
    Ret,
    Bar {
        id: Src,
        count: Option<Src>,
        arrive: bool,
    },
    WarpSync(Src),
    Shfl {
        mode: Shuffle,
        d: usize,
        p: Option<usize>,
        a: Src,
        b: Src,
        c: Src,
        members: Src,
    },
    Vote {
        mode: Vote,
        d: usize,
        a: usize,
        not: bool,
        members: Src,
    },
    Redux {
        op: IntOp,
        ty: Ty,
        d: usize,
        a: Src,
        members: Src,
    },
    Active(usize),
    Ldmatrix {
        trans: bool,
        targets: Vec<usize>,
        address: Address,
    },
    Mma(Box<Mma>),
    CpAsync {
        to: Address,
        from: Address,
        bytes: usize,
        read: Option<Src>,
        off: Option<usize>,
    },
    Commit,
    Wait(Option<u64>),
    Bulk(Box<Bulk>),
    Trap,
}

#[derive(Clone, Debug)]
pub(in super::super) struct Instruction {
    pub guard: Option<(usize, bool)>,
    pub op: Op,
    pub line: usize,
}
