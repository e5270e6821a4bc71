//! Runs a template: statements, expressions, scopes and calls.

use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashMap;
use indexmap::IndexMap;

use super::arguments::{Args, text};
use super::ast::{
    Arguments, Block, Comparison, Expr, ExprKind, For, Macro, Name, Statement, Target,
};
use super::fault::{Fault, Result};
use super::limits::{Budget, TemplateLimits};
use super::scope::Scope;
use super::text::{Text, TextBuilder};
use super::value::{Closure, Function, Key, Loop, SeqKind, Value};
use super::{clock, operators};

/// Maximum number of items of `range`, as in jinja2's sandbox.
const MAX_RANGE: i64 = 100_000;

/// The inputs of a rendering.
pub(crate) struct Inputs {
    /// The template's variables.
    pub(crate) variables: Vec<(&'static str, Value)>,
    /// More variables, with names from the client.
    pub(crate) more: Vec<(String, Value)>,
    /// The time for `strftime_now`, seconds since 1970.
    pub(crate) now: Option<i64>,
    /// The number of messages and the bytes of all inputs, for the limits.
    pub(crate) num_messages: usize,
    pub(crate) bytes: usize,
}

/// One rendering of a template.
pub(crate) struct Machine {
    pub(crate) budget: Budget,
    inputs: HashMap<String, Value>,
    now: Option<i64>,
    /// The variables of the template's outermost level. Macros see their values at the time of the
    /// call.
    root: Scope,
    /// The scopes inside it, innermost last.
    scopes: Vec<Rc<Scope>>,
    pub(crate) namespaces: Vec<IndexMap<Key, Value>>,
    /// The outputs: the rendered text, then the captures of open blocks.
    outputs: Vec<TextBuilder>,
}

/// The effect of a statement on the loop around it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

impl Machine {
    pub(crate) fn new(inputs: Inputs, limits: &TemplateLimits) -> Self {
        let budget = Budget::new(limits, inputs.num_messages, inputs.bytes);
        let variables = inputs
            .variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        Self {
            budget,
            inputs: variables.chain(inputs.more).collect(),
            now: inputs.now,
            root: Scope::default(),
            scopes: Vec::new(),
            namespaces: Vec::new(),
            outputs: vec![TextBuilder::default()],
        }
    }

    pub(crate) fn run(mut self, body: &Block) -> Result<Text> {
        self.block(body)?;
        Ok(self.outputs.remove(0).finish())
    }

    // ---- statements ----

    fn block(&mut self, block: &Block) -> Result<Flow> {
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

    fn write(&mut self, text: &Text) -> Result<()> {
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
    fn captured(&mut self, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<Text> {
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

    // ---- loops ----

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
    fn recurse(&mut self, state: &Loop, args: Args) -> Result<Value> {
        if !state.node.is_recursive {
            let message = "The loop must have the 'recursive' marker to be called recursively.";
            return Err(Fault::new(message));
        }
        let [items] = args.bind("loop", ["iterable"])?;
        let items = items.unwrap_or_else(|| Value::undefined("loop() misses its argument"));
        let text = self.captured(|this| this.run_loop(&state.node, &items, state.depth + 1))?;
        Ok(Value::Text(text))
    }

    // ---- variables ----

    /// Sets a variable of the innermost scope.
    fn set(&mut self, name: Name, value: Value) {
        match self.scopes.last_mut() {
            Some(scope) => Rc::make_mut(scope).set(name, value),
            None => self.root.set(name, value),
        }
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<()> {
        match target {
            Target::Name(name) => self.set(Arc::clone(name), value),
            Target::Tuple(targets) => {
                let items = value.items(&self.budget)?.into_owned();
                if items.len() != targets.len() {
                    let (given, expected) = (items.len(), targets.len());
                    return Err(Fault::new(format!(
                        "{given} values cannot be unpacked into {expected} names"
                    )));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item)?;
                }
            }
            Target::Attribute(object, attribute) => match self.variable(object) {
                Value::Namespace(index) => {
                    check_attribute(attribute)?;
                    let key = Key::text(Text::own(Arc::clone(attribute)));
                    self.namespaces[index].insert(key, value);
                }
                _ => {
                    return Err(Fault::new(
                        "cannot assign attribute on non-namespace object",
                    ));
                }
            },
        }
        Ok(())
    }

    fn variable(&self, name: &str) -> Value {
        let scoped = self.scopes.iter().rev().find_map(|scope| scope.get(name));
        let known = scoped
            .or_else(|| self.root.get(name))
            .or_else(|| self.inputs.get(name));
        if let Some(value) = known {
            return value.clone();
        }
        let function = match name {
            // The template itself, which has no readable attributes.
            "self" => return Value::Dict(Rc::default()),
            "range" => Function::Range,
            "dict" => Function::Dict,
            "namespace" => Function::Namespace,
            "cycler" => Function::Cycler,
            "joiner" => Function::Joiner,
            "raise_exception" => Function::RaiseException,
            "strftime_now" => Function::StrftimeNow,
            #[cfg(test)]
            "panic_for_test" => Function::PanicForTest,
            _ => return Value::undefined(format!("'{name}' is undefined")),
        };
        Value::Function(function)
    }

    // ---- expressions ----

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

    // ---- calls ----

    fn arguments(&mut self, arguments: &Arguments) -> Result<Args> {
        let positional = arguments.positional.iter().map(|expr| self.eval(expr));
        let mut positional = positional.collect::<Result<Vec<_>>>()?;
        let mut named = Vec::with_capacity(arguments.named.len());
        for (name, expr) in &arguments.named {
            named.push((Arc::clone(name), self.eval(expr)?));
        }
        if let Some(more) = &arguments.more_positional {
            let more = self.eval(more)?;
            positional.extend(more.items(&self.budget)?.iter().cloned());
        }
        if let Some(more) = &arguments.more_named {
            match self.eval(more)? {
                Value::Dict(dict) => {
                    for (Key(key), value) in &dict.entries {
                        let name = text(key, "the name of an argument")?;
                        named.push((name.as_str().into(), value.clone()));
                    }
                }
                other => {
                    let name = other.type_name();
                    return Err(Fault::new(format!(
                        "argument after ** must be a mapping, not {name}"
                    )));
                }
            }
        }
        Ok(Args { positional, named })
    }

    pub(crate) fn call(&mut self, callee: &Value, args: Args) -> Result<Value> {
        let value = match callee {
            Value::Function(function) => self.call_function(*function, args)?,
            Value::Method(method) => self.method(&method.0, &method.1, args)?,
            Value::Macro(closure) => Value::Text(self.call_macro(closure, args, None)?),
            Value::Loop(state) => self.recurse(state, args)?,
            Value::Joiner(joiner) => {
                args.none("joiner")?;
                match joiner.is_used.replace(true) {
                    true => Value::Text(joiner.separator.clone()),
                    false => Value::text(""),
                }
            }
            Value::Undefined(problem) => return Err(Fault::new(&**problem)),
            other => {
                return Err(Fault::new(format!(
                    "'{}' object is not callable",
                    other.type_name()
                )));
            }
        };
        self.budget.built(value.shallow_bytes())?;
        Ok(value)
    }

    fn call_function(&mut self, function: Function, args: Args) -> Result<Value> {
        match function {
            Function::Range => range(args),
            Function::Dict => self.make_dict(args).and_then(Value::dict),
            Function::Namespace => self.make_namespace(args),
            Function::Cycler | Function::Joiner => self.make_cycle(function, args),
            Function::RaiseException => {
                let [message] = args.bind("raise_exception", ["message"])?;
                let message = message.unwrap_or_else(|| Value::text("raise_exception()"));
                Err(Fault::new(message.to_text(&self.budget)?.as_str()))
            }
            Function::StrftimeNow => {
                let [format] = args.bind("strftime_now", ["format"])?;
                let format = format.unwrap_or(Value::None);
                let format = text(&format, "the format of strftime_now")?;
                self.budget.check(format.len() * 32)?;
                Ok(Value::Text(
                    format.derive(clock::strftime(self.now, format.as_str())?),
                ))
            }
            #[cfg(test)]
            Function::PanicForTest => panic!("a fault of the test's own making"),
        }
    }

    /// The entries of `dict(map, name=value)` and `dict(pairs)`.
    pub(crate) fn make_dict(&mut self, args: Args) -> Result<IndexMap<Key, Value>> {
        let mut entries = match &args.positional[..] {
            [] => IndexMap::new(),
            [Value::Dict(dict)] => dict.entries.clone(),
            [pairs] => {
                let mut entries = IndexMap::new();
                for pair in pairs.items(&self.budget)?.iter() {
                    let pair = pair.items(&self.budget)?;
                    let [key, value] = &pair[..] else {
                        return Err(Fault::new(format!(
                            "dict() takes pairs, got {} values",
                            pair.len()
                        )));
                    };
                    entries.insert(Key::new(key)?, value.clone());
                }
                entries
            }
            more => {
                let message = format!("dict() takes at most 1 argument, {} were given", more.len());
                return Err(Fault::new(message));
            }
        };
        for (name, value) in args.named {
            entries.insert(Key::text(Text::own(name)), value);
        }
        Ok(entries)
    }

    fn make_namespace(&mut self, args: Args) -> Result<Value> {
        let entries = self.make_dict(args)?;
        for Key(key) in entries.keys() {
            if let Value::Text(name) = key {
                check_attribute(name.as_str())?;
            }
        }
        self.budget.built(64 + entries.len() * size_of::<Value>())?;
        self.namespaces.push(entries);
        Ok(Value::Namespace(self.namespaces.len() - 1))
    }

    /// The macro of `node` with the variables around it.
    fn closure(&self, node: &Arc<Macro>) -> Result<Value> {
        let bytes = self.scopes.iter().map(|scope| 32 + scope.len()).sum();
        self.budget.built(bytes)?;
        let closure = Closure::new(Arc::clone(node), self.scopes.clone())?;
        Ok(Value::Macro(Rc::new(closure)))
    }

    fn call_block(
        &mut self,
        callee: &Expr,
        arguments: &Arguments,
        body: &Arc<Macro>,
    ) -> Result<()> {
        let callee_value = self.eval(callee)?;
        let args = self.arguments(arguments)?;
        let caller = self.closure(body)?;
        let text = match &callee_value {
            Value::Macro(closure) => self.call_macro(closure, args, Some(caller)),
            Value::Undefined(problem) => Err(Fault::new(&**problem)),
            other => {
                let name = other.type_name();
                Err(Fault::new(format!(
                    "a {name} cannot be called with a block"
                )))
            }
        };
        self.write(&text.map_err(|fault| fault.at(callee.line))?)
    }

    fn call_macro(
        &mut self,
        closure: &Rc<Closure>,
        args: Args,
        caller: Option<Value>,
    ) -> Result<Text> {
        let node = &closure.node;
        self.budget.enter()?;
        let outer = std::mem::replace(&mut self.scopes, closure.scopes.clone());
        // A macro inside a scope can call itself, so its name is in its own scope.
        let mut itself = Scope::default();
        itself.set(Arc::clone(&node.name), Value::Macro(Rc::clone(closure)));
        if !self.scopes.is_empty() {
            self.scopes.push(Rc::new(itself));
        }
        self.scopes.push(Rc::default());
        let text = self.captured(|this| {
            this.bind_parameters(node, args, caller)?;
            this.block(&node.body).map(|_| ())
        })?;
        self.scopes = outer;
        self.budget.leave();
        Ok(text)
    }

    /// Sets the parameters of a macro in the innermost scope.
    fn bind_parameters(&mut self, node: &Macro, args: Args, caller: Option<Value>) -> Result<()> {
        let mut named: IndexMap<Name, Value> = args.named.into_iter().collect();
        let mut positional = args.positional.into_iter();
        let mut missing = Vec::new();
        for (parameter, default) in &node.parameters {
            match positional.next().or_else(|| named.shift_remove(parameter)) {
                Some(value) => self.set(Arc::clone(parameter), value),
                None => missing.push((parameter, default)),
            }
        }
        for (parameter, default) in missing {
            let value = match default {
                Some(default) => self.eval(default)?,
                None => Value::undefined(format!("parameter '{parameter}' was not provided")),
            };
            self.set(Arc::clone(parameter), value);
        }
        self.bind_rest(node, positional.collect(), named, caller)
    }

    /// `varargs`, `kwargs` and `caller`, for macros that read them.
    fn bind_rest(
        &mut self,
        node: &Macro,
        positional: Vec<Value>,
        mut named: IndexMap<Name, Value>,
        caller: Option<Value>,
    ) -> Result<()> {
        let name = &node.name;
        let caller = caller.or_else(|| named.shift_remove("caller"));
        match caller {
            Some(caller) if node.takes_caller => self.set("caller".into(), caller),
            Some(_) => {
                let message =
                    format!("macro '{name}' is called with a block, but reads no 'caller'");
                return Err(Fault::new(message));
            }
            None if node.takes_caller
                && !node.parameters.iter().any(|(name, _)| &**name == "caller") =>
            {
                self.set("caller".into(), Value::undefined("No caller defined"));
            }
            None => {}
        }
        if node.takes_kwargs {
            let entries = named
                .drain(..)
                .map(|(name, value)| (Key::text(Text::own(name)), value));
            let kwargs = Value::dict(entries.collect())?;
            self.set("kwargs".into(), kwargs);
        }
        if let Some(name) = named.keys().next() {
            let message = format!("macro '{}' takes no keyword argument '{name}'", node.name);
            return Err(Fault::new(message));
        }
        if node.takes_varargs {
            let varargs = Value::tuple(positional)?;
            self.set("varargs".into(), varargs);
        } else if !positional.is_empty() {
            let most = node.parameters.len();
            let message = format!("macro '{name}' takes not more than {most} argument(s)");
            return Err(Fault::new(message));
        }
        Ok(())
    }
}

fn range(args: Args) -> Result<Value> {
    let bounds = args
        .positional
        .iter()
        .map(|value| super::arguments::int(value, "range"));
    let bounds = bounds.collect::<Result<Vec<_>>>()?;
    let (start, stop, step) = match bounds[..] {
        _ if !args.named.is_empty() => {
            return Err(Fault::new("range() takes no keyword arguments"));
        }
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] => (start, stop, step),
        _ => return Err(Fault::new("range() takes one to three arguments")),
    };
    let span = match step {
        0 => return Err(Fault::new("range() arg 3 must not be zero")),
        1.. => i128::from(stop) - i128::from(start),
        _ => i128::from(start) - i128::from(stop),
    };
    let size = i128::from(step.unsigned_abs());
    let len = (span.max(0) + size - 1) / size;
    if len > i128::from(MAX_RANGE) {
        let message = format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
        );
        return Err(Fault::new(message));
    }
    let items = (0..len).map(|index| Value::Int(i128::from(start) + index * i128::from(step)));
    Value::seq(SeqKind::Range { start, stop, step }, items.collect())
}

/// Refuses calls that transformers refuse.
fn check_attribute(name: &str) -> Result<()> {
    match name.starts_with('_') {
        true => Err(Fault::new(format!(
            "a namespace cannot have the underscore-prefixed attribute '{name}'"
        ))),
        false => Ok(()),
    }
}
