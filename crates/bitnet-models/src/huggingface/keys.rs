//! [`Keys`]: reads the keys of `config.json`, and says which one is wrong.

use bitnet_files::shown;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// An object of the file, with the prefix of its keys in messages.
pub(super) struct Keys<'a> {
    pub(super) object: &'a Map<String, Value>,
    pub(super) path: &'static str,
}

impl<'a> Keys<'a> {
    pub(super) fn error(&self, key: &str, problem: String) -> Error {
        Error::Config {
            key: format!("{}{key}", self.path),
            problem,
        }
    }

    pub(super) fn wrong_type(&self, key: &str, value: &Value, wanted: &str) -> Error {
        self.error(key, format!("{}, expected {wanted}", shown_value(value)))
    }

    /// The value of a key that exists and is not null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        let read = |value: &'a Value| {
            value
                .as_str()
                .ok_or_else(|| self.wrong_type(key, value, "a string"))
        };
        self.get(key).map(read).transpose()
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>> {
        let read = |value: &Value| {
            value
                .as_bool()
                .ok_or_else(|| self.wrong_type(key, value, "true or false"))
        };
        self.get(key).map(read).transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let read = |value: &Value| {
            value
                .as_f64()
                .ok_or_else(|| self.wrong_type(key, value, "a number"))
        };
        self.get(key).map(read).transpose()
    }

    /// A required number above 0.
    pub(super) fn positive(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            Some(number) if number > 0.0 && number <= 1e12 => Ok(number),
            Some(number) => Err(self.error(
                key,
                format!("{number}, expected more than 0 and at most 1e12"),
            )),
            None => Err(self.error(key, "missing".into())),
        }
    }

    pub(super) fn object(&self, key: &'static str) -> Result<Option<Keys<'a>>> {
        let path = match key {
            "quantization_config" => "quantization_config.",
            "rope_scaling" => "rope_scaling.",
            _ => "rope_parameters.",
        };
        let read = |value: &'a Value| match value.as_object() {
            Some(object) => Ok(Keys { object, path }),
            None => Err(self.wrong_type(key, value, "an object")),
        };
        self.get(key).map(read).transpose()
    }

    pub(super) fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(size) if (1..=max as u64).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.error(key, format!("{}, expected 1 to {max}", shown_value(value)))),
        }
    }

    pub(super) fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.optional_size(key, max)?
            .ok_or_else(|| self.error(key, "missing".into()))
    }

    /// Refuses a number that is present and different.
    pub(super) fn refuse_other(&self, key: &str, only: f64) -> Result<()> {
        match self.number(key)? {
            Some(found) if found != only => {
                Err(self.error(key, format!("{found}; {only} is supported")))
            }
            _ => Ok(()),
        }
    }
}

/// A value, shortened for a message.
pub(super) fn shown_value(value: &Value) -> String {
    match value.as_str() {
        Some(text) => format!("\"{}\"", shown(text)),
        None => shown(&value.to_string()),
    }
}
