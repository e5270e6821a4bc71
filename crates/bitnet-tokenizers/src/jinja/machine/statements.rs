//! Statements and loops.

use std::rc::Rc;
use std::sync::Arc;

use super::{Flow, Machine};
use crate::jinja::arguments::Args;
use crate::jinja::ast::{Block, Expr, ExprKind, For, Statement, Target};
use crate::jinja::fault::{Fault, Result};
use crate::jinja::scope::Scope;
use crate::jinja::text::{Text, TextBuilder};
use crate::jinja::value::{Loop, Value};

impl Machine {
    pub(super) fn block(&mut self, block: &Block) -> Result<Flow> {
        self.budget.enter()?;
        for statement in block {
            self.budget.step(1)?;
            let flow = self.statement(statement)?;
            if flow != Flow::Next {
                self.budget.leave();
                return Ok(flow);
            }
        }
        self.budget.leave();
        Ok(Flow::Next)
    }

    fn statement(&mut self, statement: &Statement) -> Result<Flow> {
        match statement {
            Statement::Text(text) => self.write(&Text::own(Arc::clone(text)))?,
            Statement::Print(expr) => {
                let text = self.eval(expr)?.to_text(&self.budget)?;
                self.write(&text).map_err(|fault| fault.at(expr.line))?;
            }
            Statement::If {
                branches,
                otherwise,
            } => return self.if_statement(branches, otherwise),
            Statement::For(node) => self.for_statement(node)?,
            Statement::Set(target, expr) => {
                let value = self.eval(expr)?;
                self.assign(target, value)
                    .map_err(|fault| fault.at(expr.line))?;
            }
            Statement::SetBlock {
                target,
                filter,
                body,
            } => {
                let text = self.captured_scope(body)?;
                let value = self.filtered(filter.as_ref(), Value::Text(text))?;
                self.assign(target, value)?;
            }
            Statement::Macro(node) => {
                let closure = self.closure(node)?;
                self.set(Arc::clone(&node.name), closure);
            }
            Statement::CallBlock {
                callee,
                arguments,
                body,
            } => self.call_block(callee, arguments, body)?,
            Statement::FilterBlock { filter, body } => {
                let text = self.captured_scope(body)?;
                let text = self
                    .filtered(Some(filter), Value::Text(text))?
                    .to_text(&self.budget)?;
                self.write(&text)?;
            }
            Statement::With { assignments, body } => return self.with_statement(assignments, body),
            Statement::Scope(body) => return self.scoped(Scope::default(), body),
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    pub(super) fn write(&mut self, text: &Text) -> Result<()> {
        self.budget.read(text.len())?;
        if let Some(output) = self.outputs.last_mut() {
            self.budget.check_output(output.len() + text.len())?;
            output.push(text);
        }
        Ok(())
    }

    fn if_statement(&mut self, branches: &[(Expr, Block)], otherwise: &Block) -> Result<Flow> {
        for (condition, body) in branches {
            if self.eval(condition)?.is_true() {
                return self.block(body);
            }
        }
        self.block(otherwise)
    }

    fn with_statement(&mut self, assignments: &[(Target, Expr)], body: &Block) -> Result<Flow> {
        // Evaluate the values in the outer scope.
        let values = assignments.iter().map(|(_, expr)| self.eval(expr));
        let values = values.collect::<Result<Vec<_>>>()?;
        self.scopes.push(Rc::default());
        for ((target, _), value) in assignments.iter().zip(values) {
            self.assign(target, value)?;
        }
        let flow = self.block(body);
        self.scopes.pop();
        flow
    }

    fn scoped(&mut self, scope: Scope, body: &Block) -> Result<Flow> {
        self.scopes.push(Rc::new(scope));
        let flow = self.block(body);
        self.scopes.pop();
        flow
    }

    /// The output of `body`, which runs in its own scope.
    fn captured_scope(&mut self, body: &Block) -> Result<Text> {
        self.captured(|this| this.scoped(Scope::default(), body).map(|_| ()))
    }

    /// The output of `run`.
    pub(super) fn captured(&mut self, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<Text> {
        self.outputs.push(TextBuilder::default());
        run(self)?;
        let text = self.outputs.pop().unwrap_or_default().finish();
        self.budget.built(text.len())?;
        Ok(text)
    }

    fn filtered(&mut self, filter: Option<&Expr>, value: Value) -> Result<Value> {
        let Some(Expr {
            kind: ExprKind::Filter(inner, name, arguments),
            line,
        }) = filter
        else {
            return Ok(value);
        };
        let value = self.filtered(inner.as_deref(), value)?;
        let arguments = self.arguments(arguments)?;
        self.filter(name, value, arguments)
            .map_err(|fault| fault.at(*line))
    }

    fn for_statement(&mut self, node: &Arc<For>) -> Result<()> {
        let iterable = self.eval(&node.iterable)?;
        self.run_loop(node, &iterable, 0)
            .map_err(|fault| fault.at(node.iterable.line))
    }

    fn run_loop(&mut self, node: &Arc<For>, iterable: &Value, depth: usize) -> Result<()> {
        let mut items = iterable.items(&self.budget)?.into_owned();
        // A loop that does not use `loop` tests each item just before its iteration.
        let tests_late = node.condition.is_some() && !node.uses_loop;
        if !tests_late {
            items = self.passing(node, items)?;
        }
        let state = Rc::new(Loop::new(Arc::clone(node), items, depth)?);
        let mut completed = false;
        for (index, item) in state.items.iter().enumerate() {
            self.budget.step(1)?;
            if tests_late && !self.passes(node, item)? {
                continue;
            }
            state.index.set(index);
            self.scopes.push(Rc::default());
            if node.uses_loop || node.is_recursive {
                self.set("loop".into(), Value::Loop(Rc::clone(&state)));
            }
            self.assign(&node.target, item.clone())?;
            let flow = self.block(&node.body)?;
            self.scopes.pop();
            match flow {
                Flow::Break => break,
                Flow::Continue => {}
                Flow::Next => completed = true,
            }
        }
        // As in jinja2, a loop counts as empty if `break` or `continue` ended every iteration.
        if !completed && !node.otherwise.is_empty() {
            self.scoped(Scope::default(), &node.otherwise)?;
        }
        Ok(())
    }

    /// The items that meet the loop's condition.
    fn passing(&mut self, node: &For, items: Vec<Value>) -> Result<Vec<Value>> {
        if node.condition.is_none() {
            return Ok(items);
        }
        let mut passing = Vec::new();
        for item in items {
            if self.passes(node, &item)? {
                passing.push(item);
            }
        }
        Ok(passing)
    }

    fn passes(&mut self, node: &For, item: &Value) -> Result<bool> {
        let Some(condition) = &node.condition else {
            return Ok(true);
        };
        self.scopes.push(Rc::default());
        self.assign(&node.target, item.clone())?;
        let passes = self.eval(condition)?.is_true();
        self.scopes.pop();
        Ok(passes)
    }

    /// `loop(items)` in a recursive loop.
    pub(super) fn recurse(&mut self, state: &Loop, args: Args) -> Result<Value> {
        if !state.node.is_recursive {
            let message = "The loop must have the 'recursive' marker to be called recursively.";
            return Err(Fault::new(message));
        }
        let [items] = args.bind("loop", ["iterable"])?;
        let items = items.unwrap_or_else(|| Value::undefined("loop() misses its argument"));
        let text = self.captured(|this| this.run_loop(&state.node, &items, state.depth + 1))?;
        Ok(Value::Text(text))
    }
}
