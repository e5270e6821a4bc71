//! The values of a running template, with Python's rules for truth, equality, order and iteration.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

use super::ast::{For, Macro, Name};
use super::fault::{Fault, Result};
use super::limits::{Budget, TemplateLimits};
use super::scope::Scope;
use super::text::Text;

/// A value. Lists, tuples and maps do not change once they are made.
#[derive(Clone)]
pub(crate) enum Value {
    /// An undefined value, with the description for errors.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Text),
    Seq(Rc<Seq>),
    Dict(Rc<Dict>),
    /// Items that can be iterated once.
    Generator(Rc<Generator>),
    /// The index of a namespace in the machine that runs the template.
    Namespace(usize),
    Function(Function),
    /// A method of a value, not yet called.
    Method(Rc<(Value, Name)>),
    Macro(Rc<Closure>),
    Loop(Rc<Loop>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<Joiner>),
}

/// Items in order.
pub(crate) struct Seq {
    pub(crate) kind: SeqKind,
    pub(crate) items: Vec<Value>,
    depth: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeqKind {
    List,
    Tuple,
    /// The result of `groupby`: a tuple whose parts are called `grouper` and `list`.
    Group,
    Range {
        start: i64,
        stop: i64,
        step: i64,
    },
    Keys,
    Values,
    Items,
}

/// A map in the order of insertion.
#[derive(Default)]
pub(crate) struct Dict {
    pub(crate) entries: IndexMap<Key, Value>,
    depth: usize,
}

pub(crate) struct Generator {
    pub(crate) items: RefCell<VecDeque<Value>>,
    depth: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    RaiseException,
    StrftimeNow,
    /// Panics, to test the guard around the engine.
    #[cfg(test)]
    PanicForTest,
}

/// A macro with the variables around it.
pub(crate) struct Closure {
    pub(crate) node: Arc<Macro>,
    /// The scopes inside the template's outermost one when the macro was defined.
    pub(crate) scopes: Vec<Rc<Scope>>,
    depth: usize,
}

/// `loop`
pub(crate) struct Loop {
    pub(crate) node: Arc<For>,
    pub(crate) items: Vec<Value>,
    pub(crate) index: Cell<usize>,
    /// Number of recursive loops around this one.
    pub(crate) depth: usize,
    pub(crate) last_changed: RefCell<Option<Vec<Value>>>,
    value_depth: usize,
}

pub(crate) struct Cycler {
    pub(crate) items: Vec<Value>,
    pub(crate) index: Cell<usize>,
    depth: usize,
}

pub(crate) struct Joiner {
    pub(crate) separator: Text,
    pub(crate) is_used: Cell<bool>,
}

impl Value {
    /// An undefined value, described in words such as `'x' is undefined`.
    pub(crate) fn undefined(problem: impl Into<Rc<str>>) -> Self {
        Self::Undefined(problem.into())
    }

    pub(crate) fn text(text: impl Into<Text>) -> Self {
        Self::Text(text.into())
    }

    /// # Errors
    /// If the items nest too deeply.
    pub(crate) fn seq(kind: SeqKind, items: Vec<Value>) -> Result<Self> {
        let depth = depth_above(items.iter())?;
        Ok(Self::Seq(Rc::new(Seq { kind, items, depth })))
    }

    pub(crate) fn list(items: Vec<Value>) -> Result<Self> {
        Self::seq(SeqKind::List, items)
    }

    pub(crate) fn tuple(items: Vec<Value>) -> Result<Self> {
        Self::seq(SeqKind::Tuple, items)
    }

    pub(crate) fn generator(items: Vec<Value>) -> Result<Self> {
        let depth = depth_above(items.iter())?;
        let items = RefCell::new(items.into());
        Ok(Self::Generator(Rc::new(Generator { items, depth })))
    }

    pub(crate) fn dict(entries: IndexMap<Key, Value>) -> Result<Self> {
        let depth = depth_above(entries.keys().map(|Key(key)| key).chain(entries.values()))?;
        Ok(Self::Dict(Rc::new(Dict { entries, depth })))
    }

    fn depth(&self) -> usize {
        match self {
            Self::Seq(seq) => seq.depth,
            Self::Dict(dict) => dict.depth,
            Self::Generator(generator) => generator.depth,
            Self::Method(method) => 1 + method.0.depth(),
            Self::Cycler(cycler) => cycler.depth,
            Self::Loop(state) => state.value_depth,
            Self::Macro(closure) => closure.depth,
            _ => 0,
        }
    }

    /// The bytes that the value itself takes, without the values in it.
    pub(crate) fn shallow_bytes(&self) -> usize {
        let items = match self {
            Self::Text(text) => return text.len(),
            Self::Seq(seq) => seq.items.len(),
            Self::Dict(dict) => 2 * dict.entries.len(),
            Self::Generator(generator) => generator.items.borrow().len(),
            _ => 0,
        };
        items * size_of::<Value>()
    }

    /// The type's name in Python's error messages.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
            Self::Seq(seq) => match seq.kind {
                SeqKind::List => "list",
                SeqKind::Tuple | SeqKind::Group => "tuple",
                SeqKind::Range { .. } => "range",
                SeqKind::Keys => "dict_keys",
                SeqKind::Values => "dict_values",
                SeqKind::Items => "dict_items",
            },
            Self::Dict(_) => "dict",
            Self::Generator(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Function(_) => "function",
            Self::Method(_) => "builtin_function_or_method",
            Self::Macro(_) => "Macro",
            Self::Loop(_) => "LoopContext",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
        }
    }

    /// As Python's `bool`.
    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(flag) => *flag,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::Seq(seq) => !seq.items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            Self::Loop(state) => !state.items.is_empty(),
            _ => true,
        }
    }

    /// As Python's `len`.
    pub(crate) fn length(&self) -> Result<usize> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Text(text) => Ok(text.num_chars()),
            Self::Seq(seq) => Ok(seq.items.len()),
            Self::Dict(dict) => Ok(dict.entries.len()),
            Self::Loop(state) => Ok(state.items.len()),
            other => Err(Fault::new(format!(
                "object of type '{}' has no len()",
                other.type_name()
            ))),
        }
    }

    /// The items that Python would iterate over. A generator is empty afterwards.
    pub(crate) fn items(&self, budget: &Budget) -> Result<Cow<'_, [Value]>> {
        let items: Vec<Value> = match self {
            Self::Undefined(_) => Vec::new(),
            Self::Seq(seq) => return Ok(Cow::Borrowed(&seq.items)),
            Self::Dict(dict) => dict.entries.keys().map(|Key(key)| key.clone()).collect(),
            Self::Generator(generator) => generator.items.take().into(),
            Self::Text(text) => {
                let chars = text.as_str().char_indices();
                budget.built(text.len() * size_of::<Value>())?;
                chars
                    .map(|(at, c)| Self::Text(text.slice(at..at + c.len_utf8())))
                    .collect()
            }
            other => {
                let name = other.type_name();
                return Err(Fault::new(format!("'{name}' object is not iterable")));
            }
        };
        budget.built(items.len() * size_of::<Value>())?;
        Ok(Cow::Owned(items))
    }

    pub(crate) fn is_iterable(&self) -> bool {
        matches!(
            self,
            Self::Undefined(_)
                | Self::Text(_)
                | Self::Seq(_)
                | Self::Dict(_)
                | Self::Generator(_)
                | Self::Loop(_)
        )
    }

    /// The number that an arithmetic operator sees; Booleans are 0 and 1.
    pub(crate) fn number(&self) -> Option<Number> {
        match self {
            Self::Bool(flag) => Some(Number::Int(i128::from(*flag))),
            Self::Int(number) => Some(Number::Int(*number)),
            Self::Float(number) => Some(Number::Float(*number)),
            _ => None,
        }
    }

    /// As Python's `==`.
    pub(crate) fn equals(&self, other: &Self, budget: &Budget) -> Result<bool> {
        if let (Some(a), Some(b)) = (self.number(), other.number()) {
            return Ok(a.compare(b) == Some(Ordering::Equal));
        }
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => Ok(true),
            (Self::Text(a), Self::Text(b)) => {
                budget.read(a.len().min(b.len()))?;
                Ok(a.as_str() == b.as_str())
            }
            (Self::Seq(a), Self::Seq(b)) => {
                if a.kind.class() != b.kind.class() || a.items.len() != b.items.len() {
                    return Ok(false);
                }
                budget.step(a.items.len())?;
                all(a.items.iter().zip(&b.items), |(a, b)| a.equals(b, budget))
            }
            (Self::Dict(a), Self::Dict(b)) => {
                if a.entries.len() != b.entries.len() {
                    return Ok(false);
                }
                budget.step(a.entries.len())?;
                all(a.entries.iter(), |(key, value)| match b.entries.get(key) {
                    Some(other) => value.equals(other, budget),
                    None => Ok(false),
                })
            }
            (a, b) => Ok(a.is(b)),
        }
    }

    /// As Python's `is`, of values that have an identity.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a.as_str() == b.as_str(),
            (Self::Seq(a), Self::Seq(b)) => Rc::ptr_eq(a, b),
            (Self::Dict(a), Self::Dict(b)) => Rc::ptr_eq(a, b),
            (Self::Generator(a), Self::Generator(b)) => Rc::ptr_eq(a, b),
            (Self::Namespace(a), Self::Namespace(b)) => a == b,
            (Self::Function(a), Self::Function(b)) => a == b,
            (Self::Macro(a), Self::Macro(b)) => Rc::ptr_eq(a, b),
            (Self::Loop(a), Self::Loop(b)) => Rc::ptr_eq(a, b),
            (Self::Cycler(a), Self::Cycler(b)) => Rc::ptr_eq(a, b),
            (Self::Joiner(a), Self::Joiner(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// As Python's `<`, `<=`, `>` and `>=`: for numbers, texts, and lists or tuples of them.
    pub(crate) fn compare(&self, other: &Self, budget: &Budget) -> Result<Option<Ordering>> {
        if let (Some(a), Some(b)) = (self.number(), other.number()) {
            return Ok(a.compare(b));
        }
        match (self, other) {
            (Self::Undefined(problem), _) | (_, Self::Undefined(problem)) => {
                Err(Fault::new(&**problem))
            }
            (Self::Text(a), Self::Text(b)) => {
                budget.read(a.len().min(b.len()))?;
                Ok(Some(a.as_str().cmp(b.as_str())))
            }
            (Self::Seq(a), Self::Seq(b))
                if a.kind.class() == b.kind.class() && a.kind.class() < 2 =>
            {
                for (a, b) in a.items.iter().zip(&b.items) {
                    budget.step(1)?;
                    if !a.equals(b, budget)? {
                        return a.compare(b, budget);
                    }
                }
                Ok(Some(a.items.len().cmp(&b.items.len())))
            }
            (a, b) => Err(Fault::new(format!(
                "'{}' and '{}' have no order",
                a.type_name(),
                b.type_name()
            ))),
        }
    }

    /// As Python's `item in self`.
    pub(crate) fn contains(&self, item: &Self, budget: &Budget) -> Result<bool> {
        match (self, item) {
            (Self::Text(text), Self::Text(part)) => {
                budget.read(text.len() + part.len())?;
                Ok(text.as_str().contains(part.as_str()))
            }
            (Self::Text(_), other) => Err(Fault::new(format!(
                "'in <string>' requires string as left operand, not {}",
                other.type_name()
            ))),
            (Self::Dict(dict), key) => Ok(dict.entries.contains_key(&Key::new(key)?)),
            // Items after the match remain in the generator.
            (Self::Generator(generator), item) => loop {
                budget.step(1)?;
                let next = generator.items.borrow_mut().pop_front();
                match next {
                    None => break Ok(false),
                    Some(other) if other.equals(item, budget)? => break Ok(true),
                    Some(_) => {}
                }
            },
            (list, item) => {
                for other in list.items(budget)?.iter() {
                    budget.step(1)?;
                    if other.equals(item, budget)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }
}

impl Closure {
    pub(crate) fn new(node: Arc<Macro>, scopes: Vec<Rc<Scope>>) -> Result<Self> {
        let depth = depth_above(scopes.iter().flat_map(|scope| scope.values()))?;
        Ok(Self {
            node,
            scopes,
            depth,
        })
    }
}

impl Loop {
    pub(crate) fn new(node: Arc<For>, items: Vec<Value>, depth: usize) -> Result<Self> {
        Ok(Self {
            node,
            value_depth: depth_above(items.iter())?,
            items,
            index: Cell::new(0),
            depth,
            last_changed: RefCell::new(None),
        })
    }
}

impl Cycler {
    pub(crate) fn new(items: Vec<Value>) -> Result<Self> {
        Ok(Self {
            depth: depth_above(items.iter())?,
            items,
            index: Cell::new(0),
        })
    }
}

/// One level more than the deepest of `items`.
fn depth_above<'v>(items: impl Iterator<Item = &'v Value>) -> Result<usize> {
    let depth = 1 + items.map(Value::depth).max().unwrap_or(0);
    if depth > TemplateLimits::VALUE_DEPTH {
        let most = TemplateLimits::VALUE_DEPTH;
        return Err(Fault::new(format!(
            "the template nests a value deeper than {most} levels"
        )));
    }
    Ok(depth)
}

fn all<T>(
    mut items: impl Iterator<Item = T>,
    mut holds: impl FnMut(T) -> Result<bool>,
) -> Result<bool> {
    items.try_fold(true, |so_far, item| Ok(so_far && holds(item)?))
}

impl SeqKind {
    /// Values of different classes are never equal.
    fn class(self) -> u8 {
        match self {
            Self::List => 0,
            Self::Tuple | Self::Group => 1,
            Self::Range { .. } => 2,
            Self::Keys => 3,
            Self::Values => 4,
            Self::Items => 5,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub(crate) fn as_f64(self) -> f64 {
        match self {
            Self::Int(number) => number as f64,
            Self::Float(number) => number,
        }
    }

    fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(&b)),
            (a, b) => a.as_f64().partial_cmp(&b.as_f64()),
        }
    }
}

/// A value that can be a key of a map: any hashable value, so no lists or maps.
#[derive(Clone)]
pub(crate) struct Key(pub(crate) Value);

impl Key {
    pub(crate) fn new(value: &Value) -> Result<Self> {
        let is_hashable = match value {
            Value::Seq(seq) => {
                let is_tuple = matches!(seq.kind, SeqKind::Tuple | SeqKind::Group);
                is_tuple && seq.items.iter().all(|item| Self::new(item).is_ok())
            }
            Value::Dict(_) => false,
            _ => true,
        };
        match is_hashable {
            true => Ok(Self(value.clone())),
            false => Err(Fault::new(format!(
                "unhashable type: '{}'",
                value.type_name()
            ))),
        }
    }

    pub(crate) fn text(text: impl Into<Text>) -> Self {
        Self(Value::text(text))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        if let (Some(a), Some(b)) = (self.0.number(), other.0.number()) {
            return a.compare(b) == Some(Ordering::Equal);
        }
        match (&self.0, &other.0) {
            (Value::Seq(a), Value::Seq(b)) => {
                let same = |(a, b): (&Value, &Value)| Self(a.clone()) == Self(b.clone());
                a.items.len() == b.items.len() && a.items.iter().zip(&b.items).all(same)
            }
            (Value::Undefined(_), Value::Undefined(_)) => true,
            (a, b) => a.is(b),
        }
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Value::Text(text) => text.as_str().hash(state),
            Value::Seq(seq) => {
                for item in &seq.items {
                    Self(item.clone()).hash(state);
                }
            }
            value => match value.number() {
                // Equal numbers have equal floats, so their hashes are equal.
                Some(number) => (number.as_f64() + 0.0).to_bits().hash(state),
                None => value.type_name().hash(state),
            },
        }
    }
}

// Allows looking up a text without building a value.
impl indexmap::Equivalent<Key> for str {
    fn equivalent(&self, key: &Key) -> bool {
        matches!(&key.0, Value::Text(text) if text.as_str() == self)
    }
}
