//! The text form of [`crate::warp::bulk`].
//!
//! Invariant: that of the module around it.

use super::{Parser, number};
use crate::dtype::DType;
use crate::text::ParseError;
use crate::warp::bulk::{Operand, Rows};
use crate::warp::{Bulk, GroupProduct, Map, Roles};

impl Parser<'_> {
    fn numbered(&mut self, prefix: char) -> Result<usize, ParseError> {
        let error = self.lexer.error(format!("expected a name such as `{prefix}0`"));
        let word = self.lexer.word()?;
        word.strip_prefix(prefix).and_then(|n| n.parse().ok()).ok_or(error)
    }

    fn sizes(&mut self, name: &str) -> Result<Vec<u64>, ParseError> {
        self.lexer.expect_word(name)?;
        self.lexer.list('(', ')', |l| Ok(l.size()? as u64))
    }

    pub(super) fn maps(&mut self) -> Result<Vec<Map>, ParseError> {
        self.lexer.expect('(')?;
        let mut maps = Vec::new();
        while !self.lexer.eat(')') {
            if !maps.is_empty() {
                self.lexer.expect(',')?;
            }
            self.lexer.expect_word(&format!("m{}", maps.len()))?;
            self.lexer.expect(':')?;
            let buffer = self.numbered('b')?;
            self.lexer.expect('[')?;
            let first = self.lexer.size()? as u64;
            self.lexer.expect(']')?;
            let (extents, strides) = (self.sizes("extents")?, self.sizes("strides")?);
            let error = self.lexer.error("a box has fewer than 2^32 elements along an axis");
            let shape = self.sizes("box")?.into_iter().map(u32::try_from).collect::<Result<_, _>>();
            maps.push(Map { buffer, first, extents, strides, shape: shape.map_err(|_| error)? });
        }
        Ok(maps)
    }

    /// The rest of a statement that begins with the word; nothing where it is none of this kind.
    pub(super) fn bulk(&mut self, word: &str) -> Result<Option<Bulk>, ParseError> {
        Ok(Some(match word {
            "publish" => Bulk::Publish,
            "fence_products" => Bulk::Fence,
            "commit_products" => Bulk::Commit,
            "wait_products" => Bulk::Wait(number(&mut self.lexer)?),
            "arrive" => Bulk::Arrive { barrier: self.address()?, condition: self.condition()? },
            "initialise" => {
                let barrier = self.address()?;
                self.lexer.expect(',')?;
                Bulk::Initialise { barrier, arrivals: number(&mut self.lexer)? }
            }
            "expect" => {
                let barrier = self.address()?;
                self.lexer.expect(',')?;
                Bulk::Expect { barrier, bytes: number(&mut self.lexer)? }
            }
            "await" => {
                let barrier = self.address()?;
                self.lexer.expect(',')?;
                Bulk::Await { barrier, parity: self.value()? }
            }
            "fetch" => {
                let to = self.address()?;
                self.lexer.expect(',')?;
                let map = self.numbered('m')?;
                let at = self.values()?;
                self.lexer.expect(',')?;
                Bulk::Fetch { to, map, at, barrier: self.address()? }
            }
            "roles" => {
                let threads = number(&mut self.lexer)?;
                self.lexer.expect_word("registers")?;
                self.lexer.expect('(')?;
                let most = number(&mut self.lexer)?;
                self.lexer.expect(',')?;
                let registers = [most, number(&mut self.lexer)?];
                self.lexer.expect(')')?;
                let multiply = self.region()?;
                self.lexer.expect_word("fetch")?;
                Bulk::Roles(Roles { threads, registers, multiply, fetch: self.region()? })
            }
            _ => return Ok(None),
        }))
    }

    fn group_operand(&mut self) -> Result<Operand, ParseError> {
        let address = self.address()?;
        let rows = if self.lexer.eat_word("along") {
            Rows::Along
        } else {
            self.lexer.expect_word("across")?;
            Rows::Across(number(&mut self.lexer)?)
        };
        self.lexer.expect(',')?;
        Ok(Operand { address, rows })
    }

    pub(super) fn group_product(&mut self, dtype: DType) -> Result<GroupProduct, ParseError> {
        let (a, b) = (self.group_operand()?, self.group_operand()?);
        Ok(GroupProduct { dtype, a, b, c: self.values()? })
    }
}
