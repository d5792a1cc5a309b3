//! Loads and stores of tiles.
//!
//! Invariant: nothing outside a buffer is read or written, and no element is written that the tile program does not
//! write. Where a condition may fail, a load goes to elements of the buffer that surely exist and is then hidden, and
//! where none do it happens in a loop that runs once or not at all.

use super::LowerError;
use super::address::{Condition, lane};
use super::layout::Home;
use super::tiles::{Lowering, positions};
use kiln_ir::DType;
use kiln_ir::expr::Expr;
use kiln_ir::scalar::{BinaryOp, Constant, Less};
use kiln_ir::tile::{TileId, TileOp};
use kiln_ir::vector::{Address, Carried, For, Op, Stmt, ValueId, VectorType};

/// Most lanes of vectors that are transposed: as many vectors are in registers at once.
pub(super) const MOST_TRANSPOSED: usize = 16;

/// How the lanes of a vector lie in memory.
#[derive(Clone, Copy)]
enum Pattern {
    One,
    Consecutive,
    Same,
    Strided(i64),
}

/// Where a tile is stored.
pub(super) struct Target<'a> {
    pub(super) buffer: usize,
    pub(super) address: &'a Expr,
    pub(super) gathered: &'a [TileId],
    pub(super) mask: &'a [Less],
}

/// Which lanes a condition holds for.
pub(super) enum Lanes {
    All,
    None,
    /// Those of a mask.
    Some(ValueId),
}

impl<'a> Lowering<'a> {
    /// The register of a loaded tile whose first element is at a position.
    pub(super) fn load(&mut self, id: TileId, op: &'a TileOp, at: &[usize]) -> Result<ValueId, LowerError> {
        let (depth, dtype) = (self.depths[id.index()], self.ty(id).dtype);
        let loaded = self.load_encoded(id, op, at)?;
        Ok(if dtype.is_half() { self.decoded(depth, dtype, loaded) } else { loaded })
    }

    /// The register as its lanes are in memory.
    fn load_encoded(&mut self, id: TileId, op: &'a TileOp, at: &[usize]) -> Result<ValueId, LowerError> {
        let home = self.home(id);
        if let Some(whole) = self.load_lanes(id, op, at, home)? {
            return Ok(whole);
        }
        let mut lanes = Vec::new();
        for lane in 0..home.map_or(1, |h| h.lanes) as usize {
            let mut at = at.to_vec();
            if let Some(home) = home {
                at[home.axis] += lane;
            }
            let scalar = self.load_lanes(id, op, &at, None)?;
            lanes.push(scalar.ok_or_else(|| self.unsupported("a load of lanes"))?);
        }
        Ok(self.builder.at(self.depths[id.index()]).pack(lanes))
    }

    /// Loads all lanes at once; nothing where they must be loaded one by one. A scalar never must.
    fn load_lanes(
        &mut self,
        id: TileId,
        op: &'a TileOp,
        at: &[usize],
        home: Option<Home>,
    ) -> Result<Option<ValueId>, LowerError> {
        let TileOp::Load { buffer, address, gathered, mask, other } = op else { return Ok(None) };
        let depth = self.depths[id.index()];
        let narrow = self.program.buffers[*buffer].dtype;
        let loaded = self.loaded(self.ty(id).dtype, narrow);
        let ty = VectorType { dtype: loaded, lanes: home.map_or(1, |h| h.lanes) };
        let other = &self.encoded_constant(*other);
        let along = home.map(|h| (h.axis, h.lanes));
        let holds = match self.mask(mask, at, along)? {
            Ok(holds) => holds,
            Err(Condition::Never) => return Ok(Some(self.builder.emit(depth, ty, Op::Const(*other)))),
            Err(_) => return self.load_some_lanes(id, op, at, home),
        };
        if let Some(h) = home
            && gathered.iter().any(|g| self.ty(*g).shape.get(h.axis) != Some(&1))
        {
            return Ok(None);
        }
        let values = gathered.iter().map(|&g| self.value(g, at, None)).collect::<Result<Vec<_>, _>>()?;
        let e = self.placed(address, at, along, &values);
        let apart = !matches!(e.coefficient(&lane()), Some(0 | 1)) && mask.is_empty() && gathered.is_empty();
        if let Some(home) = home.filter(|_| apart && ty.dtype == narrow)
            && let Some(column) = self.column_of_rows(id, (*buffer, address), at, home)?
        {
            return Ok(Some(column));
        }
        let pattern = match (home, e.coefficient(&lane())) {
            (None, _) => Pattern::One,
            (Some(_), Some(1)) if ty.dtype != DType::Bool => Pattern::Consecutive,
            (Some(_), Some(0)) => Pattern::Same,
            (Some(_), Some(stride)) if ty.dtype != DType::Bool => Pattern::Strided(stride),
            (Some(_), _) => return Ok(None),
        };
        if let (Pattern::Same, Some(h), DType::Bool) = (pattern, home, ty.dtype) {
            let scalar = self.load_lanes(id, op, at, None)?;
            let splat = scalar.map(|s| self.builder.emit(depth, VectorType { lanes: h.lanes, ..ty }, Op::Splat(s)));
            return Ok(splat);
        }
        let wide = ty.dtype != narrow;
        if wide && let (Pattern::Same, Some(h)) = (pattern, home) {
            let scalar = self.load_lanes(id, op, at, None)?;
            let splat = scalar.map(|s| self.builder.emit(depth, VectorType { lanes: h.lanes, ..ty }, Op::Splat(s)));
            return Ok(splat);
        }
        if wide && matches!(pattern, Pattern::Strided(_)) {
            return Ok(None);
        }
        let first = e.replace(&lane(), &Expr::default());
        let address = self.address(*buffer, &first)?;
        if matches!(pattern, Pattern::Consecutive) && !wide && holds.is_none() && depth == self.builder.depth() {
            self.ask_for_stream(id, (*buffer, address), &first)?;
        }
        let make = |address: Address| match pattern {
            Pattern::One | Pattern::Consecutive if wide => Op::LoadWide(address),
            Pattern::One | Pattern::Consecutive => Op::Load(address),
            Pattern::Same => Op::LoadSplat(address),
            Pattern::Strided(stride) => Op::LoadStrided(address, stride),
        };
        let Some(holds) = holds else { return Ok(Some(self.builder.emit(depth, ty, make(address)))) };
        let other = self.builder.emit(depth, ty, Op::Const(*other));
        let last = match pattern {
            Pattern::One | Pattern::Same => 0,
            Pattern::Consecutive => i64::from(ty.lanes) - 1,
            Pattern::Strided(stride) if stride > 0 => stride.saturating_mul(i64::from(ty.lanes) - 1),
            Pattern::Strided(_) => i64::MAX,
        };
        let least = self.program.buffers[*buffer].len.bounds(&self.ranges).0;
        if last < least {
            let (index, offset) = match address.index {
                Some(index) => (index, address.offset),
                None => (self.builder.i64(address.offset), 0),
            };
            let instead = self.builder.i64(-offset);
            let i64 = VectorType::scalar(DType::I64);
            let index = self.builder.hoisted(i64, Op::Select(holds, index, instead));
            let loaded = self.builder.emit(depth, ty, make(Address { index: Some(index), offset, ..address }));
            let mask_type = VectorType { dtype: DType::Bool, ..ty };
            let holds = if ty.is_scalar() { holds } else { self.builder.emit(depth, mask_type, Op::Splat(holds)) };
            return Ok(Some(self.builder.emit(depth, ty, Op::Select(holds, loaded, other))));
        }
        Ok(Some(self.load_if(depth, ty, holds, other, make(address))))
    }

    /// Lanes that lie apart where those of another axis lie side by side: vectors along that axis are loaded and transposed. Nothing where the tile
    /// has no whole blocks of them.
    fn column_of_rows(
        &mut self,
        id: TileId,
        (buffer, address): (usize, &Expr),
        at: &[usize],
        home: Home,
    ) -> Result<Option<ValueId>, LowerError> {
        let ty = self.register_type(id);
        let lanes = ty.lanes as usize;
        if self.program.buffers[buffer].written || ty.dtype == DType::Bool || !(2..=MOST_TRANSPOSED).contains(&lanes) {
            return Ok(None);
        }
        for axis in 0..at.len() {
            if axis == home.axis || !self.ty(id).shape[axis].is_multiple_of(lanes) {
                continue;
            }
            let along = Some((axis, ty.lanes));
            let mut first = at.to_vec();
            first[axis] -= at[axis] % lanes;
            let mut addresses = Vec::with_capacity(lanes);
            for n in 0..lanes {
                let mut at = first.clone();
                at[home.axis] += n;
                addresses.push(self.placed(address, &at, along, &[]));
            }
            if addresses.iter().any(|e| e.coefficient(&lane()) != Some(1)) {
                continue;
            }
            let mut rows = Vec::with_capacity(lanes);
            for e in addresses {
                let address = self.address(buffer, &e.replace(&lane(), &Expr::default()))?;
                rows.push(self.builder.emit(self.depths[id.index()], ty, Op::Load(address)));
            }
            let column = Op::Column(rows, (at[axis] % lanes) as u32);
            return Ok(Some(self.builder.emit(self.depths[id.index()], ty, column)));
        }
        Ok(None)
    }

    /// Loads lanes of which a condition may hide some: all at once from an address that is moved into the buffer;
    /// where that moved it, each lane from its own, moved alike. Lanes that are not hidden are where they belong
    /// either way. Nothing where lanes do not lie evenly or the buffer may be too small.
    fn load_some_lanes(
        &mut self,
        id: TileId,
        op: &'a TileOp,
        at: &[usize],
        home: Option<Home>,
    ) -> Result<Option<ValueId>, LowerError> {
        let TileOp::Load { buffer, address, gathered, mask, other } = op else { return Ok(None) };
        let Some(home) = home.filter(|_| gathered.is_empty()) else { return Ok(None) };
        let (depth, along) = (self.depths[id.index()], Some((home.axis, home.lanes)));
        let ty = self.register_type(id);
        let other = &self.encoded_constant(*other);
        let e = self.placed(address, at, along, &[]);
        let Some(stride) = e.coefficient(&lane()).filter(|&s| s >= 0 && ty.dtype != DType::Bool) else {
            return Ok(None);
        };
        let span = stride.saturating_mul(i64::from(home.lanes) - 1);
        let len = &self.program.buffers[*buffer].len;
        let wide = ty.dtype != self.program.buffers[*buffer].dtype;
        if len.bounds(&self.ranges).0 <= span || self.program.buffers[*buffer].written || wide {
            return Ok(None);
        }
        let mut shown: Option<ValueId> = None;
        for less in mask {
            let difference = self.placed(&less.left.sub(&less.right), at, along, &[]);
            match self.lanes_below_zero(&difference, home)? {
                Some(Lanes::All) => {}
                Some(Lanes::None) => return Ok(Some(self.builder.emit(depth, ty, Op::Const(*other)))),
                Some(Lanes::Some(lanes)) => shown = Some(self.both(shown, lanes)),
                None => return Ok(None),
            }
        }
        let make = |index: ValueId| {
            let address = Address { buffer: *buffer, index: Some(index), offset: 0 };
            match stride {
                0 => Op::LoadSplat(address),
                1 => Op::Load(address),
                _ => Op::LoadStrided(address, stride),
            }
        };
        let first = self.expr(&e.replace(&lane(), &Expr::default()))?;
        let last = self.outer(&len.sub(&Expr::from(1i64)))?;
        let (zero, one, span) = (self.builder.i64(0), self.builder.i64(1), self.builder.i64(span));
        let limit = self.builder.i64_op(BinaryOp::Sub, last, span);
        let moved = self.builder.i64_op(BinaryOp::Max, first, zero);
        let moved = self.builder.i64_op(BinaryOp::Min, moved, limit);
        let loaded = self.builder.emit(depth, ty, make(moved));
        let differs = self.builder.i64_op(BinaryOp::Ne, first, moved);
        let times = self.builder.hoisted(VectorType::scalar(DType::I64), Op::Select(differs, one, zero));
        let scalar = VectorType::scalar(ty.dtype);
        let repaired = self.builder.at(depth).repeat(times, &[loaded], |code, _| {
            let lanes = (0..i64::from(home.lanes)).map(|lane| {
                let offset = code.int(first, lane.saturating_mul(stride));
                let own = code.add(first, offset);
                let own = code.binary(BinaryOp::Max, own, zero);
                let index = code.binary(BinaryOp::Min, own, last);
                code.op(scalar, Op::Load(Address { buffer: *buffer, index: Some(index), offset: 0 }))
            });
            let lanes = lanes.collect();
            vec![code.pack(lanes)]
        });
        let loaded = repaired.first().copied().unwrap_or(loaded);
        let other = self.builder.emit(depth, ty, Op::Const(*other));
        Ok(Some(match shown {
            Some(shown) => self.builder.emit(depth, ty, Op::Select(shown, loaded, other)),
            None => loaded,
        }))
    }

    /// The lanes for which a placed expression is negative; nothing where that is no comparison of vectors as wide
    /// as the tile's.
    pub(super) fn lanes_below_zero(&mut self, difference: &Expr, home: Home) -> Result<Option<Lanes>, LowerError> {
        let (low, high) = self.bounds(difference, Some((home.axis, home.lanes)));
        if high < 0 {
            return Ok(Some(Lanes::All));
        }
        if low >= 0 {
            return Ok(Some(Lanes::None));
        }
        let int = match self.bytes / home.lanes {
            4 if low >= i64::from(i32::MIN) && high <= i64::from(i32::MAX) => DType::I32,
            8 => DType::I64,
            _ => return Ok(None),
        };
        let Some(stride) = difference.coefficient(&lane()) else { return Ok(None) };
        let rest = difference.replace(&lane(), &Expr::default());
        let constant = rest.constant();
        let rest = self.expr(&rest.sub(&Expr::from(constant)))?;
        // rest + constant + stride * lane < 0, with everything but the rest on the right.
        let mut bounds = Vec::new();
        for lane in 0..i64::from(home.lanes) {
            let bound = constant.saturating_add(stride.saturating_mul(lane)).saturating_neg();
            let bound = Constant::int(int, bound);
            bounds.push(self.builder.hoisted(VectorType::scalar(int), Op::Const(bound)));
        }
        let vector = VectorType { dtype: int, lanes: home.lanes };
        let same = bounds.iter().all(|b| *b == bounds[0]);
        let bounds = self.builder.hoisted(vector, if same { Op::Splat(bounds[0]) } else { Op::Pack(bounds) });
        let rest = match int {
            DType::I64 => rest,
            _ => self.builder.hoisted(VectorType::scalar(int), Op::Cast(int, rest)),
        };
        let rest = self.builder.hoisted(vector, Op::Splat(rest));
        let mask = VectorType { dtype: DType::Bool, lanes: home.lanes };
        Ok(Some(Lanes::Some(self.builder.hoisted(mask, Op::Binary(BinaryOp::Lt, rest, bounds)))))
    }

    /// Lanes that are in both masks; no first one means all.
    fn both(&mut self, first: Option<ValueId>, second: ValueId) -> ValueId {
        match first {
            Some(first) => {
                let ty = self.builder.ty(first);
                self.builder.hoisted(ty, Op::Binary(BinaryOp::And, first, second))
            }
            None => second,
        }
    }

    /// A load that only happens where the condition holds: a loop of one iteration or none.
    fn load_if(&mut self, depth: usize, ty: VectorType, holds: ValueId, other: ValueId, load: Op) -> ValueId {
        let (zero, one) = (self.builder.i64(0), self.builder.i64(1));
        let i64 = VectorType::scalar(DType::I64);
        let hi = self.builder.hoisted(i64, Op::Select(holds, one, zero));
        let var = self.builder.fresh(depth + 1, i64);
        let [inside, next] = [(); 2].map(|()| self.builder.fresh(depth + 1, ty));
        let after = self.builder.fresh(depth, ty);
        let carried = vec![Carried { init: other, inside, next, after }];
        let body = vec![Stmt::Let(next, load)];
        self.builder.push(depth, Stmt::For(For { var, lo: zero, hi, step: 1, carried, body }));
        after
    }

    /// Stores a tile.
    pub(super) fn store(&mut self, target: &Target<'_>, value: TileId) -> Result<(), LowerError> {
        let home = self.home(value).or_else(|| self.repeated(target, value));
        for at in positions(self.ty(value), home) {
            if self.store_lanes(target, value, &at, home)? {
                continue;
            }
            for lane in 0..home.map_or(1, |h| h.lanes) as usize {
                let mut at = at.clone();
                if let Some(home) = home {
                    at[home.axis] += lane;
                }
                self.store_lanes(target, value, &at, None)?;
            }
        }
        Ok(())
    }

    /// How a constant, which has no lanes of its own, is stored in vectors: along an axis whose elements lie side by side.
    fn repeated(&self, target: &Target<'_>, value: TileId) -> Option<Home> {
        let ty = self.ty(value);
        let c = self.constant_of(value).filter(|c| self.program.buffers[target.buffer].dtype == c.dtype)?;
        let beside = |axis: &usize| target.address.coefficient(&kiln_ir::tile::axis(*axis)) == Some(1);
        let axis = (0..ty.shape.len()).find(|axis| ty.shape[*axis] > 1 && beside(axis))?;
        // Of bytes there may be a rest that is half or a quarter of a vector.
        // Registers hold halves as other types.
        let plain = c.dtype == c.dtype.computed() && !matches!(c.dtype, DType::Bool | DType::F64);
        let size = plain.then_some(c.dtype.size())?;
        let mut widths = std::iter::successors(Some(self.bytes as usize), |n| Some(n / 2)).take_while(|n| *n >= 16);
        let bytes =
            widths.find(|n| ty.shape[axis].is_multiple_of(n / size) && (*n == self.bytes as usize || size == 1))?;
        Some(Home { axis, lanes: (bytes / size) as u32 })
    }

    /// Stores all lanes at once; false where they must be stored one by one.
    fn store_lanes(
        &mut self,
        target: &Target<'_>,
        value: TileId,
        at: &[usize],
        home: Option<Home>,
    ) -> Result<bool, LowerError> {
        let &Target { buffer, address, gathered, mask } = target;
        if let Some(h) = home
            && gathered.iter().any(|g| self.ty(*g).shape.get(h.axis) != Some(&1))
        {
            return Ok(false);
        }
        let along = home.map(|h| (h.axis, h.lanes));
        let holds = match self.mask(mask, at, along)? {
            Ok(holds) => holds,
            Err(Condition::Never) => return Ok(true),
            Err(_) => return Ok(false),
        };
        let values = gathered.iter().map(|&g| self.value(g, at, None)).collect::<Result<Vec<_>, _>>()?;
        let e = self.placed(address, at, along, &values);
        if home.is_some() && (e.coefficient(&lane()) != Some(1) || self.ty(value).dtype == DType::Bool) {
            return Ok(false);
        }
        let place = self.address(buffer, &e.replace(&lane(), &Expr::default()))?;
        let register = self.value(value, at, home)?;
        let depth = self.builder.depth();
        let register = self.encoded(depth, self.program.buffers[buffer].dtype, register);
        let store = Stmt::Store(place, register);
        let stmt = match holds {
            Some(condition) => Stmt::If { condition, then: vec![store], otherwise: Vec::new() },
            None => store,
        };
        self.builder.push(depth, stmt);
        Ok(true)
    }
}
