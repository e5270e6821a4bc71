//! Statements: the text of a template and its tags.

use std::sync::Arc;

use super::{Parser, describe};
use crate::jinja::ast::{Block, Expr, ExprKind, For, Macro, Name, Statement, Target};
use crate::jinja::fault::Result;
use crate::jinja::lexer::Lexeme;

/// The tags that continue or end another tag.
const ENDS: &[&str] = &[
    "elif",
    "else",
    "endif",
    "endfor",
    "endset",
    "endmacro",
    "endcall",
    "endfilter",
    "endwith",
    "endgeneration",
    "endblock",
    "endautoescape",
];

impl Parser {
    /// Parses statements up to a tag in `ends`, which it consumes and returns, or to the end of the
    /// template.
    pub(super) fn block(&mut self, ends: &[&str]) -> Result<(Block, Name)> {
        self.nested(|this| this.block_inner(ends))
    }

    fn block_inner(&mut self, ends: &[&str]) -> Result<(Block, Name)> {
        let mut block = Vec::new();
        loop {
            match self.advance() {
                Lexeme::End if ends.is_empty() => return Ok((block, "".into())),
                Lexeme::End => {
                    let ends = ends.join("' or '");
                    return self.fault(format!("unexpected end of template, expected '{ends}'"));
                }
                Lexeme::Data(text) => block.push(Statement::Text(text)),
                Lexeme::VariableBegin => {
                    let value = self.tuple(false)?;
                    match self.advance() {
                        Lexeme::VariableEnd => block.push(Statement::Print(value)),
                        token => {
                            let got = describe(&token);
                            return self
                                .fault(format!("expected end of print statement, got {got}"));
                        }
                    }
                }
                Lexeme::BlockBegin => {
                    let tag = self.expect_name()?;
                    if ends.contains(&&*tag) {
                        return Ok((block, tag));
                    }
                    self.statement(&tag, &mut block)?;
                    self.expect_block_end()?;
                }
                token => return self.fault(format!("unexpected {}", describe(&token))),
            }
        }
    }

    fn statement(&mut self, tag: &str, block: &mut Block) -> Result<()> {
        let statement = match tag {
            "if" => self.if_statement()?,
            "for" => self.for_statement()?,
            "set" => self.set_statement()?,
            "macro" => self.macro_statement()?,
            "call" => self.call_statement()?,
            "filter" => self.filter_statement()?,
            "with" => self.with_statement()?,
            "generation" => self.generation_statement()?,
            "block" => self.block_statement()?,
            "autoescape" => self.autoescape_statement()?,
            "print" => return self.print_statement(block),
            "break" | "continue" if self.loops == 0 => {
                return self.fault(format!("'{tag}' outside a loop"));
            }
            "break" => Statement::Break,
            "continue" => Statement::Continue,
            "include" | "import" | "from" | "extends" => {
                return self.fault(format!("'{tag}': a chat template has no other templates"));
            }
            _ if ENDS.contains(&tag) => return self.fault(format!("unexpected '{tag}'")),
            _ => return self.fault(format!("Encountered unknown tag '{tag}'")),
        };
        block.push(statement);
        Ok(())
    }

    fn print_statement(&mut self, block: &mut Block) -> Result<()> {
        let mut is_first = true;
        while *self.token() != Lexeme::BlockEnd {
            if !is_first {
                self.expect_operator(",")?;
            }
            is_first = false;
            block.push(Statement::Print(self.expression()?));
        }
        Ok(())
    }

    fn if_statement(&mut self) -> Result<Statement> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false)?;
            self.expect_block_end()?;
            let (body, end) = self.block(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            let otherwise = match &*end {
                "elif" => continue,
                "else" => {
                    self.expect_block_end()?;
                    self.block(&["endif"])?.0
                }
                _ => Vec::new(),
            };
            return Ok(Statement::If {
                branches,
                otherwise,
            });
        }
    }

    fn for_statement(&mut self) -> Result<Statement> {
        let target = self.target(true)?;
        if !self.skip_name("in") {
            return self.unexpected("'in'");
        }
        // The `if` belongs to the loop, not to the expression.
        let iterable = self.tuple_of(|this| this.or_expression(), false)?;
        let condition = match self.skip_name("if") {
            true => Some(self.expression()?),
            false => None,
        };
        let is_recursive = self.skip_name("recursive");
        self.expect_block_end()?;
        let num_loop_names = self.num_loop_names;
        self.loops += 1;
        let body = self.block(&["endfor", "else"]);
        self.loops -= 1;
        let (body, end) = body?;
        let uses_loop = self.num_loop_names > num_loop_names;
        let otherwise = match &*end {
            "else" => {
                self.expect_block_end()?;
                self.block(&["endfor"])?.0
            }
            _ => Vec::new(),
        };
        Ok(Statement::For(Arc::new(For {
            target,
            iterable,
            condition,
            body,
            otherwise,
            is_recursive,
            uses_loop,
        })))
    }

    fn set_statement(&mut self) -> Result<Statement> {
        let target = self.target(true)?;
        if self.skip_operator("=") {
            return Ok(Statement::Set(target, self.tuple(false)?));
        }
        let depth = self.depth;
        let filter = match self.is_operator("|") {
            true => Some(self.filters(None)?),
            false => None,
        };
        self.depth = depth;
        self.expect_block_end()?;
        let (body, _) = self.block(&["endset"])?;
        Ok(Statement::SetBlock {
            target,
            filter,
            body,
        })
    }

    fn macro_statement(&mut self) -> Result<Statement> {
        let name = self.expect_name()?;
        let parameters = self.parameters()?;
        Ok(Statement::Macro(Arc::new(
            self.macro_body(name, parameters, "endmacro")?,
        )))
    }

    /// The body of a macro, with the special names that it uses.
    fn macro_body(
        &mut self,
        name: Name,
        parameters: Vec<(Name, Option<Expr>)>,
        end: &str,
    ) -> Result<Macro> {
        let outer = std::mem::take(&mut self.implicit);
        let loops = std::mem::take(&mut self.loops);
        self.expect_block_end()?;
        let (body, _) = self.block(&[end])?;
        self.loops = loops;
        let seen = std::mem::replace(&mut self.implicit, outer);
        let declares = |name: &str| parameters.iter().any(|(parameter, _)| &**parameter == name);
        Ok(Macro {
            takes_varargs: seen.varargs && !declares("varargs"),
            takes_kwargs: seen.kwargs && !declares("kwargs"),
            takes_caller: seen.caller || declares("caller"),
            name,
            parameters,
            body,
        })
    }

    fn parameters(&mut self) -> Result<Vec<(Name, Option<Expr>)>> {
        let mut parameters: Vec<(Name, Option<Expr>)> = Vec::new();
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            let name = self.expect_name()?;
            let default = match self.skip_operator("=") {
                true => Some(self.expression()?),
                false
                    if parameters
                        .last()
                        .is_some_and(|(_, default)| default.is_some()) =>
                {
                    return self.fault("non-default argument follows default argument");
                }
                false => None,
            };
            parameters.push((name, default));
        }
        self.expect_operator(")")?;
        Ok(parameters)
    }

    fn call_statement(&mut self) -> Result<Statement> {
        let parameters = match self.is_operator("(") {
            true => self.parameters()?,
            false => Vec::new(),
        };
        match self.expression()?.kind {
            ExprKind::Call(callee, arguments) => Ok(Statement::CallBlock {
                callee: *callee,
                arguments,
                body: Arc::new(self.macro_body("caller".into(), parameters, "endcall")?),
            }),
            _ => self.fault("expected call"),
        }
    }

    fn filter_statement(&mut self) -> Result<Statement> {
        let depth = self.depth;
        let first = self.one_filter(None)?;
        let filter = self.filters(Some(first))?;
        self.depth = depth;
        self.expect_block_end()?;
        let (body, _) = self.block(&["endfilter"])?;
        Ok(Statement::FilterBlock { filter, body })
    }

    fn with_statement(&mut self) -> Result<Statement> {
        let mut assignments = Vec::new();
        while *self.token() != Lexeme::BlockEnd {
            if !assignments.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(true)?;
            self.expect_operator("=")?;
            assignments.push((target, self.expression()?));
        }
        self.expect_block_end()?;
        let (body, _) = self.block(&["endwith"])?;
        Ok(Statement::With { assignments, body })
    }

    /// Marks the assistant's text, for training; the result is the text of the body.
    fn generation_statement(&mut self) -> Result<Statement> {
        self.expect_block_end()?;
        // Inside the body of a macro, `break` cannot end a loop around the macro.
        let loops = std::mem::take(&mut self.loops);
        let (body, _) = self.block(&["endgeneration"])?;
        self.loops = loops;
        Ok(Statement::Scope(body))
    }

    fn block_statement(&mut self) -> Result<Statement> {
        let name = self.expect_name()?;
        self.skip_name("scoped");
        self.skip_name("required");
        self.expect_block_end()?;
        let (body, _) = self.block(&["endblock"])?;
        self.skip_name(&name);
        Ok(Statement::Scope(body))
    }

    fn autoescape_statement(&mut self) -> Result<Statement> {
        if !matches!(self.expression()?.kind, ExprKind::Bool(false)) {
            return self.fault("'autoescape' is not supported: a chat is not HTML");
        }
        self.expect_block_end()?;
        let (body, _) = self.block(&["endautoescape"])?;
        Ok(Statement::Scope(body))
    }

    /// The target of an assignment; several names only if `with_tuple`.
    fn target(&mut self, with_tuple: bool) -> Result<Target> {
        self.nested(|this| this.target_inner(with_tuple))
    }

    fn target_inner(&mut self, with_tuple: bool) -> Result<Target> {
        let first = self.one_target()?;
        if !with_tuple || !self.is_operator(",") {
            return Ok(first);
        }
        let mut targets = vec![first];
        while self.skip_operator(",") {
            if self.is_name("in") || self.is_operator("=") || *self.token() == Lexeme::BlockEnd {
                break;
            }
            targets.push(self.one_target()?);
        }
        Ok(Target::Tuple(targets))
    }

    fn one_target(&mut self) -> Result<Target> {
        if self.skip_operator("(") {
            let target = self.target(true)?;
            self.expect_operator(")")?;
            return Ok(match target {
                Target::Name(_) | Target::Tuple(_) => target,
                Target::Attribute(..) => return self.fault("can't assign to 'nsref'"),
            });
        }
        let name = self.expect_name()?;
        if self.skip_operator(".") {
            return Ok(Target::Attribute(name, self.expect_name()?));
        }
        if matches!(
            &*name,
            "true" | "false" | "none" | "True" | "False" | "None"
        ) {
            return self.fault("can't assign to 'const'");
        }
        if &*name == "loop" {
            self.num_loop_names += 1;
        }
        Ok(Target::Name(name))
    }
}
