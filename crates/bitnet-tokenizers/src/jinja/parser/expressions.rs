//! Expressions, from the loosest binding to the tightest.

use super::{Parser, describe};
use crate::jinja::ast::{Arguments, Binary, Comparison, Expr, ExprKind, Name};
use crate::jinja::fault::Result;
use crate::jinja::lexer::Lexeme;

/// How two operands become one expression.
type Join = fn(Box<Expr>, Box<Expr>) -> ExprKind;

impl Parser {
    pub(super) fn expression(&mut self) -> Result<Expr> {
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

    pub(super) fn or_expression(&mut self) -> Result<Expr> {
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
    pub(super) fn tuple(&mut self, may_be_empty: bool) -> Result<Expr> {
        self.tuple_of(Self::expression, may_be_empty)
    }

    pub(super) fn tuple_of(
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
    pub(super) fn filters(&mut self, mut node: Option<Expr>) -> Result<Expr> {
        while self.skip_operator("|") {
            node = Some(self.one_filter(node)?);
        }
        match node {
            Some(node) => Ok(node),
            None => self.unexpected("a filter"),
        }
    }

    pub(super) fn one_filter(&mut self, node: Option<Expr>) -> Result<Expr> {
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
