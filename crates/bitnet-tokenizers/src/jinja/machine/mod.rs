//! Runs a template: statements, expressions, scopes and calls.

mod calls;
mod expressions;
mod statements;

use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashMap;
use indexmap::IndexMap;

use super::ast::{Block, Name, Target};
use super::fault::{Fault, Result};
use super::limits::{Budget, TemplateLimits};
use super::scope::Scope;
use super::text::{Text, TextBuilder};
use super::value::{Function, Key, Value};

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
