//! The parser of the text form of vector programs.
//!
//! Invariant: any text gives a program or an error with its place; the program need not verify.

use super::{
    Address, Cache, Carried, For, Matrix, Op, Product, Shape, Shapes, Stmt, ValueId, VectorProgram, VectorType,
};
use crate::dtype::DType;
use crate::id::{Arena, Id};
use crate::scalar::{BinaryOp, Constant, UnaryOp};
use crate::text::{Lexer, ParseError, Token};

/// Most values of a program in the text form: their numbers may be sparse, and each costs memory.
const MAX_VALUES: usize = 1 << 22;

impl VectorProgram {
    /// Parses the text form, see [`crate::vector`]. A number that no statement defines becomes a scalar bool.
    ///
    /// # Errors
    /// The text is no vector program.
    pub fn parse(text: &str) -> Result<VectorProgram, ParseError> {
        let mut lexer = Lexer::new(text);
        lexer.expect_word("vector")?;
        let name = match lexer.word()?.strip_prefix('@') {
            Some(name) => name.to_string(),
            None => return Err(lexer.error("expected a name such as `@k3`")),
        };
        lexer.expect('(')?;
        let mut buffers = Vec::new();
        while !lexer.eat_word("dims") {
            lexer.expect_word(&format!("b{}", buffers.len()))?;
            lexer.expect(':')?;
            let dtype = dtype(&mut lexer)?;
            buffers.push((dtype, lexer.eat_word("written")));
            lexer.expect(',')?;
        }
        let dims = lexer.size()?;
        let mut locals = Vec::new();
        while lexer.eat(',') {
            lexer.expect_word("local")?;
            lexer.expect_word(&format!("b{}", buffers.len() + locals.len()))?;
            lexer.expect(':')?;
            let dtype = dtype(&mut lexer)?;
            lexer.expect('[')?;
            locals.push((dtype, lexer.size()?));
            lexer.expect(']')?;
        }
        lexer.expect(')')?;
        let mut parser = Parser { lexer, types: Vec::new() };
        let body = parser.region()?;
        if *parser.lexer.peek() != Token::End {
            return Err(parser.lexer.error("expected the end of the program"));
        }
        let mut values = Arena::default();
        for ty in parser.types {
            values.push(ty.unwrap_or(VectorType::scalar(DType::Bool)));
        }
        Ok(VectorProgram { name, buffers, locals, dims, values, body })
    }
}

fn dtype(lexer: &mut Lexer<'_>) -> Result<DType, ParseError> {
    let error = lexer.error("expected an element type such as `f32`");
    DType::from_name(lexer.word()?).ok_or(error)
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    types: Vec<Option<VectorType>>,
}

impl Parser<'_> {
    fn value(&mut self) -> Result<ValueId, ParseError> {
        let error = self.lexer.error("the number of the value is too large");
        let index = self.lexer.value()?;
        if index >= MAX_VALUES {
            return Err(error);
        }
        if index >= self.types.len() {
            self.types.resize(index + 1, None);
        }
        Ok(Id::from_index(index))
    }

    fn define(&mut self, id: ValueId, ty: VectorType) {
        if let Some(slot) = self.types.get_mut(id.index()) {
            // The first definition gives the type; the verifier reports a second one.
            slot.get_or_insert(ty);
        }
    }

    fn ty(&mut self) -> Result<VectorType, ParseError> {
        let error = self.lexer.error("expected a type such as `i64` or `f32x4`");
        let word = self.lexer.word()?;
        let (name, lanes) = match word.split_once('x') {
            Some((name, lanes)) => (name, lanes.parse().ok()),
            None => (word, Some(1)),
        };
        match (DType::from_name(name), lanes) {
            (Some(dtype), Some(lanes)) => Ok(VectorType { dtype, lanes }),
            _ => Err(error),
        }
    }

    /// `%3: f32x4`
    fn typed(&mut self) -> Result<ValueId, ParseError> {
        let id = self.value()?;
        self.lexer.expect(':')?;
        let ty = self.ty()?;
        self.define(id, ty);
        Ok(id)
    }

    fn region(&mut self) -> Result<Vec<Stmt>, ParseError> {
        self.lexer.enter()?;
        self.lexer.expect('{')?;
        let mut body = Vec::new();
        while !self.lexer.eat('}') {
            body.push(self.stmt()?);
        }
        self.lexer.leave();
        Ok(body)
    }

    fn stmt(&mut self) -> Result<Stmt, ParseError> {
        if matches!(self.lexer.peek(), Token::Value(_)) {
            let id = self.typed()?;
            self.lexer.expect('=')?;
            return Ok(Stmt::Let(id, self.op()?));
        }
        let error = self
            .lexer
            .error("expected a statement: `%3: type = ...`, `for`, `if`, `store`, `prefetch`, `matrix` or `fail`");
        match self.lexer.word().map_err(|_| error.clone())? {
            "store" => {
                let address = self.address()?;
                self.lexer.expect(',')?;
                Ok(Stmt::Store(address, self.value()?))
            }
            "prefetch" => {
                let cache = if self.lexer.eat_word("second") { Cache::Second } else { Cache::First };
                Ok(Stmt::Prefetch(cache, self.address()?))
            }
            "matrix" => Ok(Stmt::Matrix(self.matrix()?)),
            "fail" => {
                let error = self.lexer.error("a status is a number below 2^32");
                let status = u32::try_from(self.lexer.integer()?).map_err(|_| error)?;
                self.lexer.expect_word("if")?;
                Ok(Stmt::Fail { condition: self.value()?, status })
            }
            "if" => {
                let condition = self.value()?;
                let then = self.region()?;
                let otherwise = if self.lexer.eat_word("else") { self.region()? } else { Vec::new() };
                Ok(Stmt::If { condition, then, otherwise })
            }
            "for" => Ok(Stmt::For(self.counted_loop()?)),
            _ => Err(error),
        }
    }

    /// A number below 256.
    fn small(&mut self) -> Result<u8, ParseError> {
        let error = self.lexer.error("expected a number below 256");
        u8::try_from(self.lexer.integer()?).map_err(|_| error)
    }

    fn matrix(&mut self) -> Result<Matrix, ParseError> {
        let error = self.lexer.error("expected `shape`, `zero`, `load`, `store`, `pairs`, `u8s8` or `s8u8`");
        let word = self.lexer.word()?;
        Ok(match word {
            "shape" => {
                let mut shapes = Shapes::default();
                self.lexer.expect('(')?;
                for (n, shape) in shapes.iter_mut().enumerate() {
                    if n > 0 {
                        self.lexer.expect(',')?;
                    }
                    let rows = self.small()?;
                    self.lexer.expect_word("by")?;
                    *shape = Shape { rows, row_bytes: self.small()? };
                }
                self.lexer.expect(')')?;
                Matrix::Shape(Box::new(shapes))
            }
            "zero" => Matrix::Zero(self.small()?),
            "load" => {
                let to = self.small()?;
                self.lexer.expect(',')?;
                let from = self.address()?;
                self.lexer.expect_word("by")?;
                Matrix::Load { to, from, stride: self.lexer.integer()? }
            }
            "store" => {
                let to = self.address()?;
                self.lexer.expect_word("by")?;
                let stride = self.lexer.integer()?;
                self.lexer.expect(',')?;
                Matrix::Store { from: self.small()?, to, stride }
            }
            _ => {
                let product = Product::from_name(word).ok_or(error)?;
                let sum = self.small()?;
                self.lexer.expect(',')?;
                let left = self.small()?;
                self.lexer.expect(',')?;
                Matrix::Multiply { product, sum, left, right: self.small()? }
            }
        })
    }

    fn counted_loop(&mut self) -> Result<For, ParseError> {
        let var = self.value()?;
        self.define(var, VectorType::scalar(DType::I64));
        self.lexer.expect_word("in")?;
        let lo = self.value()?;
        self.lexer.expect('…')?;
        let hi = self.value()?;
        self.lexer.expect_word("step")?;
        let step = self.lexer.integer()?;
        let mut heads = Vec::new();
        if self.lexer.eat_word("carry") {
            self.lexer.expect('(')?;
            while !self.lexer.eat(')') {
                if !heads.is_empty() {
                    self.lexer.expect(',')?;
                }
                let inside = self.typed()?;
                self.lexer.expect('=')?;
                heads.push((inside, self.value()?));
            }
        }
        let body = self.region()?;
        let (mut next, mut after) = (Vec::new(), Vec::new());
        if !heads.is_empty() {
            self.lexer.expect_word("next")?;
            next = self.values()?;
            self.lexer.expect_word("as")?;
            after = self.values()?;
        }
        if next.len() != heads.len() || after.len() != heads.len() {
            return Err(self
                .lexer
                .error(format!("the loop carries {} values, not as many as it hands on", heads.len())));
        }
        let mut carried = Vec::new();
        for (((inside, init), next), after) in heads.into_iter().zip(next).zip(after) {
            if let Some(ty) = self.types.get(inside.index()).copied().flatten() {
                self.define(after, ty);
            }
            carried.push(Carried { init, inside, next, after });
        }
        Ok(For { var, lo, hi, step, carried, body })
    }

    fn values(&mut self) -> Result<Vec<ValueId>, ParseError> {
        self.lexer.expect('(')?;
        let mut values = Vec::new();
        while !self.lexer.eat(')') {
            if !values.is_empty() {
                self.lexer.expect(',')?;
            }
            values.push(self.value()?);
        }
        Ok(values)
    }

    fn operands<const N: usize>(&mut self) -> Result<[ValueId; N], ParseError> {
        let values = self.values()?;
        let found = values.len();
        values.try_into().map_err(|_| self.lexer.error(format!("expected {N} operands, found {found}")))
    }

    fn address(&mut self) -> Result<Address, ParseError> {
        let error = self.lexer.error("expected a buffer such as `b0`");
        let buffer = self.lexer.word()?.strip_prefix('b').and_then(|n| n.parse().ok()).ok_or(error)?;
        self.lexer.expect('[')?;
        let (mut index, mut offset) = (None, 0);
        if let Token::Value(_) = self.lexer.peek() {
            index = Some(self.value()?);
            if self.lexer.eat('+') {
                offset = self.lexer.integer()?;
            } else if self.lexer.eat('-') {
                offset = -self.lexer.integer()?.max(-i64::MAX);
            }
        } else {
            offset = self.lexer.integer()?;
        }
        self.lexer.expect(']')?;
        Ok(Address { buffer, index, offset })
    }

    fn op(&mut self) -> Result<Op, ParseError> {
        let Token::Word(word) = *self.lexer.peek() else {
            return Ok(Op::Const(Constant::parse(&mut self.lexer)?));
        };
        let error = self.lexer.error(format!("`{word}` is no operation of a vector program"));
        let named = |prefix: &str| word.strip_prefix(prefix);
        if matches!(word, "true" | "false") || ["inf_", "minus_inf_", "nan_"].iter().any(|p| named(p).is_some()) {
            return Ok(Op::Const(Constant::parse(&mut self.lexer)?));
        }
        self.lexer.bump();
        Ok(match word {
            "lo" => Op::Lo,
            "hi" => Op::Hi,
            "dim" => Op::Dim(self.lexer.size()?),
            "load" => Op::Load(self.address()?),
            "load_wide" => Op::LoadWide(self.address()?),
            "load_splat" => Op::LoadSplat(self.address()?),
            "load_strided" => {
                let address = self.address()?;
                self.lexer.expect_word("by")?;
                Op::LoadStrided(address, self.lexer.integer()?)
            }
            "splat" => Op::Splat(self.operands::<1>()?[0]),
            "pack" => Op::Pack(self.values()?),
            "extract" => {
                self.lexer.expect('(')?;
                let vector = self.value()?;
                self.lexer.expect(',')?;
                let error = self.lexer.error("expected a lane's number");
                let lane = u32::try_from(self.lexer.integer()?).map_err(|_| error)?;
                self.lexer.expect(')')?;
                Op::Extract(vector, lane)
            }
            "round_f16" => Op::RoundHalf(self.operands::<1>()?[0]),
            "fma" => {
                let [a, b, c] = self.operands()?;
                Op::Fma(a, b, c)
            }
            "scale" => {
                let [a, n] = self.operands()?;
                Op::Scale(a, n)
            }
            "select" => {
                let [a, b, c] = self.operands()?;
                Op::Select(a, b, c)
            }
            _ => {
                if let Some(op) = UnaryOp::from_name(word) {
                    Op::Unary(op, self.operands::<1>()?[0])
                } else if let Some(op) = BinaryOp::from_name(word) {
                    let [a, b] = self.operands()?;
                    Op::Binary(op, a, b)
                } else if let Some(op) = named("fold_").and_then(BinaryOp::from_name) {
                    Op::Fold(op, self.operands::<1>()?[0])
                } else if let Some(lane) = named("column_").and_then(|n| n.parse().ok()) {
                    Op::Column(self.values()?, lane)
                } else if let Some(to) = named("to_").and_then(DType::from_name) {
                    Op::Cast(to, self.operands::<1>()?[0])
                } else if let Some(to) = named("bits_").and_then(DType::from_name) {
                    Op::Bitcast(to, self.operands::<1>()?[0])
                } else {
                    return Err(error);
                }
            }
        })
    }
}
