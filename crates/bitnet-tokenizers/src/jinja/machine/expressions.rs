//! Expressions.

use std::sync::Arc;

use indexmap::IndexMap;

use super::Machine;
use crate::jinja::ast::{Comparison, Expr, ExprKind};
use crate::jinja::fault::{Fault, Result};
use crate::jinja::operators;
use crate::jinja::text::{Text, TextBuilder};
use crate::jinja::value::{Key, SeqKind, Value};

impl Machine {
    pub(crate) fn eval(&mut self, expr: &Expr) -> Result<Value> {
        self.budget.enter().map_err(|fault| fault.at(expr.line))?;
        self.budget.step(1)?;
        let value = self
            .eval_kind(&expr.kind)
            .map_err(|fault| fault.at(expr.line))?;
        self.budget.leave();
        Ok(value)
    }

    fn eval_kind(&mut self, kind: &ExprKind) -> Result<Value> {
        match kind {
            ExprKind::None => Ok(Value::None),
            ExprKind::Bool(flag) => Ok(Value::Bool(*flag)),
            ExprKind::Int(number) => Ok(Value::Int(*number)),
            ExprKind::Float(number) => Ok(Value::Float(*number)),
            ExprKind::Text(text) => Ok(Value::text(Text::own(Arc::clone(text)))),
            ExprKind::Name(name) => Ok(self.variable(name)),
            ExprKind::List(items) => self.sequence(SeqKind::List, items),
            ExprKind::Tuple(items) => self.sequence(SeqKind::Tuple, items),
            ExprKind::Dict(entries) => self.dict(entries),
            ExprKind::Attribute(object, name) => {
                let object = self.eval(object)?;
                self.attribute(&object, name)
            }
            ExprKind::Item(object, index) => {
                let (object, index) = (self.eval(object)?, self.eval(index)?);
                self.item(&object, &index)
            }
            ExprKind::Slice(object, bounds) => self.slice(object, bounds),
            ExprKind::Call(callee, arguments) => {
                let callee = self.eval(callee)?;
                let args = self.arguments(arguments)?;
                self.call(&callee, args)
            }
            ExprKind::Filter(operand, name, arguments) => {
                let value = match operand {
                    Some(operand) => self.eval(operand)?,
                    None => return Err(Fault::new("a filter without a value")),
                };
                let args = self.arguments(arguments)?;
                self.filter(name, value, args)
            }
            ExprKind::Test(operand, name, arguments) => {
                let value = self.eval(operand)?;
                let args = self.arguments(arguments)?;
                self.test(name, &value, args).map(Value::Bool)
            }
            ExprKind::Not(operand) => Ok(Value::Bool(!self.eval(operand)?.is_true())),
            ExprKind::Negative(operand) => operators::negative(&self.eval(operand)?),
            ExprKind::Positive(operand) => operators::positive(&self.eval(operand)?),
            ExprKind::And(a, b) => self.either(a, b, false),
            ExprKind::Or(a, b) => self.either(a, b, true),
            ExprKind::Binary(operator, a, b) => {
                let (a, b) = (self.eval(a)?, self.eval(b)?);
                let value = operators::binary(*operator, &a, &b, &self.budget)?;
                self.budget.built(value.shallow_bytes())?;
                Ok(value)
            }
            ExprKind::Concat(parts) => self.concat(parts),
            ExprKind::Compare(first, rest) => self.comparisons(first, rest),
            ExprKind::Condition {
                condition,
                then,
                otherwise,
            } => self.condition(condition, then, otherwise.as_deref()),
        }
    }

    /// `a or b` if `stops_at`, else `a and b`: the operand that decides.
    fn either(&mut self, a: &Expr, b: &Expr, stops_at: bool) -> Result<Value> {
        let a = self.eval(a)?;
        if a.is_true() == stops_at {
            Ok(a)
        } else {
            self.eval(b)
        }
    }

    fn condition(
        &mut self,
        condition: &Expr,
        then: &Expr,
        otherwise: Option<&Expr>,
    ) -> Result<Value> {
        if self.eval(condition)?.is_true() {
            return self.eval(then);
        }
        match otherwise {
            Some(otherwise) => self.eval(otherwise),
            None => Ok(Value::undefined(
                "the inline if-expression evaluated to false and no else section was defined",
            )),
        }
    }

    fn sequence(&mut self, kind: SeqKind, items: &[Expr]) -> Result<Value> {
        let items = items
            .iter()
            .map(|item| self.eval(item))
            .collect::<Result<Vec<_>>>()?;
        let value = Value::seq(kind, items)?;
        self.budget.built(value.shallow_bytes())?;
        Ok(value)
    }

    fn dict(&mut self, entries: &[(Expr, Expr)]) -> Result<Value> {
        let mut dict = IndexMap::with_capacity(entries.len());
        for (key, value) in entries {
            let key = Key::new(&self.eval(key)?)?;
            let value = self.eval(value)?;
            dict.insert(key, value);
        }
        let value = Value::dict(dict)?;
        self.budget.built(value.shallow_bytes())?;
        Ok(value)
    }

    fn slice(&mut self, object: &Expr, bounds: &[Option<Box<Expr>>; 3]) -> Result<Value> {
        let object = self.eval(object)?;
        let mut evaluated = [const { Value::None }; 3];
        for (value, bound) in evaluated.iter_mut().zip(bounds) {
            if let Some(bound) = bound {
                *value = self.eval(bound)?;
            }
        }
        let value = operators::slice(&object, &evaluated)?;
        self.budget.built(value.shallow_bytes())?;
        Ok(value)
    }

    fn concat(&mut self, parts: &[Expr]) -> Result<Value> {
        let mut out = TextBuilder::default();
        for part in parts {
            let text = self.eval(part)?.to_text(&self.budget)?;
            self.budget.check(out.len() + text.len())?;
            out.push(&text);
        }
        self.budget.built(out.len())?;
        Ok(Value::Text(out.finish()))
    }

    fn comparisons(&mut self, first: &Expr, rest: &[(Comparison, Expr)]) -> Result<Value> {
        let mut left = self.eval(first)?;
        for (comparison, right) in rest {
            let right = self.eval(right)?;
            if !operators::holds(*comparison, &left, &right, &self.budget)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }
}
