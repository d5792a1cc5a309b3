//! The parser of the text form of tile programs.
//!
//! Invariant: any text gives a program or an error with its place; the program need not verify.

use super::{Ahead, Buffer, Carried, Factors, For, If, Multiply, Part, Stmt, TileId, TileOp, TileProgram, TileType};
use crate::dtype::DType;
use crate::expr::{Expr, Symbol};
use crate::id::{Arena, Id};
use crate::scalar::{BinaryOp, Constant, Less, UnaryOp};
use crate::text::{Lexer, ParseError, Token};
use crate::vector::Product;

/// Most tiles of a program in the text form: their numbers may be sparse, and each costs memory.
const MAX_TILES: usize = 1 << 20;

impl TileProgram {
    /// Parses the text form, see [`crate::tile`]. A number that no statement defines becomes a scalar bool. The
    /// `else` of a load may be left out and is then 0 of the buffer's type.
    ///
    /// # Errors
    /// The text is no tile program.
    pub fn parse(text: &str) -> Result<TileProgram, ParseError> {
        let mut lexer = Lexer::new(text);
        lexer.expect_word("kernel")?;
        let name = match lexer.word()?.strip_prefix('@') {
            Some(name) => name.to_string(),
            None => return Err(lexer.error("expected a name such as `@k3`")),
        };
        let buffers = lexer.list('(', ')', |lexer| {
            let name = lexer.word()?.to_string();
            lexer.expect(':')?;
            let dtype = dtype(lexer)?;
            lexer.expect('[')?;
            let len = Expr::parse(lexer)?;
            lexer.expect(']')?;
            let local = lexer.eat_word("local");
            Ok(Buffer { name, dtype, len, written: local || lexer.eat_word("written"), local })
        })?;
        let mut parser = Parser { lexer, buffers: &buffers, types: Vec::new() };
        parser.lexer.expect('{')?;
        let mut parts = Vec::new();
        while !parser.lexer.eat('}') {
            parser.lexer.expect_word("part")?;
            parser.lexer.expect_word("grid")?;
            let grid = parser.lexer.list('(', ')', |lexer| {
                let variable = Symbol::new(lexer.word()?);
                lexer.expect('=')?;
                Ok((variable, Expr::parse(lexer)?))
            })?;
            parts.push(Part { grid, body: parser.region()? });
        }
        if *parser.lexer.peek() != Token::End {
            return Err(parser.lexer.error("expected the end of the program"));
        }
        let mut tiles = Arena::default();
        for ty in parser.types {
            tiles.push(ty.unwrap_or(TileType { dtype: DType::Bool, shape: Vec::new() }));
        }
        Ok(TileProgram { name, buffers, parts, tiles })
    }
}

fn dtype(lexer: &mut Lexer<'_>) -> Result<DType, ParseError> {
    let error = lexer.error("expected an element type such as `f32`");
    DType::from_name(lexer.word()?).ok_or(error)
}

fn less(lexer: &mut Lexer<'_>) -> Result<Less, ParseError> {
    let left = Expr::parse(lexer)?;
    lexer.expect('<')?;
    Ok(Less { left, right: Expr::parse(lexer)? })
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    buffers: &'a [Buffer],
    types: Vec<Option<TileType>>,
}

fn tile(lexer: &mut Lexer<'_>) -> Result<TileId, ParseError> {
    let error = lexer.error("the number of the tile is too large");
    let index = lexer.value()?;
    if index < MAX_TILES { Ok(Id::from_index(index)) } else { Err(error) }
}

impl Parser<'_> {
    fn define(&mut self, id: TileId, ty: TileType) {
        if id.index() >= self.types.len() {
            self.types.resize(id.index() + 1, None);
        }
        // The first definition gives the type; the verifier reports a second one.
        self.types[id.index()].get_or_insert(ty);
    }

    /// `%3: f32[4,8]`
    fn typed(&mut self) -> Result<TileId, ParseError> {
        let id = tile(&mut self.lexer)?;
        self.lexer.expect(':')?;
        let dtype = dtype(&mut self.lexer)?;
        let shape = self.lexer.list('[', ']', Lexer::size)?;
        self.define(id, TileType { dtype, shape });
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
        let error = self.lexer.error("expected a statement: `%3: f32[4,8] = ...`, `for`, `if`, `store` or `multiply`");
        match self.lexer.word()? {
            "store" => {
                let (buffer, address) = self.place()?;
                self.lexer.expect('=')?;
                let value = tile(&mut self.lexer)?;
                let gathered = self.gathered()?;
                Ok(Stmt::Store { buffer, address, gathered, mask: self.mask()?, value })
            }
            "multiply" => Ok(Stmt::Multiply(self.multiply()?)),
            "for" => Ok(Stmt::For(self.counted_loop()?)),
            "if" => {
                let (condition, then) = (tile(&mut self.lexer)?, self.region()?);
                self.lexer.expect_word("else")?;
                Ok(Stmt::If(If { condition, then, otherwise: self.region()? }))
            }
            _ => Err(error),
        }
    }

    /// `16+8`
    fn cut(&mut self) -> Result<Vec<usize>, ParseError> {
        let mut sizes = vec![self.lexer.size()?];
        while self.lexer.eat('+') {
            sizes.push(self.lexer.size()?);
        }
        Ok(sizes)
    }

    fn multiply(&mut self) -> Result<Multiply, ParseError> {
        let error = self.lexer.error("expected the name of a buffer of the kernel");
        let name = self.lexer.word()?;
        let out = self.buffers.iter().position(|b| b.name == name).ok_or(error)?;
        self.lexer.expect('[')?;
        let rows = self.cut()?;
        self.lexer.expect(',')?;
        let columns = self.cut()?;
        self.lexer.expect(']')?;
        let at = if self.lexer.eat_word("at") { Expr::parse(&mut self.lexer)? } else { Expr::default() };
        let adds = self.lexer.eat_word("adds");
        let error = self.lexer.error("expected `pairs`, `u8s8` or `s8u8`");
        let word = self.lexer.word()?;
        let product = Product::from_name(word).ok_or(error)?;
        self.lexer.expect_word("by")?;
        let depth = self.lexer.size()?;
        let (mut rounds, mut round) = (Vec::new(), vec![self.factors()?]);
        loop {
            if self.lexer.eat_word("then") {
                rounds.push(std::mem::take(&mut round));
            } else if !self.lexer.eat_word("and") {
                break;
            }
            round.push(self.factors()?);
        }
        rounds.push(round);
        self.lexer.expect_word("for")?;
        let folds = self.lexer.list('(', ')', |lexer| {
            let variable = Symbol::new(lexer.word()?);
            lexer.expect('=')?;
            let extent = Expr::parse(lexer)?;
            lexer.expect_word("step")?;
            Ok((variable, extent, lexer.integer()?))
        })?;
        let ahead = match self.lexer.eat_word("ahead") {
            false => None,
            true => {
                let from = self.place()?;
                self.lexer.expect_word("lines")?;
                Some(Ahead { from, lines: self.lexer.size()? })
            }
        };
        Ok(Multiply { out: (out, at), adds, rows, columns, product, depth, rounds, folds, ahead })
    }

    fn factors(&mut self) -> Result<Factors, ParseError> {
        Ok(Factors { left: self.place()?, right: self.place()? })
    }

    fn counted_loop(&mut self) -> Result<For, ParseError> {
        let var = Symbol::new(self.lexer.word()?);
        self.lexer.expect_word("in")?;
        let lo = Expr::parse(&mut self.lexer)?;
        self.lexer.expect('…')?;
        let hi = Expr::parse(&mut self.lexer)?;
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
                heads.push((inside, tile(&mut self.lexer)?));
            }
        }
        let body = self.region()?;
        let (mut next, mut after) = (Vec::new(), Vec::new());
        if !heads.is_empty() {
            self.lexer.expect_word("next")?;
            next = self.lexer.list('(', ')', tile)?;
            self.lexer.expect_word("as")?;
            after = self.lexer.list('(', ')', tile)?;
        }
        if next.len() != heads.len() || after.len() != heads.len() {
            return Err(self
                .lexer
                .error(format!("the loop carries {} tiles, not as many as it hands on", heads.len())));
        }
        let mut carried = Vec::new();
        for (((inside, init), next), after) in heads.into_iter().zip(next).zip(after) {
            if let Some(ty) = self.types.get(inside.index()).cloned().flatten() {
                self.define(after, ty);
            }
            carried.push(Carried { init, inside, next, after });
        }
        Ok(For { var, lo, hi, step, carried, body })
    }

    /// `x[address]`
    fn place(&mut self) -> Result<(usize, Expr), ParseError> {
        let error = self.lexer.error("expected the name of a buffer of the kernel");
        let name = self.lexer.word()?;
        let buffer = self.buffers.iter().position(|b| b.name == name).ok_or(error)?;
        self.lexer.expect('[')?;
        let address = Expr::parse(&mut self.lexer)?;
        self.lexer.expect(']')?;
        Ok((buffer, address))
    }

    fn mask(&mut self) -> Result<Vec<Less>, ParseError> {
        if self.lexer.eat_word("if") { self.lexer.list('(', ')', less) } else { Ok(Vec::new()) }
    }

    fn operands<const N: usize>(&mut self) -> Result<[TileId; N], ParseError> {
        let mut operands = [Id::from_index(0); N];
        for (i, slot) in operands.iter_mut().enumerate() {
            if i > 0 {
                self.lexer.expect(',')?;
            }
            *slot = tile(&mut self.lexer)?;
        }
        Ok(operands)
    }

    /// `with(%3, %4)`, or nothing.
    fn gathered(&mut self) -> Result<Vec<TileId>, ParseError> {
        if self.lexer.eat_word("with") { self.lexer.list('(', ')', tile) } else { Ok(Vec::new()) }
    }

    fn load(&mut self) -> Result<TileOp, ParseError> {
        let (buffer, address) = self.place()?;
        let gathered = self.gathered()?;
        let mask = self.mask()?;
        let other = if self.lexer.eat_word("else") {
            Constant::parse(&mut self.lexer)?
        } else {
            Constant::int(self.buffers.get(buffer).map_or(DType::F32, |b| b.dtype), 0)
        };
        Ok(TileOp::Load { buffer, address, gathered, mask, other })
    }

    fn op(&mut self) -> Result<TileOp, ParseError> {
        let error = self.lexer.error("expected the name of a tile operation");
        let word = self.lexer.word()?;
        Ok(match word {
            "const" => TileOp::Const(Constant::parse(&mut self.lexer)?),
            "index" => {
                self.lexer.expect('(')?;
                let e = Expr::parse(&mut self.lexer)?;
                self.lexer.expect(')')?;
                TileOp::Index(e)
            }
            "load" => self.load()?,
            "fma" => {
                let [a, b, c] = self.operands()?;
                TileOp::Fma(a, b, c)
            }
            "select" => {
                let [a, b, c] = self.operands()?;
                TileOp::Select(a, b, c)
            }
            "dot" => {
                let [a, b, c] = self.operands()?;
                TileOp::Dot(None, a, b, c)
            }
            "reduce" => {
                let op = BinaryOp::from_name(self.lexer.word()?).ok_or(error)?;
                let axis = self.lexer.size()?;
                self.lexer.expect(',')?;
                TileOp::Reduce(op, axis, tile(&mut self.lexer)?)
            }
            "transpose" => {
                let order = self.lexer.list('[', ']', Lexer::size)?;
                self.lexer.expect(',')?;
                TileOp::Transpose(order, tile(&mut self.lexer)?)
            }
            "check" => {
                let index = tile(&mut self.lexer)?;
                self.lexer.expect_word("in")?;
                self.lexer.expect('(')?;
                let extent = Expr::parse(&mut self.lexer)?;
                self.lexer.expect(')')?;
                self.lexer.expect_word("status")?;
                let status = u32::try_from(self.lexer.integer()?).map_err(|_| error)?;
                TileOp::CheckIndex { index, extent, status }
            }
            _ => {
                if let Some(op) = UnaryOp::from_name(word) {
                    let [a] = self.operands()?;
                    TileOp::Unary(op, a)
                } else if let Some(op) = BinaryOp::from_name(word) {
                    let [a, b] = self.operands()?;
                    TileOp::Binary(op, a, b)
                } else if let Some(to) = word.strip_prefix("to_").and_then(DType::from_name) {
                    let [a] = self.operands()?;
                    TileOp::Cast(to, a)
                } else if let Some(of) = word.strip_prefix("dot_").and_then(Product::from_name) {
                    let [a, b, c] = self.operands()?;
                    TileOp::Dot(Some(of), a, b, c)
                } else {
                    return Err(error);
                }
            }
        })
    }
}
