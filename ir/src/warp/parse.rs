//! The parser of the text form of warp programs.
//!
//! Invariant: any text gives a program or an error with its place; the program need not verify.

mod bulk;

use super::{Address, Buffer, Carried, Factor, For, Op, Place, Shared, Stmt, ValueId, WarpProgram};
use crate::dtype::DType;
use crate::expr::{Expr, Symbol};
use crate::id::{Arena, Id};
use crate::scalar::{BinaryOp, Constant, UnaryOp};
use crate::text::{Lexer, ParseError, Token};

/// Most values of a program in the text form: their numbers may be sparse, and each costs memory.
const MAX_VALUES: usize = 1 << 22;

impl WarpProgram {
    /// Parses the text form, see [`crate::warp`]. A number that no statement defines becomes a bool.
    ///
    /// # Errors
    /// The text is no warp program.
    pub fn parse(text: &str) -> Result<WarpProgram, ParseError> {
        let mut lexer = Lexer::new(text);
        lexer.expect_word("warp")?;
        let name = match lexer.word()?.strip_prefix('@') {
            Some(name) => name.to_string(),
            None => return Err(lexer.error("expected a name such as `@k3`")),
        };
        lexer.expect('(')?;
        let mut buffers = Vec::new();
        while !lexer.eat_word("dims") {
            lexer.expect_word(&format!("b{}", buffers.len()))?;
            let name = lexer.word()?.to_string();
            lexer.expect(':')?;
            let dtype = dtype(&mut lexer)?;
            lexer.expect('[')?;
            let len = Expr::parse(&mut lexer)?;
            lexer.expect(']')?;
            buffers.push(Buffer { name, dtype, len, written: lexer.eat_word("written"), local: false });
            lexer.expect(',')?;
        }
        let dims = lexer.list('(', ')', |l| Ok(Symbol::new(l.word()?)))?;
        lexer.expect(')')?;
        lexer.expect_word("grid")?;
        lexer.expect('(')?;
        let grid = Expr::parse(&mut lexer)?;
        lexer.expect(')')?;
        lexer.expect_word("threads")?;
        let threads = number(&mut lexer)?;
        let mut shared = Vec::new();
        if lexer.eat_word("shared") {
            let mut n = 0;
            shared = lexer.list('(', ')', |lexer| {
                lexer.expect_word(&format!("s{n}"))?;
                n += 1;
                lexer.expect(':')?;
                let dtype = dtype(lexer)?;
                lexer.expect('[')?;
                let len = lexer.size()?;
                lexer.expect(']')?;
                Ok(Shared { dtype, len })
            })?;
        }
        let mut parser = Parser { lexer, types: Vec::new() };
        let maps = if parser.lexer.eat_word("maps") { parser.maps()? } else { Vec::new() };
        let body = parser.region()?;
        if *parser.lexer.peek() != Token::End {
            return Err(parser.lexer.error("expected the end of the program"));
        }
        let mut values = Arena::default();
        for ty in parser.types {
            values.push(ty.unwrap_or(DType::Bool));
        }
        Ok(WarpProgram { name, buffers, dims, grid, threads, shared, maps, values, body })
    }
}

fn dtype(lexer: &mut Lexer<'_>) -> Result<DType, ParseError> {
    let error = lexer.error("expected an element type such as `f32`");
    DType::from_name(lexer.word()?).ok_or(error)
}

fn number(lexer: &mut Lexer<'_>) -> Result<u32, ParseError> {
    let error = lexer.error("expected a number below 2^32");
    u32::try_from(lexer.integer()?).map_err(|_| error)
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    types: Vec<Option<DType>>,
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

    fn define(&mut self, id: ValueId, ty: DType) {
        if let Some(slot) = self.types.get_mut(id.index()) {
            // The first definition gives the type; the verifier reports a second one.
            slot.get_or_insert(ty);
        }
    }

    /// `%3: f32`
    fn typed(&mut self) -> Result<ValueId, ParseError> {
        let id = self.value()?;
        self.lexer.expect(':')?;
        let ty = dtype(&mut self.lexer)?;
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

    fn condition(&mut self) -> Result<Option<ValueId>, ParseError> {
        if self.lexer.eat_word("if") { Ok(Some(self.value()?)) } else { Ok(None) }
    }

    fn stmt(&mut self) -> Result<Stmt, ParseError> {
        if matches!(self.lexer.peek(), Token::Value(_)) {
            let mut ids = vec![self.typed()?];
            while self.lexer.eat(',') {
                ids.push(self.typed()?);
            }
            self.lexer.expect('=')?;
            return Ok(Stmt::Let(ids, self.op()?));
        }
        let error = self.lexer.error(
            "expected a statement: `%3: type = ...`, `for`, `store`, `copy`, `commit`, `wait`, `barrier` or `fail`",
        );
        match self.lexer.word().map_err(|_| error.clone())? {
            "store" => {
                let address = self.address()?;
                self.lexer.expect(',')?;
                let values = self.values()?;
                Ok(Stmt::Store { address, values, condition: self.condition()? })
            }
            "copy" => {
                let to = self.address()?;
                self.lexer.expect(',')?;
                let from = self.address()?;
                self.lexer.expect(',')?;
                let count = self.lexer.size()?;
                Ok(Stmt::Copy { to, from, count, condition: self.condition()? })
            }
            "commit" => Ok(Stmt::Commit),
            "wait" => Ok(Stmt::Wait(number(&mut self.lexer)?)),
            "barrier" => Ok(Stmt::Barrier),
            "fail" => {
                let status = number(&mut self.lexer)?;
                self.lexer.expect_word("if")?;
                Ok(Stmt::Fail { condition: self.value()?, status })
            }
            "for" => Ok(Stmt::For(self.counted_loop()?)),
            word => match self.bulk(word)? {
                Some(bulk) => Ok(Stmt::Bulk(bulk)),
                None => Err(error),
            },
        }
    }

    fn counted_loop(&mut self) -> Result<For, ParseError> {
        let var = self.typed()?;
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
            let carried = heads.len();
            return Err(self.lexer.error(format!("the loop carries {carried} values, not as many as it hands on")));
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
        let error = self.lexer.error("expected a buffer such as `b0` or `s0`");
        let word = self.lexer.word()?;
        let numbered = |prefix| word.strip_prefix(prefix).and_then(|n| n.parse().ok());
        let place = numbered('b').map(Place::Global).or_else(|| numbered('s').map(Place::Shared)).ok_or(error)?;
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
        Ok(Address { place, index, offset })
    }

    fn op(&mut self) -> Result<Op, ParseError> {
        let Token::Word(word) = *self.lexer.peek() else {
            return Ok(Op::Const(Constant::parse(&mut self.lexer)?));
        };
        if matches!(word, "true" | "false") || ["inf_", "minus_inf_", "nan_"].iter().any(|p| word.starts_with(p)) {
            return Ok(Op::Const(Constant::parse(&mut self.lexer)?));
        }
        let error = self.lexer.error(format!("`{word}` is no operation of a warp program"));
        self.lexer.bump();
        Ok(match word {
            "thread" => Op::Thread,
            "block" => Op::Block,
            "dim" => Op::Dim(self.lexer.size()?),
            "load" => {
                let address = self.address()?;
                let Some(condition) = self.condition()? else { return Ok(Op::Load(address, None)) };
                self.lexer.expect_word("else")?;
                Op::Load(address, Some((condition, Constant::parse(&mut self.lexer)?)))
            }
            "exp2" => Op::Exp2(self.operands::<1>()?[0]),
            "tf32" => Op::Tf32(self.operands::<1>()?[0]),
            "fma" => {
                let [a, b, c] = self.operands()?;
                Op::Fma(a, b, c)
            }
            "select" => {
                let [a, b, c] = self.operands()?;
                Op::Select(a, b, c)
            }
            "shuffle" => {
                self.lexer.expect('(')?;
                let value = self.value()?;
                self.lexer.expect(',')?;
                let mask = number(&mut self.lexer)?;
                self.lexer.expect(')')?;
                Op::Shuffle(value, mask)
            }
            "matrix" | "matrix_transposed" => {
                Op::Matrix { address: self.address()?, transposed: word == "matrix_transposed" }
            }
            _ => {
                let named = |prefix: &str| word.strip_prefix(prefix).and_then(DType::from_name);
                if let Some(op) = UnaryOp::from_name(word) {
                    Op::Unary(op, self.operands::<1>()?[0])
                } else if let Some(op) = BinaryOp::from_name(word) {
                    let [a, b] = self.operands()?;
                    Op::Binary(op, a, b)
                } else if let Some(to) = named("to_") {
                    Op::Cast(to, self.operands::<1>()?[0])
                } else if let Some(to) = named("bits_") {
                    Op::Bitcast(to, self.operands::<1>()?[0])
                } else if let Some(to) = named("pack_") {
                    let [a, b] = self.operands()?;
                    Op::Pack(to, a, b)
                } else if let Some(from) = named("unpack_") {
                    self.lexer.expect('(')?;
                    let value = self.value()?;
                    self.lexer.expect(',')?;
                    let byte = number(&mut self.lexer)?;
                    self.lexer.expect(')')?;
                    Op::Unpack(from, value, byte)
                } else if let Some(dtype) = named("group_mma_") {
                    Op::GroupMma(self.group_product(dtype)?)
                } else if let Some(factor) = word.strip_prefix("mma_").and_then(Factor::from_name) {
                    let [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3] = self.operands()?;
                    Op::Mma { factor, a: [a0, a1, a2, a3], b: [b0, b1], c: [c0, c1, c2, c3] }
                } else {
                    return Err(error);
                }
            }
        })
    }
}
