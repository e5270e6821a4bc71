//! The arguments of a call, and their binding to parameters.

use super::ast::Name;
use super::fault::{Fault, Result};
use super::text::Text;
use super::value::Value;

/// The arguments of a call, evaluated.
#[derive(Clone, Default)]
pub(crate) struct Args {
    pub(crate) positional: Vec<Value>,
    pub(crate) named: Vec<(Name, Value)>,
}

impl Args {
    pub(crate) fn positional(positional: Vec<Value>) -> Self {
        Self {
            positional,
            named: Vec::new(),
        }
    }

    /// The arguments in the order of `parameters`; `None` for missing ones.
    ///
    /// # Errors
    /// If there are too many, one is given twice, or one has a name that is not a parameter.
    pub(crate) fn bind<const N: usize>(
        self,
        function: &str,
        parameters: [&str; N],
    ) -> Result<[Option<Value>; N]> {
        let given = self.positional.len();
        if given > N {
            let message = format!("{function}() takes at most {N} arguments, {given} were given");
            return Err(Fault::new(message));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(index) = parameters.iter().position(|parameter| **parameter == *name) else {
                let message = format!("{function}() got an unexpected keyword argument '{name}'");
                return Err(Fault::new(message));
            };
            if bound[index].replace(value).is_some() {
                let message = format!("{function}() got multiple values for argument '{name}'");
                return Err(Fault::new(message));
            }
        }
        Ok(bound)
    }

    /// Checks that there are no arguments.
    pub(crate) fn none(self, function: &str) -> Result<()> {
        self.bind(function, []).map(|[]| ())
    }
}

/// A whole number; Booleans count as 0 and 1.
pub(crate) fn int(value: &Value, what: &str) -> Result<i64> {
    let number = match value {
        Value::Bool(flag) => i128::from(*flag),
        Value::Int(number) => *number,
        Value::Undefined(problem) => return Err(Fault::new(&**problem)),
        other => {
            let name = other.type_name();
            return Err(Fault::new(format!("{what} must be an integer, not {name}")));
        }
    };
    i64::try_from(number).map_err(|_| Fault::new(format!("{what} is too large: {number}")))
}

/// A whole number, or `default` if it is missing.
pub(crate) fn int_or(value: Option<&Value>, default: i64, what: &str) -> Result<i64> {
    value.map_or(Ok(default), |value| int(value, what))
}

/// A length; negative ones count as 0, as in Python.
pub(crate) fn width(value: Option<&Value>, default: usize, what: &str) -> Result<usize> {
    match value {
        None => Ok(default),
        Some(value) => Ok(usize::try_from(int(value, what)?).unwrap_or(0)),
    }
}

pub(crate) fn text<'v>(value: &'v Value, what: &str) -> Result<&'v Text> {
    match value {
        Value::Text(text) => Ok(text),
        Value::Undefined(problem) => Err(Fault::new(&**problem)),
        other => {
            let name = other.type_name();
            Err(Fault::new(format!("{what} must be a string, not {name}")))
        }
    }
}

/// A required argument.
pub(crate) fn required(value: Option<Value>, function: &str, what: &str) -> Result<Value> {
    value.ok_or_else(|| Fault::new(format!("{function}() misses its argument '{what}'")))
}

/// The truth of the argument, or `default` if it is missing.
pub(crate) fn flag(value: Option<&Value>, default: bool) -> bool {
    value.map_or(default, Value::is_true)
}
