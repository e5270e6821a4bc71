//! `value is test`.

use super::arguments::{Args, required};
use super::ast::{Binary, Comparison};
use super::fault::{Fault, Result};
use super::machine::Machine;
use super::operators::{self, binary};
use super::value::{Number, Value};
use super::{filters, strings};

/// The names of all tests except the operators.
const NAMES: &[&str] = &[
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
    "==",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
];

impl Machine {
    pub(crate) fn test(&mut self, name: &str, value: &Value, args: Args) -> Result<bool> {
        if let Some(comparison) = comparison(name) {
            let [other] = args.bind(name, ["other"])?;
            let other = required(other, name, "other")?;
            return operators::holds(comparison, value, &other, &self.budget);
        }
        match name {
            "divisibleby" => {
                let [number] = args.bind(name, ["num"])?;
                let number = required(number, name, "num")?;
                let rest = binary(Binary::Mod, value, &number, &self.budget)?;
                return rest.equals(&Value::Int(0), &self.budget);
            }
            "sameas" => {
                let [other] = args.bind(name, ["other"])?;
                return Ok(value.is(&required(other, name, "other")?));
            }
            _ => args.none(name)?,
        }
        self.plain_test(name, value)
    }

    fn plain_test(&self, name: &str, value: &Value) -> Result<bool> {
        Ok(match name {
            "defined" => !matches!(value, Value::Undefined(_)),
            "undefined" => matches!(value, Value::Undefined(_)),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => value.number().is_some(),
            "string" => matches!(value, Value::Text(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "iterable" => value.is_iterable(),
            "sequence" => match value {
                Value::Text(_) | Value::Dict(_) | Value::Undefined(_) => true,
                Value::Seq(seq) => seq.kind.has_indexes(),
                _ => false,
            },
            "callable" => matches!(
                value,
                Value::Function(_)
                    | Value::Method(_)
                    | Value::Macro(_)
                    | Value::Loop(_)
                    | Value::Joiner(_)
                    | Value::Undefined(_)
            ),
            "escaped" => false,
            "odd" | "even" => self.is_odd(value)? == (name == "odd"),
            "lower" => strings::is_lower(value.to_text(&self.budget)?.as_str()),
            "upper" => strings::is_upper(value.to_text(&self.budget)?.as_str()),
            "filter" => matches!(value, Value::Text(name) if filters::exists(name.as_str())),
            "test" => matches!(value, Value::Text(name) if NAMES.contains(&name.as_str())),
            _ => return Err(Fault::new(format!("No test named '{name}'."))),
        })
    }

    fn is_odd(&self, value: &Value) -> Result<bool> {
        match (value.number(), value) {
            (Some(Number::Int(number)), _) => Ok(number.rem_euclid(2) == 1),
            (Some(Number::Float(number)), _) => Ok(number.rem_euclid(2.0) == 1.0),
            (None, Value::Undefined(problem)) => Err(Fault::new(&**problem)),
            (None, other) => Err(Fault::new(format!(
                "a {} is neither odd nor even",
                other.type_name()
            ))),
        }
    }
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "eq" | "equalto" | "==" => Comparison::Equal,
        "ne" | "!=" => Comparison::NotEqual,
        "lt" | "lessthan" | "<" => Comparison::Less,
        "le" | "<=" => Comparison::LessEqual,
        "gt" | "greaterthan" | ">" => Comparison::Greater,
        "ge" | ">=" => Comparison::GreaterEqual,
        "in" => Comparison::In,
        _ => return None,
    })
}
