//! `object.name` and `object[index]`.
//!
//! As in jinja2, `.` looks for an attribute first, then for an item; `[]` looks for an item first.
//! A name that is neither is undefined. Names that begin with `_`, and methods that would change a
//! list or a map, are unsafe and so undefined.

use std::rc::Rc;
use std::sync::Arc;

use super::arguments::{Args, required};
use super::ast::Name;
use super::fault::{Fault, Result};
use super::machine::Machine;
use super::methods;
use super::text::Text;
use super::value::{Cycler, Function, Joiner, Key, Loop, SeqKind, Value};

impl Machine {
    /// `object.name`
    pub(crate) fn attribute(&mut self, object: &Value, name: &Name) -> Result<Value> {
        if let Value::Undefined(problem) = object {
            // Attributes that every Python object has are unsafe, so they are undefined.
            return match name.starts_with("__") {
                true => Ok(missing(object, name)),
                false => Err(Fault::new(&**problem)),
            };
        }
        if let Some(value) = self.own_attribute(object, name)? {
            return Ok(value);
        }
        let item = match object {
            Value::Dict(dict) => dict.entries.get(&**name).cloned(),
            _ => None,
        };
        Ok(item.unwrap_or_else(|| missing(object, name)))
    }

    /// `object[index]`
    pub(crate) fn item(&mut self, object: &Value, index: &Value) -> Result<Value> {
        let item = match (object, index) {
            (Value::Undefined(problem), _) => return Err(Fault::new(&**problem)),
            (Value::Dict(dict), key) => match Key::new(key) {
                Ok(key) => dict.entries.get(&key).cloned(),
                Err(_) => None,
            },
            (Value::Seq(seq), Value::Int(_) | Value::Bool(_)) if seq.kind.has_indexes() => {
                place(index, seq.items.len()).map(|place| seq.items[place].clone())
            }
            (Value::Text(text), Value::Int(_) | Value::Bool(_)) => {
                self.budget.read(text.len())?;
                place(index, text.num_chars()).map(|place| Value::Text(character(text, place)))
            }
            _ => None,
        };
        if let Some(item) = item {
            return Ok(item);
        }
        match index {
            Value::Text(name) => {
                let name = Arc::from(name.as_str());
                let attribute = self.own_attribute(object, &name)?;
                Ok(attribute.unwrap_or_else(|| missing(object, &name)))
            }
            other => Ok(Value::undefined(format!(
                "{} object has no element {}",
                object.type_name(),
                other.to_repr(&self.budget)?.as_str()
            ))),
        }
    }

    /// The result of Python's `getattr`.
    fn own_attribute(&self, object: &Value, name: &Name) -> Result<Option<Value>> {
        if methods::has(object, name) {
            let method = (object.clone(), Arc::clone(name));
            return Ok(Some(Value::Method(Rc::new(method))));
        }
        Ok(match object {
            Value::Namespace(index) => self.namespaces[*index].get(&**name).cloned(),
            Value::Loop(state) => self.loop_attribute(state, name)?,
            Value::Seq(seq) if seq.kind == SeqKind::Group => match &**name {
                "grouper" => seq.items.first().cloned(),
                "list" => seq.items.get(1).cloned(),
                _ => None,
            },
            Value::Macro(closure) => match &**name {
                "name" => Some(Value::text(Text::own(Arc::clone(&closure.node.name)))),
                "arguments" => {
                    let names = closure.node.parameters.iter();
                    let names = names.map(|(name, _)| Value::text(Text::own(Arc::clone(name))));
                    Some(Value::tuple(names.collect())?)
                }
                "catch_kwargs" => Some(Value::Bool(closure.node.takes_kwargs)),
                "catch_varargs" => Some(Value::Bool(closure.node.takes_varargs)),
                "caller" => Some(Value::Bool(closure.node.takes_caller)),
                _ => None,
            },
            Value::Cycler(cycler) if &**name == "current" => {
                cycler.items.get(cycler.index.get()).cloned()
            }
            _ => None,
        })
    }

    fn loop_attribute(&self, state: &Loop, name: &str) -> Result<Option<Value>> {
        let (index, length) = (state.index.get(), state.items.len());
        let number = |number: usize| Value::Int(number as i128);
        Ok(Some(match name {
            "index" => number(index + 1),
            "index0" => number(index),
            "revindex" => number(length - index),
            "revindex0" => number(length - index - 1),
            "first" => Value::Bool(index == 0),
            "last" => Value::Bool(index + 1 == length),
            "length" => number(length),
            "depth" => number(state.depth + 1),
            "depth0" => number(state.depth),
            "previtem" => match index.checked_sub(1) {
                Some(index) => state.items[index].clone(),
                None => Value::undefined("there is no previous item"),
            },
            "nextitem" => match state.items.get(index + 1) {
                Some(item) => item.clone(),
                None => Value::undefined("there is no next item"),
            },
            _ => return Ok(None),
        }))
    }

    /// `cycler(items)` and `joiner(separator)`.
    pub(crate) fn make_cycle(&self, function: Function, args: Args) -> Result<Value> {
        if function == Function::Joiner {
            let [separator] = args.bind("joiner", ["sep"])?;
            let separator = match separator {
                Some(separator) => separator.to_text(&self.budget)?,
                None => Text::own(", "),
            };
            let is_used = false.into();
            return Ok(Value::Joiner(Rc::new(Joiner { separator, is_used })));
        }
        if args.positional.is_empty() {
            return Err(Fault::new("cycler() takes at least one item"));
        }
        Ok(Value::Cycler(Rc::new(Cycler::new(args.positional)?)))
    }

    /// `loop.cycle(items)` and `loop.changed(values)`.
    pub(crate) fn loop_method(&self, state: &Loop, name: &str, args: Args) -> Result<Value> {
        if name == "cycle" {
            let items = args.positional;
            let index = state.index.get().checked_rem(items.len());
            return match index {
                Some(index) => Ok(items[index].clone()),
                None => Err(Fault::new("no items for cycling given")),
            };
        }
        let mut last = state.last_changed.borrow_mut();
        let is_same = match &*last {
            Some(last) if last.len() == args.positional.len() => {
                let mut pairs = last.iter().zip(&args.positional);
                pairs.try_fold(true, |same, (a, b)| {
                    Ok::<_, Fault>(same && a.equals(b, &self.budget)?)
                })?
            }
            _ => false,
        };
        *last = Some(args.positional);
        Ok(Value::Bool(!is_same))
    }

    /// `cycler.next()` and `cycler.reset()`.
    pub(crate) fn cycler_method(cycler: &Cycler, name: &str, args: Args) -> Result<Value> {
        args.none(name)?;
        let index = cycler.index.get();
        if name == "reset" {
            cycler.index.set(0);
            return Ok(Value::None);
        }
        cycler.index.set((index + 1) % cycler.items.len());
        required(cycler.items.get(index).cloned(), "next", "item")
    }
}

impl SeqKind {
    /// Whether the items have indexes.
    pub(crate) fn has_indexes(self) -> bool {
        !matches!(self, Self::Keys | Self::Values | Self::Items)
    }
}

/// The position of an index; a negative index counts from the end.
fn place(index: &Value, length: usize) -> Option<usize> {
    let index = match index {
        Value::Bool(flag) => i128::from(*flag),
        Value::Int(index) => *index,
        _ => return None,
    };
    let place = if index < 0 {
        index + length as i128
    } else {
        index
    };
    usize::try_from(place).ok().filter(|place| *place < length)
}

fn character(text: &Text, index: usize) -> Text {
    let start = super::strings::byte_place(text.as_str(), index);
    let c = text.as_str()[start..].chars().next();
    text.slice(start..start + c.map_or(0, char::len_utf8))
}

fn missing(object: &Value, name: &str) -> Value {
    let kind = match object {
        Value::None => "None",
        other => other.type_name(),
    };
    Value::undefined(format!("'{kind} object' has no attribute '{name}'"))
}
