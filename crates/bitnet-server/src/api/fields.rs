//! Fields that may have more than one form: one value or many, text or token ids.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A text, or a list of items.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum TextOr<T> {
    Text(String),
    List(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for TextOrVisitor<T> {
            type Value = TextOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(TextOr::List)
            }
        }
        deserializer.deserialize_any(TextOrVisitor(PhantomData))
    }
}

/// The prompt of a completion: a text, token ids, or a list of either.
#[derive(Clone, Debug, PartialEq, ToSchema)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// An element of a prompt that is a list.
enum Element {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ElementVisitor;
        impl<'de> Visitor<'de> for ElementVisitor {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
                u32::try_from(id)
                    .map(Element::Token)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Element, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Element::Tokens)
            }
        }
        deserializer.deserialize_any(ElementVisitor)
    }
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = match TextOr::<Element>::deserialize(deserializer)? {
            TextOr::Text(text) => return Ok(Self::Text(text)),
            TextOr::List(list) => list,
        };
        let mixed = || D::Error::custom("its elements are of different kinds");
        let mut list = list.into_iter().peekable();
        match list.peek() {
            None => Err(D::Error::invalid_length(
                0,
                &"at least one prompt or token id",
            )),
            Some(Element::Text(_)) => {
                let text = |element| {
                    if let Element::Text(text) = element {
                        Ok(text)
                    } else {
                        Err(mixed())
                    }
                };
                list.map(text).collect::<Result<_, _>>().map(Self::Texts)
            }
            Some(Element::Token(_)) => {
                let token = |element| {
                    if let Element::Token(token) = element {
                        Ok(token)
                    } else {
                        Err(mixed())
                    }
                };
                list.map(token).collect::<Result<_, _>>().map(Self::Tokens)
            }
            Some(Element::Tokens(_)) => {
                let tokens = |element| {
                    if let Element::Tokens(tokens) = element {
                        Ok(tokens)
                    } else {
                        Err(mixed())
                    }
                };
                list.map(tokens)
                    .collect::<Result<_, _>>()
                    .map(Self::TokenLists)
            }
        }
    }
}

/// How this server treats a field that no request type reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Support {
    /// Known, with a value that has no effect.
    AsksNothing,
    /// Known, with a value that would change the answer.
    Unsupported,
    Unknown,
}

/// Fields of other servers that this one does not support, each with the values that have no
/// effect, as JSON. Null never has an effect. `[]` stands for any index.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    // OpenAI
    ("audio", &[]),
    ("best_of", &["1"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("messages[].annotations", &["[]"]),
    ("messages[].audio", &[]),
    ("messages[].function_call", &[]),
    ("messages[].refusal", &[]),
    // huggingface_hub, in its own messages
    ("messages[].tool_calls[].function.description", &[]),
    ("modalities", &["[\"text\"]"]),
    ("moderation", &[]),
    ("prediction", &[]),
    (
        "prompt_cache_retention",
        &["\"in_memory\"", "\"in-memory\""],
    ),
    (
        "service_tier",
        &["\"auto\"", "\"default\"", "\"standard_only\""],
    ),
    ("store", &["false"]),
    ("stream_options.include_obfuscation", &["false"]),
    ("suffix", &["\"\""]),
    ("verbosity", &["\"medium\""]),
    ("web_search_options", &[]),
    // OpenAI, responses
    ("access_programs", &[]),
    ("background", &["false"]),
    ("background_options", &[]),
    ("context_management", &["[]"]),
    ("conversation", &[]),
    ("image", &[]),
    ("input[].namespace", &[]),
    ("max_tool_calls", &[]),
    ("prompt", &[]),
    ("prompt_cache_options", &[]),
    ("reasoning.context", &["\"auto\""]),
    ("reasoning.generate_summary", &["\"auto\""]),
    ("reasoning.mode", &["\"standard\""]),
    ("reasoning.summary", &["\"auto\""]),
    ("text.verbosity", &["\"medium\""]),
    ("tools[].allowed_callers", &["[\"direct\"]"]),
    ("tools[].async", &["false"]),
    ("tools[].defer_loading", &["false"]),
    ("tools[].output_schema", &[]),
    ("truncation", &["\"disabled\""]),
    // Anthropic
    ("container", &[]),
    ("diagnostics", &[]),
    ("inference_geo", &[]),
    ("mcp_servers", &["[]"]),
    ("messages[].content[].caller", &["{\"type\":\"direct\"}"]),
    ("messages[].content[].citations", &["[]"]),
    ("messages[].content[].toolset_name", &[]),
    ("speed", &["\"standard\""]),
    ("system[].citations", &["[]"]),
    ("tools[].eager_input_streaming", &["false", "true"]),
    ("tools[].input_examples", &["[]"]),
    ("user_profile_id", &[]),
    ("workspace_id", &[]),
    // Ollama
    ("context", &["[]"]),
    ("height", &["0"]),
    ("images", &["[]"]),
    ("messages[].images", &["[]"]),
    ("options.embedding_only", &["false"]),
    ("options.f16_kv", &["false", "true"]),
    ("options.logits_all", &["false"]),
    ("options.low_vram", &["false", "true"]),
    ("options.mirostat", &["0"]),
    ("options.mirostat_eta", &["0.1"]),
    ("options.mirostat_tau", &["5", "5.0"]),
    ("options.penalize_newline", &["true"]),
    ("options.repeat_last_n", &["64"]),
    ("options.tfs_z", &["1", "1.0"]),
    ("options.vocab_only", &["false"]),
    ("shift", &["false"]),
    ("steps", &["0"]),
    ("template", &["\"\""]),
    ("truncate", &["false"]),
    ("width", &["0"]),
    // vLLM
    ("allowed_token_ids", &[]),
    ("bad_words", &["[]"]),
    ("chat_template", &[]),
    ("echo", &["false"]),
    ("guided_choice", &[]),
    ("guided_decoding_backend", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("include_stop_str_in_output", &["false"]),
    ("kv_transfer_params", &[]),
    ("length_penalty", &["1", "1.0"]),
    ("logits_processors", &["[]"]),
    ("mm_processor_kwargs", &["{}"]),
    ("priority", &["0"]),
    ("prompt_embeds", &[]),
    ("prompt_logprobs", &[]),
    ("return_tokens_as_token_ids", &["false"]),
    ("spaces_between_special_tokens", &["true"]),
    ("truncate_prompt_tokens", &["-1"]),
    ("use_beam_search", &["false"]),
    ("vllm_xargs", &["{}"]),
    // llama.cpp
    ("cache_prompt", &["true"]),
    ("dry_multiplier", &["0", "0.0"]),
    ("dynatemp_range", &["0", "0.0"]),
    ("grammar", &["\"\""]),
    ("json_schema", &[]),
    ("mirostat", &["0"]),
    ("repeat_penalty", &["1", "1.0"]),
    ("samplers", &[]),
    ("timings_per_token", &["false"]),
    ("top_n_sigma", &["-1", "-1.0"]),
    ("xtc_probability", &["0", "0.0"]),
];

/// How this server treats a field that no request type reads. `field`: its name, with `[]` for
/// indexes.
pub(crate) fn support(field: &str, value: &Value) -> Support {
    let Some((_, neutral)) = UNSUPPORTED.iter().find(|(name, _)| *name == field) else {
        return Support::Unknown;
    };
    if value.is_null() || neutral.contains(&&*value.to_string()) {
        Support::AsksNothing
    } else {
        Support::Unsupported
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unsupported_fields_are_listed_once_with_values_in_json() {
        for (index, (name, neutral)) in UNSUPPORTED.iter().enumerate() {
            assert!(
                UNSUPPORTED[..index].iter().all(|(other, _)| other != name),
                "{name}"
            );
            for text in *neutral {
                let value: Value = serde_json::from_str(text).expect("JSON");
                assert_eq!(value.to_string(), *text);
                assert_eq!(support(name, &value), Support::AsksNothing);
            }
            assert_eq!(support(name, &Value::Null), Support::AsksNothing);
            assert_eq!(support(name, &json!({ "a": 1 })), Support::Unsupported);
        }
        assert_eq!(support("frobnicate", &Value::Null), Support::Unknown);
    }
}
