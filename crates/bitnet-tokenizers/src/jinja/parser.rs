//! Jinja's grammar, as jinja2 3.1 parses it with the extensions that transformers adds: `break`,
//! `continue` and `generation`.

use std::sync::Arc;

use super::ast::{
    Arguments, Binary, Block, Comparison, Expr, ExprKind, For, Macro, Name, Statement, Target,
};
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

    // ---- statements ----

    /// Parses statements up to a tag in `ends`, which it consumes and returns, or to the end of the
    /// template.
    fn block(&mut self, ends: &[&str]) -> Result<(Block, Name)> {
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
        if self.expression()?.kind.as_false().is_none() {
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

    // ---- expressions, from the loosest binding to the tightest ----

    fn expression(&mut self) -> Result<Expr> {
        self.nested(Self::condition_expression)
    }

    fn condition_expression(&mut self) -> Result<Expr> {
        let mut expression = self.or_expression()?;
        while self.is_name("if") {
            let line = self.line();
            self.advance();
            let condition = Box::new(self.or_expression()?);
            let otherwise = match self.skip_name("else") {
                true => Some(Box::new(self.nested(Self::condition_expression)?)),
                false => None,
            };
            expression = Expr {
                kind: ExprKind::Condition {
                    condition,
                    then: Box::new(expression),
                    otherwise,
                },
                line,
            };
        }
        Ok(expression)
    }

    /// Operands with operators between, joined from the left. A chain counts as nesting, because
    /// evaluation recurses into it.
    fn chain(
        &mut self,
        operand: impl Fn(&mut Self) -> Result<Expr>,
        operator: impl Fn(&mut Self) -> Option<Join>,
    ) -> Result<Expr> {
        let mut left = operand(self)?;
        let depth = self.depth;
        loop {
            let line = self.line();
            let Some(join) = operator(self) else { break };
            self.deepen()?;
            let right = operand(self)?;
            let kind = join(Box::new(left), Box::new(right));
            left = Expr { kind, line };
        }
        self.depth = depth;
        Ok(left)
    }

    fn deepen(&mut self) -> Result<()> {
        self.depth += 1;
        // Evaluation needs only one level for each link of a chain, so chains may be longer than
        // the limit for brackets.
        match self.depth > 2 * self.depth_max {
            true => self.fault(format!(
                "the template has an expression of more than {} links",
                2 * self.depth_max
            )),
            false => Ok(()),
        }
    }

    fn or_expression(&mut self) -> Result<Expr> {
        self.chain(Self::and_expression, |this| {
            this.skip_name("or").then_some(ExprKind::Or as Join)
        })
    }

    fn and_expression(&mut self) -> Result<Expr> {
        self.chain(Self::not_expression, |this| {
            this.skip_name("and").then_some(ExprKind::And as Join)
        })
    }

    fn not_expression(&mut self) -> Result<Expr> {
        let line = self.line();
        if self.skip_name("not") {
            let inner = self.nested(Self::not_expression)?;
            let kind = ExprKind::Not(Box::new(inner));
            return Ok(Expr { kind, line });
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(operator) = self.comparison_operator() {
            rest.push((operator, self.sum()?));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        let kind = ExprKind::Compare(Box::new(first), rest);
        Ok(Expr { kind, line })
    }

    fn comparison_operator(&mut self) -> Option<Comparison> {
        let operator = match self.token() {
            Lexeme::Operator("==") => Comparison::Equal,
            Lexeme::Operator("!=") => Comparison::NotEqual,
            Lexeme::Operator("<") => Comparison::Less,
            Lexeme::Operator("<=") => Comparison::LessEqual,
            Lexeme::Operator(">") => Comparison::Greater,
            Lexeme::Operator(">=") => Comparison::GreaterEqual,
            Lexeme::Name(name) if &**name == "in" => Comparison::In,
            Lexeme::Name(name) if &**name == "not" => {
                matches!(self.look(), Lexeme::Name(name) if &**name == "in").then_some(())?;
                self.advance();
                Comparison::NotIn
            }
            _ => return None,
        };
        self.advance();
        Some(operator)
    }

    fn sum(&mut self) -> Result<Expr> {
        self.chain(Self::concat, |this| {
            this.binary(&[("+", Binary::Add), ("-", Binary::Sub)])
        })
    }

    fn concat(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        let kind = ExprKind::Concat(parts);
        Ok(Expr { kind, line })
    }

    fn product(&mut self) -> Result<Expr> {
        self.chain(Self::power, |this| {
            this.binary(&[
                ("*", Binary::Mul),
                ("/", Binary::Div),
                ("//", Binary::FloorDiv),
                ("%", Binary::Mod),
            ])
        })
    }

    fn power(&mut self) -> Result<Expr> {
        self.chain(
            |this| this.unary(true),
            |this| this.binary(&[("**", Binary::Pow)]),
        )
    }

    fn binary(&mut self, operators: &[(&str, Binary)]) -> Option<Join> {
        let (_, operator) = operators.iter().find(|(text, _)| self.is_operator(text))?;
        self.advance();
        Some(match operator {
            Binary::Add => |a, b| ExprKind::Binary(Binary::Add, a, b),
            Binary::Sub => |a, b| ExprKind::Binary(Binary::Sub, a, b),
            Binary::Mul => |a, b| ExprKind::Binary(Binary::Mul, a, b),
            Binary::Div => |a, b| ExprKind::Binary(Binary::Div, a, b),
            Binary::FloorDiv => |a, b| ExprKind::Binary(Binary::FloorDiv, a, b),
            Binary::Mod => |a, b| ExprKind::Binary(Binary::Mod, a, b),
            Binary::Pow => |a, b| ExprKind::Binary(Binary::Pow, a, b),
        })
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        let line = self.line();
        let node = if self.skip_operator("-") {
            let inner = self.nested(|this| this.unary(false))?;
            Expr {
                kind: ExprKind::Negative(Box::new(inner)),
                line,
            }
        } else if self.skip_operator("+") {
            let inner = self.nested(|this| this.unary(false))?;
            Expr {
                kind: ExprKind::Positive(Box::new(inner)),
                line,
            }
        } else {
            self.primary()?
        };
        let depth = self.depth;
        let node = self.postfix(node)?;
        let node = if with_filters {
            self.filters_and_tests(node)?
        } else {
            node
        };
        self.depth = depth;
        Ok(node)
    }

    fn primary(&mut self) -> Result<Expr> {
        let line = self.line();
        let kind = match self.token().clone() {
            Lexeme::Name(name) => {
                self.advance();
                self.name(name)
            }
            Lexeme::Text(text) => {
                self.advance();
                let mut joined = text;
                while let Lexeme::Text(more) = self.token().clone() {
                    self.advance();
                    joined = format!("{joined}{more}").into();
                }
                ExprKind::Text(joined)
            }
            Lexeme::Int(number) => {
                self.advance();
                ExprKind::Int(number)
            }
            Lexeme::Float(number) => {
                self.advance();
                ExprKind::Float(number)
            }
            Lexeme::Operator("(") => {
                self.advance();
                let inner = self.nested(|this| this.tuple(true))?;
                self.expect_operator(")")?;
                return Ok(inner);
            }
            Lexeme::Operator("[") => {
                self.advance();
                let items = self.nested(|this| this.items("]", Self::expression))?;
                ExprKind::List(items)
            }
            Lexeme::Operator("{") => {
                self.advance();
                let entries = self.nested(|this| this.items("}", Self::dict_entry))?;
                ExprKind::Dict(entries)
            }
            token => return self.fault(format!("unexpected {}", describe(&token))),
        };
        Ok(Expr { kind, line })
    }

    fn name(&mut self, name: Name) -> ExprKind {
        match &*name {
            "true" | "True" => ExprKind::Bool(true),
            "false" | "False" => ExprKind::Bool(false),
            "none" | "None" => ExprKind::None,
            _ => {
                match &*name {
                    "loop" => self.num_loop_names += 1,
                    "varargs" => self.implicit.varargs = true,
                    "kwargs" => self.implicit.kwargs = true,
                    "caller" => self.implicit.caller = true,
                    _ => {}
                }
                ExprKind::Name(name)
            }
        }
    }

    /// Items separated by commas, up to `end`; a trailing comma is allowed.
    fn items<T>(&mut self, end: &str, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_operator(end) {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.is_operator(end) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        self.expect_operator(end)?;
        Ok(items)
    }

    fn dict_entry(&mut self) -> Result<(Expr, Expr)> {
        let key = self.expression()?;
        self.expect_operator(":")?;
        Ok((key, self.expression()?))
    }

    /// One expression, or several separated by commas, which form a tuple. It may be empty inside
    /// parentheses.
    fn tuple(&mut self, may_be_empty: bool) -> Result<Expr> {
        self.tuple_of(Self::expression, may_be_empty)
    }

    fn tuple_of(
        &mut self,
        item: impl Fn(&mut Self) -> Result<Expr>,
        may_be_empty: bool,
    ) -> Result<Expr> {
        let line = self.line();
        let (mut items, mut is_tuple) = (Vec::new(), false);
        loop {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if matches!(self.token(), Lexeme::VariableEnd | Lexeme::BlockEnd)
                || self.is_operator(")")
            {
                break;
            }
            items.push(item(self)?);
            if !self.is_operator(",") {
                break;
            }
            is_tuple = true;
        }
        match items.len() {
            1 if !is_tuple => Ok(items.remove(0)),
            0 if !may_be_empty => self.unexpected("an expression"),
            _ => Ok(Expr {
                kind: ExprKind::Tuple(items),
                line,
            }),
        }
    }

    fn postfix(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            let kind = if self.is_operator(".") || self.is_operator("[") {
                self.subscript(node)?
            } else if self.is_operator("(") {
                ExprKind::Call(Box::new(node), self.arguments()?)
            } else {
                return Ok(node);
            };
            self.deepen()?;
            node = Expr { kind, line };
        }
    }

    fn subscript(&mut self, object: Expr) -> Result<ExprKind> {
        let object = Box::new(object);
        if self.skip_operator(".") {
            let line = self.line();
            return match self.advance() {
                Lexeme::Name(name) => Ok(ExprKind::Attribute(object, name)),
                Lexeme::Int(index) => {
                    let kind = ExprKind::Int(index);
                    Ok(ExprKind::Item(object, Box::new(Expr { kind, line })))
                }
                _ => self.fault("expected name or number"),
            };
        }
        self.expect_operator("[")?;
        self.nested(|this| this.index(object))
    }

    fn index(&mut self, object: Box<Expr>) -> Result<ExprKind> {
        let line = self.line();
        let mut indexes = self.items("]", |this| {
            let start = match this.is_operator(":") {
                true => None,
                false => Some(this.expression()?),
            };
            if !this.skip_operator(":") {
                return Ok((start, None));
            }
            let part = |this: &mut Self| {
                let ends = [":", "]", ","].iter().any(|end| this.is_operator(end));
                if ends {
                    Ok(None)
                } else {
                    this.expression().map(Some)
                }
            };
            let stop = part(this)?;
            let step = if this.skip_operator(":") {
                part(this)?
            } else {
                None
            };
            Ok((start, Some((stop, step))))
        })?;
        if indexes.len() != 1 {
            let plain = indexes.into_iter().map(|index| match index {
                (Some(item), None) => Ok(item),
                _ => self.fault("a slice among several indexes"),
            });
            let kind = ExprKind::Tuple(plain.collect::<Result<_>>()?);
            return Ok(ExprKind::Item(object, Box::new(Expr { kind, line })));
        }
        Ok(match indexes.remove(0) {
            (Some(item), None) => ExprKind::Item(object, Box::new(item)),
            (start, bounds) => {
                let (stop, step) = bounds.unwrap_or_default();
                ExprKind::Slice(object, [start, stop, step].map(|part| part.map(Box::new)))
            }
        })
    }

    fn arguments(&mut self) -> Result<Arguments> {
        self.nested(Self::arguments_inner)
    }

    fn arguments_inner(&mut self) -> Result<Arguments> {
        let mut arguments = Arguments::default();
        let mut is_first = true;
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            if !is_first {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            is_first = false;
            self.argument(&mut arguments)?;
        }
        self.expect_operator(")")?;
        Ok(arguments)
    }

    fn argument(&mut self, arguments: &mut Arguments) -> Result<()> {
        let is_open = arguments.more_named.is_none();
        let is_ordered = is_open && arguments.more_positional.is_none();
        if is_ordered && self.skip_operator("*") {
            arguments.more_positional = Some(Box::new(self.expression()?));
        } else if is_open && self.skip_operator("**") {
            arguments.more_named = Some(Box::new(self.expression()?));
        } else if is_open
            && matches!(self.token(), Lexeme::Name(_))
            && *self.look() == Lexeme::Operator("=")
        {
            let name = self.expect_name()?;
            self.advance();
            arguments.named.push((name, self.expression()?));
        } else if is_ordered && arguments.named.is_empty() {
            arguments.positional.push(self.expression()?);
        } else {
            return self.fault("invalid syntax for function call expression");
        }
        Ok(())
    }

    fn filters_and_tests(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            node = if self.is_operator("|") {
                self.filters(Some(node))?
            } else if self.is_name("is") {
                self.test(node)?
            } else if self.is_operator("(") {
                let kind = ExprKind::Call(Box::new(node), self.arguments()?);
                Expr { kind, line }
            } else {
                return Ok(node);
            };
            self.deepen()?;
        }
    }

    /// `|name(arguments)`, any number of times.
    fn filters(&mut self, mut node: Option<Expr>) -> Result<Expr> {
        while self.skip_operator("|") {
            node = Some(self.one_filter(node)?);
        }
        match node {
            Some(node) => Ok(node),
            None => self.unexpected("a filter"),
        }
    }

    fn one_filter(&mut self, node: Option<Expr>) -> Result<Expr> {
        let line = self.line();
        self.deepen()?;
        let name = self.dotted_name()?;
        let arguments = match self.is_operator("(") {
            true => self.arguments()?,
            false => Arguments::default(),
        };
        let kind = ExprKind::Filter(node.map(Box::new), name, arguments);
        Ok(Expr { kind, line })
    }

    fn dotted_name(&mut self) -> Result<Name> {
        let mut name = self.expect_name()?;
        while self.skip_operator(".") {
            name = format!("{name}.{}", self.expect_name()?).into();
        }
        Ok(name)
    }

    fn test(&mut self, node: Expr) -> Result<Expr> {
        let line = self.line();
        self.advance();
        let is_negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let arguments = if self.is_operator("(") {
            self.arguments()?
        } else if self.begins_test_argument() {
            if self.is_name("is") {
                return self.fault("You cannot chain multiple tests with is");
            }
            let argument = self.primary()?;
            Arguments {
                positional: vec![self.postfix(argument)?],
                ..Arguments::default()
            }
        } else {
            Arguments::default()
        };
        let kind = ExprKind::Test(Box::new(node), name, arguments);
        let test = Expr { kind, line };
        Ok(match is_negated {
            true => Expr {
                kind: ExprKind::Not(Box::new(test)),
                line,
            },
            false => test,
        })
    }

    fn begins_test_argument(&self) -> bool {
        match self.token() {
            Lexeme::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Lexeme::Text(_) | Lexeme::Int(_) | Lexeme::Float(_) => true,
            Lexeme::Operator(operator) => matches!(*operator, "[" | "{"),
            _ => false,
        }
    }
}

/// How two operands become one expression.
type Join = fn(Box<Expr>, Box<Expr>) -> ExprKind;

impl ExprKind {
    fn as_false(&self) -> Option<()> {
        matches!(self, Self::Bool(false)).then_some(())
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
