//! The rules of [`crate::warp::bulk`].
//!
//! Invariant: where a program verifies, each statement of this kind is where one role does it, bulk copies fill what their
//! barrier expects to be told of boxes, and nothing reads a register that a product under way has taken.

use super::Verifier;
use crate::dtype::DType;
use crate::warp::bulk::{GROUP, Operand, ROW, Rows, SWIZZLED};
use crate::warp::{Address, Bulk, GroupProduct, Map, Op, Place, Roles, Stmt};

/// Registers of a multiprocessor.
const REGISTERS: u32 = 1 << 16;

/// Most columns of a product of four warps.
const MOST_COLUMNS: usize = 256;

/// Whose statements these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// All threads'.
    All,
    /// Those of the threads that multiply.
    Multiply,
    /// Those of the one that fetches.
    Fetch,
}

impl Verifier<'_> {
    pub(super) fn maps(&mut self) {
        let program = self.program;
        for (n, map) in program.maps.iter().enumerate() {
            let Map { buffer, first, extents, strides, shape } = map;
            let Some(b) = program.buffers.get(*buffer) else {
                self.report(None, format!("map m{n}: there is no buffer b{buffer}"));
                continue;
            };
            let rank = extents.len();
            let fits = (2..=5).contains(&rank)
                && strides.len() + 1 == rank
                && shape.len() == rank
                && extents.iter().all(|&e| (1..=1 << 32).contains(&e))
                && shape.iter().all(|e| (1..=256).contains(e))
                && shape.first().is_some_and(|&e| e as usize == ROW / 2);
            if !b.dtype.is_half() || b.written || !fits {
                self.report(None, format!("map m{n}: no array of which boxes are fetched: {map}"));
            }
            if std::iter::once(first).chain(strides).any(|e| !e.is_multiple_of(8))
                || strides.iter().any(|&s| s >= 1 << 39)
            {
                self.report(None, format!("map m{n}: begins or goes on at no multiple of 8 elements"));
            }
            let len = b.len.as_const().and_then(|len| u64::try_from(len).ok());
            if len.is_none_or(|len| map.end().is_none_or(|end| end > len)) {
                self.report(None, format!("map m{n}: is not inside of b{buffer}"));
            }
        }
    }

    /// Whether a statement of another kind belongs where it is.
    pub(super) fn belongs(&mut self, stmt: &Stmt) {
        let fits = match (self.side, stmt) {
            (Side::All, Stmt::Let(_, Op::GroupMma(_))) => false,
            (Side::All | Side::Multiply, _) | (Side::Fetch, Stmt::For(_) | Stmt::Bulk(_)) => true,
            (Side::Fetch, Stmt::Let(_, op)) => {
                !matches!(op, Op::Matrix { .. } | Op::Mma { .. } | Op::GroupMma(_) | Op::Shuffle(..))
            }
            (Side::Fetch, Stmt::Store { .. } | Stmt::Copy { .. } | Stmt::Commit | Stmt::Wait(_)) => false,
            (Side::Fetch, Stmt::Barrier | Stmt::Fail { .. }) => false,
        };
        if !fits {
            self.report(Some(stmt), "is not done by these threads");
        }
    }

    fn barrier(&mut self, stmt: &Stmt, barrier: &Address) {
        self.access(stmt, barrier, 1, Some(DType::U64), None);
        if !matches!(barrier.place, Place::Shared(_)) {
            self.report(Some(stmt), format!("{barrier} is not in shared memory"));
        }
    }

    pub(super) fn bulk(&mut self, stmt: &Stmt, bulk: &Bulk) {
        let sides: &[Side] = match bulk {
            Bulk::Initialise { .. } | Bulk::Publish | Bulk::Roles(_) => &[Side::All],
            Bulk::Expect { .. } | Bulk::Fetch { .. } => &[Side::Fetch],
            Bulk::Await { .. } => &[Side::Multiply, Side::Fetch],
            Bulk::Arrive { .. } | Bulk::Fence | Bulk::Commit | Bulk::Wait(_) => &[Side::Multiply],
        };
        if !sides.contains(&self.side) {
            self.report(Some(stmt), "is not done by these threads");
        }
        match bulk {
            Bulk::Initialise { barrier, arrivals } => {
                self.barrier(stmt, barrier);
                if *arrivals == 0 {
                    self.report(Some(stmt), "a phase ends with an arrival at least");
                }
            }
            Bulk::Expect { barrier, bytes } => {
                self.barrier(stmt, barrier);
                if *bytes >= 1 << 20 {
                    self.report(Some(stmt), "a barrier counts fewer than 2^20 bytes");
                }
            }
            Bulk::Arrive { barrier, condition } => {
                self.barrier(stmt, barrier);
                condition.iter().for_each(|&c| self.want(stmt, c, DType::Bool));
            }
            Bulk::Await { barrier, parity } => {
                self.barrier(stmt, barrier);
                self.want(stmt, *parity, DType::I32);
            }
            Bulk::Fetch { to, map, at, barrier } => {
                self.barrier(stmt, barrier);
                at.iter().for_each(|&v| self.want(stmt, v, DType::I32));
                let Some(map) = self.program.maps.get(*map) else {
                    return self.report(Some(stmt), format!("there is no map m{map}"));
                };
                let dtype = self.program.buffers.get(map.buffer).map(|b| b.dtype);
                self.access(stmt, to, 1, dtype, None);
                if at.len() != map.extents.len() {
                    self.report(Some(stmt), format!("{} coordinates, wants {}", at.len(), map.extents.len()));
                }
                self.begins_a_group(stmt, to);
            }
            Bulk::Publish | Bulk::Fence | Bulk::Commit | Bulk::Wait(_) => {}
            Bulk::Roles(roles) => self.roles(stmt, roles),
        }
    }

    /// Where boxes are put, and what products read, lies in groups of eight rows.
    fn begins_a_group(&mut self, stmt: &Stmt, address: &Address) {
        let Place::Shared(n) = address.place else {
            return self.report(Some(stmt), format!("{address} is not in shared memory"));
        };
        let (places, _) = self.program.shared_layout();
        if places.get(n).is_some_and(|at| !at.is_multiple_of(SWIZZLED)) {
            self.report(Some(stmt), format!("s{n} does not begin at a multiple of {SWIZZLED} bytes"));
        }
    }

    fn roles(&mut self, stmt: &Stmt, roles: &Roles) {
        let Roles { threads, registers, multiply, fetch } = roles;
        if *threads == 0 || !threads.is_multiple_of(GROUP) || threads.checked_add(GROUP) != Some(self.program.threads) {
            let message = format!("{threads} of {} threads multiply; wants all but {GROUP}", self.program.threads);
            self.report(Some(stmt), message);
        }
        let [most, least] = registers;
        let all = threads.saturating_mul(*most).saturating_add(GROUP.saturating_mul(*least));
        if registers.iter().any(|r| !r.is_multiple_of(8) || !(24..=256).contains(r)) || all > REGISTERS {
            self.report(Some(stmt), format!("{most} and {least} registers"));
        }
        if self.program.body.last().is_none_or(|last| !std::ptr::eq(last, stmt)) {
            self.report(Some(stmt), "roles end a kernel");
        }
        for (side, body) in [(Side::Multiply, multiply), (Side::Fetch, fetch)] {
            self.side = side;
            self.region(body, &[], |_| {});
        }
        self.side = Side::All;
    }

    /// The type of the results, and how many there have to be.
    pub(super) fn group_product(&mut self, stmt: &Stmt, product: &GroupProduct) -> usize {
        let GroupProduct { dtype, a, b, c } = product;
        c.iter().for_each(|&v| self.want(stmt, v, DType::F32));
        for Operand { address, rows } in [a, b] {
            self.access(stmt, address, 1, Some(*dtype), None);
            self.begins_a_group(stmt, address);
            if let Rows::Across(apart) = rows
                && (!(*apart as usize).is_multiple_of(SWIZZLED) || *apart >= 1 << 18)
            {
                self.report(
                    Some(stmt),
                    format!("columns that are {apart} bytes apart; wants a multiple of {SWIZZLED}"),
                );
            }
        }
        if !dtype.is_half() {
            self.report(Some(stmt), format!("no matrix product of {dtype}"));
        }
        let columns = 2 * c.len();
        if columns == 0 || !columns.is_multiple_of(8) || columns > MOST_COLUMNS {
            self.report(Some(stmt), format!("{columns} columns; wants a multiple of 8 up to {MOST_COLUMNS}"));
        }
        c.len()
    }
}
