//! Jinja's grammar, as jinja2 3.1 parses it with the extensions that transformers adds: `break`,
//! `continue` and `generation`.

mod expressions;
mod statements;

use super::ast::{Block, Name};
use super::fault::{Fault, Result};
use super::lexer::{Lexeme, tokenize};
use super::limits::TemplateLimits;

/// Parses a template.
pub(crate) fn parse(source: &str, limits: &TemplateLimits) -> Result<Block> {
    if source.len() > limits.source_bytes {
        let (bytes, most) = (source.len(), limits.source_bytes);
        return Err(Fault::new(format!(
            "the template has {bytes} bytes, the maximum is {most}"
        )));
    }
    let mut parser = Parser {
        tokens: tokenize(source)?,
        next: 0,
        depth: 0,
        depth_max: limits.nesting,
        num_loop_names: 0,
        implicit: Implicit::default(),
        loops: 0,
    };
    let (block, _) = parser.block(&[])?;
    Ok(block)
}

/// The special names that a macro body uses without declaring them.
#[derive(Clone, Copy, Default)]
struct Implicit {
    varargs: bool,
    kwargs: bool,
    caller: bool,
}

struct Parser {
    tokens: Vec<(Lexeme, u32)>,
    next: usize,
    depth: usize,
    depth_max: usize,
    /// Number of uses of the name `loop` so far.
    num_loop_names: usize,
    implicit: Implicit,
    /// Number of open loops that `break` may end.
    loops: usize,
}

impl Parser {
    fn token(&self) -> &Lexeme {
        &self.tokens[self.next].0
    }

    /// The token after the next one.
    fn look(&self) -> &Lexeme {
        &self.tokens[(self.next + 1).min(self.tokens.len() - 1)].0
    }

    fn line(&self) -> u32 {
        self.tokens[self.next].1
    }

    fn advance(&mut self) -> Lexeme {
        let token = self.token().clone();
        if self.next + 1 < self.tokens.len() {
            self.next += 1;
        }
        token
    }

    fn fault<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Fault::new(message).at(self.line()))
    }

    fn unexpected<T>(&self, expected: &str) -> Result<T> {
        self.fault(format!(
            "expected {expected}, got {}",
            describe(self.token())
        ))
    }

    fn is_operator(&self, operator: &str) -> bool {
        matches!(self.token(), Lexeme::Operator(here) if *here == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.token(), Lexeme::Name(here) if &**here == name)
    }

    fn skip_operator(&mut self, operator: &str) -> bool {
        let is_here = self.is_operator(operator);
        if is_here {
            self.advance();
        }
        is_here
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let is_here = self.is_name(name);
        if is_here {
            self.advance();
        }
        is_here
    }

    fn expect_operator(&mut self, operator: &str) -> Result<()> {
        match self.skip_operator(operator) {
            true => Ok(()),
            false => self.unexpected(&format!("'{operator}'")),
        }
    }

    fn expect_name(&mut self) -> Result<Name> {
        match self.token() {
            Lexeme::Name(_) => match self.advance() {
                Lexeme::Name(name) => Ok(name),
                _ => unreachable!("it was a name"),
            },
            _ => self.unexpected("a name"),
        }
    }

    fn expect_block_end(&mut self) -> Result<()> {
        match self.token() {
            Lexeme::BlockEnd => {
                self.advance();
                Ok(())
            }
            _ => self.unexpected("the end of the statement block"),
        }
    }

    /// Runs `parse` one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if self.depth > self.depth_max {
            return self.fault(format!(
                "the template nests deeper than {} levels",
                self.depth_max
            ));
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }
}

fn describe(token: &Lexeme) -> String {
    match token {
        Lexeme::Data(_) => "text".to_owned(),
        Lexeme::VariableBegin => "'{{'".to_owned(),
        Lexeme::VariableEnd => "'}}'".to_owned(),
        Lexeme::BlockBegin => "'{%'".to_owned(),
        Lexeme::BlockEnd => "'%}'".to_owned(),
        Lexeme::Name(name) => format!("'{name}'"),
        Lexeme::Text(_) => "a string".to_owned(),
        Lexeme::Int(number) => format!("'{number}'"),
        Lexeme::Float(number) => format!("'{number}'"),
        Lexeme::Operator(operator) => format!("'{operator}'"),
        Lexeme::End => "the end of the template".to_owned(),
    }
}
