//! Fields that may have more than one form: one value or many, text or token ids.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::ApiError;

/// A text, or a list of things.
#[derive(Clone, Debug, PartialEq, ToSchema)]
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

/// What a completion continues: a text, token ids, or a list of either.
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

/// Refuses a value of a field that OpenAI has and this server does not, unless it is one that asks
/// for nothing.
pub(crate) fn refuse_unless(
    field: &str,
    value: Option<&Value>,
    harmless: &[Value],
) -> Result<(), ApiError> {
    match value {
        Some(value) if !value.is_null() && !harmless.contains(value) => Err(ApiError::unsupported(
            Some(field),
            format!("'{field}' is not supported by this server."),
        )),
        _ => Ok(()),
    }
}
