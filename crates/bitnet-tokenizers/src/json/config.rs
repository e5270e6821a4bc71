//! [`Config`]: the files beside tokenizer.json.

use std::borrow::Cow;

use serde_json::Value;

use super::files::{CONFIG, GENERATION_CONFIG, SPECIAL_TOKENS_MAP, TokenizerFiles};
use crate::error::{Error, Result};

/// Templates with their names.
pub(super) type Named<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// The other files of the directory.
pub(super) struct Config {
    config: Value,
    special_tokens_map: Value,
    generation_config: Value,
}

impl Config {
    /// Parses the files.
    ///
    /// # Errors
    /// If one is not JSON.
    pub(super) fn read(files: &TokenizerFiles) -> Result<Self> {
        let parse = |file, text: &Option<String>| match text {
            None => Ok(Value::Null),
            Some(text) => serde_json::from_str(text).map_err(|source| Error::Json { file, source }),
        };
        Ok(Self {
            config: parse(CONFIG, &files.tokenizer_config)?,
            special_tokens_map: parse(SPECIAL_TOKENS_MAP, &files.special_tokens_map)?,
            generation_config: parse(GENERATION_CONFIG, &files.generation_config)?,
        })
    }

    /// The text of a special token, given as a string or as an object with a `content`.
    pub(super) fn token(&self, name: &'static str) -> Result<Option<String>> {
        let files = [
            (CONFIG, &self.config),
            (SPECIAL_TOKENS_MAP, &self.special_tokens_map),
        ];
        for (file, value) in files {
            match (&value[name], &value[name]["content"]) {
                (Value::Null, _) => {}
                (Value::String(text), _) | (_, Value::String(text)) => {
                    return Ok(Some(text.clone()));
                }
                _ => {
                    return Err(Error::BadField {
                        file,
                        what: format!("{name} is not a token"),
                    });
                }
            }
        }
        Ok(None)
    }

    /// `eos_token_id` of generation_config.json, one or several.
    pub(super) fn stop_ids(&self) -> Vec<u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match &self.generation_config["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(id).collect(),
            value => id(value).into_iter().collect(),
        }
    }

    /// The chat templates by their names; a single one is `default`.
    pub(super) fn chat_templates(&self) -> Named<'static> {
        match &self.config["chat_template"] {
            Value::String(template) => vec![("default".into(), template.clone().into())],
            Value::Array(templates) => {
                let template = |template: &Value| {
                    let name = template["name"].as_str()?.to_owned();
                    Some((
                        name.into(),
                        template["template"].as_str()?.to_owned().into(),
                    ))
                };
                templates.iter().filter_map(template).collect()
            }
            _ => Vec::new(),
        }
    }
}
