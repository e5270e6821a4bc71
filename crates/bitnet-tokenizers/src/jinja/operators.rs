//! Operators, with the rules and the errors of Python.

use super::ast::{Binary, Comparison};
use super::fault::{Fault, Result};
use super::format;
use super::limits::Budget;
use super::strings::byte_place;
use super::text::{Text, TextBuilder};
use super::value::{Number, SeqKind, Value};

pub(crate) fn negative(value: &Value) -> Result<Value> {
    match value.number() {
        Some(Number::Int(number)) => number.checked_neg().map(Value::Int).ok_or_else(too_large),
        Some(Number::Float(number)) => Ok(Value::Float(-number)),
        None => Err(unary("-", value)),
    }
}

pub(crate) fn positive(value: &Value) -> Result<Value> {
    match value.number() {
        Some(Number::Int(number)) => Ok(Value::Int(number)),
        Some(Number::Float(number)) => Ok(Value::Float(number)),
        None => Err(unary("+", value)),
    }
}

fn unary(operator: &str, value: &Value) -> Fault {
    match value {
        Value::Undefined(problem) => Fault::new(&**problem),
        other => Fault::new(format!(
            "bad operand type for unary {operator}: '{}'",
            other.type_name()
        )),
    }
}

fn too_large() -> Fault {
    Fault::new("an integer has more than 128 bits")
}

pub(crate) fn holds(comparison: Comparison, a: &Value, b: &Value, budget: &Budget) -> Result<bool> {
    Ok(match comparison {
        Comparison::Equal => a.equals(b, budget)?,
        Comparison::NotEqual => !a.equals(b, budget)?,
        Comparison::In => b.contains(a, budget)?,
        Comparison::NotIn => !b.contains(a, budget)?,
        Comparison::Less => a.compare(b, budget)?.is_some_and(|order| order.is_lt()),
        Comparison::LessEqual => a.compare(b, budget)?.is_some_and(|order| order.is_le()),
        Comparison::Greater => a.compare(b, budget)?.is_some_and(|order| order.is_gt()),
        Comparison::GreaterEqual => a.compare(b, budget)?.is_some_and(|order| order.is_ge()),
    })
}

pub(crate) fn binary(operator: Binary, a: &Value, b: &Value, budget: &Budget) -> Result<Value> {
    if let (Some(a), Some(b)) = (a.number(), b.number()) {
        return arithmetic(operator, a, b);
    }
    match (operator, a, b) {
        (_, Value::Undefined(problem), _) => Err(Fault::new(&**problem)),
        (Binary::Mod, Value::Text(format), values) => {
            format::percent(format, values, budget).map(Value::Text)
        }
        (_, _, Value::Undefined(problem)) => Err(Fault::new(&**problem)),
        (Binary::Add, Value::Text(a), Value::Text(b)) => {
            budget.check(a.len() + b.len())?;
            let mut out = TextBuilder::default();
            out.push(a);
            out.push(b);
            Ok(Value::Text(out.finish()))
        }
        (Binary::Add, Value::Seq(x), Value::Seq(y)) if can_be_joined(x.kind, y.kind) => {
            budget.check((x.items.len() + y.items.len()) * size_of::<Value>())?;
            let kind = if x.kind == SeqKind::List {
                SeqKind::List
            } else {
                SeqKind::Tuple
            };
            Value::seq(kind, x.items.iter().chain(&y.items).cloned().collect())
        }
        (Binary::Mul, list, Value::Int(count)) | (Binary::Mul, Value::Int(count), list) => {
            repeated(list, *count, budget)?.ok_or_else(|| unsupported(operator, a, b))
        }
        (Binary::Mul, list, Value::Bool(flag)) | (Binary::Mul, Value::Bool(flag), list) => {
            let count = i128::from(*flag);
            repeated(list, count, budget)?.ok_or_else(|| unsupported(operator, a, b))
        }
        _ => Err(unsupported(operator, a, b)),
    }
}

fn can_be_joined(a: SeqKind, b: SeqKind) -> bool {
    let is_tuple = |kind| matches!(kind, SeqKind::Tuple | SeqKind::Group);
    a == SeqKind::List && b == SeqKind::List || is_tuple(a) && is_tuple(b)
}

fn unsupported(operator: Binary, a: &Value, b: &Value) -> Fault {
    let sign = match operator {
        Binary::Add => "+",
        Binary::Sub => "-",
        Binary::Mul => "*",
        Binary::Div => "/",
        Binary::FloorDiv => "//",
        Binary::Mod => "%",
        Binary::Pow => "**",
    };
    let (a, b) = (a.type_name(), b.type_name());
    Fault::new(format!(
        "unsupported operand type(s) for {sign}: '{a}' and '{b}'"
    ))
}

/// A text or list `count` times; `None` for other values.
fn repeated(value: &Value, count: i128, budget: &Budget) -> Result<Option<Value>> {
    let count = usize::try_from(count.max(0)).map_err(|_| too_large())?;
    budget.check(value.shallow_bytes().saturating_mul(count))?;
    Ok(match value {
        Value::Text(text) => {
            let mut out = TextBuilder::default();
            for _ in 0..if text.is_empty() { 0 } else { count } {
                out.push(text);
            }
            Some(Value::Text(out.finish()))
        }
        Value::Seq(seq) if seq.kind.has_indexes() => {
            let count = if seq.items.is_empty() { 0 } else { count };
            let items = std::iter::repeat_n(&seq.items, count).flatten().cloned();
            Some(Value::seq(seq.kind, items.collect())?)
        }
        _ => None,
    })
}

fn arithmetic(operator: Binary, a: Number, b: Number) -> Result<Value> {
    match (operator, a, b) {
        (Binary::Div, a, b) => divide(a.as_f64(), b.as_f64()).map(Value::Float),
        (_, Number::Int(a), Number::Int(b)) => integers(operator, a, b),
        (_, a, b) => floats(operator, a.as_f64(), b.as_f64()).map(Value::Float),
    }
}

fn divide(a: f64, b: f64) -> Result<f64> {
    if b == 0.0 {
        Err(Fault::new("division by zero"))
    } else {
        Ok(a / b)
    }
}

fn integers(operator: Binary, a: i128, b: i128) -> Result<Value> {
    let is_division = matches!(operator, Binary::FloorDiv | Binary::Mod);
    if is_division && b == 0 {
        return Err(Fault::new("integer division or modulo by zero"));
    }
    // The remainder has the sign of the divisor.
    let has_other_sign = is_division && a.wrapping_rem(b) != 0 && (a < 0) != (b < 0);
    let number = match operator {
        Binary::Add => a.checked_add(b),
        Binary::Sub => a.checked_sub(b),
        Binary::Mul => a.checked_mul(b),
        Binary::FloorDiv => a.checked_div(b).map(|q| q - i128::from(has_other_sign)),
        Binary::Mod => Some(a.wrapping_rem(b) + if has_other_sign { b } else { 0 }),
        Binary::Pow | Binary::Div if b < 0 => {
            if a == 0 {
                return Err(Fault::new("0.0 cannot be raised to a negative power"));
            }
            return Ok(Value::Float((a as f64).powf(b as f64)));
        }
        Binary::Pow | Binary::Div => power(a, b),
    };
    number.map(Value::Int).ok_or_else(too_large)
}

fn power(a: i128, b: i128) -> Option<i128> {
    match a {
        0 | 1 => Some(if b == 0 { 1 } else { a }),
        -1 => Some(if b % 2 == 0 { 1 } else { -1 }),
        _ => a.checked_pow(u32::try_from(b).ok()?),
    }
}

fn floats(operator: Binary, a: f64, b: f64) -> Result<f64> {
    let floor_mod = |a: f64, b: f64| {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
            rest + b
        } else {
            rest
        }
    };
    Ok(match operator {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => divide(a, b)?,
        Binary::FloorDiv => divide(a - floor_mod(a, b), b)?.round(),
        Binary::Mod if b == 0.0 => return Err(Fault::new("float modulo by zero")),
        Binary::Mod => floor_mod(a, b),
        Binary::Pow => a.powf(b),
    })
}

/// `object[start:stop:step]`; undefined for objects without slices.
pub(crate) fn slice(object: &Value, bounds: &[Value; 3]) -> Result<Value> {
    if let Value::Undefined(problem) = object {
        return Err(Fault::new(&**problem));
    }
    let length = match object {
        Value::Text(text) => text.num_chars(),
        Value::Seq(seq) if seq.kind.has_indexes() => seq.items.len(),
        other => {
            return Ok(Value::undefined(format!(
                "'{}' object has no slices",
                other.type_name()
            )));
        }
    };
    let mut numbers = [None; 3];
    for (number, bound) in numbers.iter_mut().zip(bounds) {
        *number = match bound {
            Value::None => None,
            Value::Bool(flag) => Some(i128::from(*flag)),
            Value::Int(number) => Some(*number),
            _ => return Ok(Value::undefined("slice indices must be integers or None")),
        };
    }
    let indexes = indexes(length as i128, numbers)?;
    match object {
        Value::Text(text) => Ok(Value::Text(slice_text(text, &indexes))),
        Value::Seq(seq) => {
            let kind = match seq.kind {
                SeqKind::List => SeqKind::List,
                SeqKind::Range { .. } => sliced_range(seq.kind, &indexes),
                _ => SeqKind::Tuple,
            };
            Value::seq(
                kind,
                indexes
                    .iter()
                    .map(|index| seq.items[index].clone())
                    .collect(),
            )
        }
        _ => unreachable!("other values were handled above"),
    }
}

/// The positions of a slice, in order.
struct Indexes {
    start: i128,
    step: i128,
    len: usize,
}

impl Indexes {
    fn iter(&self) -> impl Iterator<Item = usize> {
        (0..self.len as i128).map(|index| (self.start + index * self.step) as usize)
    }
}

/// As `slice(start, stop, step).indices(length)`.
fn indexes(length: i128, [start, stop, step]: [Option<i128>; 3]) -> Result<Indexes> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Fault::new("slice step cannot be zero"));
    }
    let (lowest, highest) = if step > 0 {
        (0, length)
    } else {
        (-1, length - 1)
    };
    let bound = |bound: Option<i128>, default: i128| match bound {
        None => default,
        Some(bound) if bound < 0 => bound.saturating_add(length).max(lowest),
        Some(bound) => bound.min(highest),
    };
    let (first, last) = if step > 0 {
        (lowest, highest)
    } else {
        (highest, lowest)
    };
    let (start, stop) = (bound(start, first), bound(stop, last));
    let span = if step > 0 { stop - start } else { start - stop };
    let len = if span <= 0 {
        0
    } else {
        1 + (span - 1) as u128 / step.unsigned_abs()
    };
    let len = len as usize;
    // With one item the step does not matter, and a huge one must not overflow.
    let step = if len > 1 { step } else { 1 };
    Ok(Indexes { start, step, len })
}

fn sliced_range(kind: SeqKind, indexes: &Indexes) -> SeqKind {
    let SeqKind::Range { start, step, .. } = kind else {
        return kind;
    };
    let start = start + indexes.start as i64 * step;
    let step = step * indexes.step as i64;
    SeqKind::Range {
        start,
        stop: start + step * indexes.len as i64,
        step,
    }
}

fn slice_text(text: &Text, indexes: &Indexes) -> Text {
    let all = text.as_str();
    if indexes.step == 1 {
        let start = byte_place(all, indexes.start as usize);
        let end = start + byte_place(&all[start..], indexes.len);
        return text.slice(start..end);
    }
    let places: Vec<usize> = all
        .char_indices()
        .map(|(at, _)| at)
        .chain([all.len()])
        .collect();
    let mut out = TextBuilder::default();
    for index in indexes.iter() {
        out.push_slice(text, places[index]..places[index + 1]);
    }
    out.finish()
}
