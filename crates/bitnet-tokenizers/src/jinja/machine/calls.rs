//! Calls of functions and macros.

use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

use super::{Machine, check_attribute};
use crate::jinja::arguments::{Args, int, text};
use crate::jinja::ast::{Arguments, Expr, Macro, Name};
use crate::jinja::clock;
use crate::jinja::fault::{Fault, Result};
use crate::jinja::scope::Scope;
use crate::jinja::text::Text;
use crate::jinja::value::{Closure, Function, Key, SeqKind, Value};

/// Maximum number of items of `range`, as in jinja2's sandbox.
const MAX_RANGE: i64 = 100_000;

impl Machine {
    pub(super) fn arguments(&mut self, arguments: &Arguments) -> Result<Args> {
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
    pub(super) fn closure(&self, node: &Arc<Macro>) -> Result<Value> {
        let bytes = self.scopes.iter().map(|scope| 32 + scope.len()).sum();
        self.budget.built(bytes)?;
        let closure = Closure::new(Arc::clone(node), self.scopes.clone())?;
        Ok(Value::Macro(Rc::new(closure)))
    }

    pub(super) fn call_block(
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
    let bounds = args.positional.iter().map(|value| int(value, "range"));
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
