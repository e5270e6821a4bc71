//! [`SamplingDefaults`]: the sampling settings that a model's authors recommend.

use std::path::Path;

use bitnet_files::gguf::{Gguf, MetadataValue};
use bitnet_files::read_json;
use serde_json::Value;

use crate::error::{Error, Result};

/// The file in a Hugging Face directory.
const GENERATION_CONFIG: &str = "generation_config.json";

/// A setting: its name, its value, a check of the value, and the valid values in words.
type Rule<'a> = (&'a str, Option<f32>, &'a dyn Fn(f32) -> bool, &'a str);

/// The sampling settings that a model's files recommend; `None` for settings that they do not
/// state.
///
/// They are in `general.sampling.*` of a GGUF file or in `generation_config.json` of a directory.
/// The settings of a user or a request override them, and they override this program's defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Logits are divided by it; 0, also for `do_sample: false`, takes the most probable token.
    pub temperature: Option<f32>,
    /// Only the k most probable tokens; 0 for all.
    pub top_k: Option<usize>,
    /// Only the most probable tokens that together have this probability, above 0 and up to 1.
    pub top_p: Option<f32>,
    /// Only tokens with this share of the most probable one's probability, 0 to 1.
    pub min_p: Option<f32>,
    /// The divisor of logits of tokens that occurred, above 0.
    pub repetition_penalty: Option<f32>,
    /// Number of last tokens that the penalty considers.
    pub penalty_window: Option<usize>,
}

impl SamplingDefaults {
    /// The settings of a GGUF file.
    ///
    /// # Errors
    /// If a key has the wrong type or an invalid value.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let metadata = gguf.metadata();
        let key = |name: &str| format!("general.sampling.{name}");
        let size = |name: &str| Ok::<_, Error>(metadata.u32(&key(name))?.map(|n| n as usize));
        let window = metadata.get(&key("penalty_last_n"));
        let found = Self {
            temperature: metadata.f32(&key("temp"))?,
            top_k: size("top_k")?,
            top_p: metadata.f32(&key("top_p"))?,
            min_p: metadata.f32(&key("min_p"))?,
            repetition_penalty: metadata.f32(&key("penalty_repeat"))?,
            // -1 means the whole context; the caller replaces it.
            penalty_window: window
                .and_then(|value| value.as_integer())
                .and_then(|window| usize::try_from(window).ok()),
        };
        found.checked(&key("*"))
    }

    /// The settings in `generation_config.json` of a directory, if there is one.
    ///
    /// # Errors
    /// If the file cannot be read or is not JSON, or a value is invalid.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let path = directory.join(GENERATION_CONFIG);
        if !path.exists() {
            return Ok(Self::default());
        }
        let json = read_json(&path)?;
        let wrong = |key: &str, value: &Value| Error::Config {
            key: format!("{GENERATION_CONFIG}: {key}"),
            problem: format!("{value}, expected a number"),
        };
        let number = |key: &str| match &json[key] {
            Value::Null => Ok(None),
            value => value
                .as_f64()
                .map(|number| Some(number as f32))
                .ok_or_else(|| wrong(key, value)),
        };
        let top_k = match &json["top_k"] {
            Value::Null => None,
            value => {
                let top_k = value.as_u64().and_then(|top_k| usize::try_from(top_k).ok());
                Some(top_k.ok_or_else(|| wrong("top_k", value))?)
            }
        };
        let is_greedy = json["do_sample"] == Value::Bool(false);
        let found = Self {
            temperature: if is_greedy {
                Some(0.0)
            } else {
                number("temperature")?
            },
            top_k,
            top_p: number("top_p")?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
            penalty_window: None,
        };
        found.checked(GENERATION_CONFIG)
    }

    /// Refuses invalid values. whose: names the source of the values in messages.
    fn checked(self, whose: &str) -> Result<Self> {
        let share = |x: f32| (0.0..=1.0).contains(&x);
        let above_0 = |x: f32| x > 0.0 && x.is_finite();
        let rules: [Rule; 4] = [
            (
                "temperature",
                self.temperature,
                &|x| x >= 0.0 && x.is_finite(),
                "0 or more",
            ),
            (
                "top_p",
                self.top_p,
                &|x| share(x) && x > 0.0,
                "above 0 and up to 1",
            ),
            ("min_p", self.min_p, &share, "0 to 1"),
            (
                "repetition penalty",
                self.repetition_penalty,
                &above_0,
                "above 0",
            ),
        ];
        let wrong = rules.into_iter().find_map(|(name, value, rule, allowed)| {
            let value = value.filter(|value| !rule(*value))?;
            Some(Error::Config {
                key: format!("{whose}: the {name}"),
                problem: format!("{value}, expected {allowed}"),
            })
        });
        wrong.map_or(Ok(self), Err)
    }

    /// Whether the files recommend nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The recommended settings by the names of their fields, in a fixed order.
    #[must_use]
    pub fn named(&self) -> Vec<(&'static str, f64)> {
        // An f32 as its shortest decimal: 0.7, not 0.699999988079071.
        let float = |x: f32| x.to_string().parse().unwrap_or(f64::from(x));
        let size = |n: usize| n as f64;
        let named = [
            ("temperature", self.temperature.map(float)),
            ("top_k", self.top_k.map(size)),
            ("top_p", self.top_p.map(float)),
            ("min_p", self.min_p.map(float)),
            ("repetition_penalty", self.repetition_penalty.map(float)),
            ("penalty_window", self.penalty_window.map(size)),
        ];
        named
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    /// The metadata of a GGUF file with these settings.
    #[must_use]
    pub fn metadata(&self) -> Vec<(String, MetadataValue)> {
        let size = |n: usize| MetadataValue::I32(i32::try_from(n).unwrap_or(i32::MAX));
        let pairs = [
            ("temp", self.temperature.map(MetadataValue::F32)),
            ("top_k", self.top_k.map(size)),
            ("top_p", self.top_p.map(MetadataValue::F32)),
            ("min_p", self.min_p.map(MetadataValue::F32)),
            ("penalty_last_n", self.penalty_window.map(size)),
            (
                "penalty_repeat",
                self.repetition_penalty.map(MetadataValue::F32),
            ),
        ];
        let named = pairs
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        named
            .map(|(name, value)| (format!("general.sampling.{name}"), value))
            .collect()
    }

    /// Writes them into a `generation_config.json`.
    pub fn write_into(&self, json: &mut Value) {
        for (name, value) in self.named() {
            match name {
                "penalty_window" => {} // transformers looks at the whole text
                "temperature" if value == 0.0 => json["do_sample"] = false.into(),
                "top_k" => json[name] = (value as u64).into(),
                _ => json[name] = value.into(),
            }
        }
        if self
            .temperature
            .is_some_and(|temperature| temperature > 0.0)
        {
            json["do_sample"] = true.into();
        }
    }
}
