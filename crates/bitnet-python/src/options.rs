//! [`Request`]: a prompt with its parameters, from Python's keywords. [`Chat`]: a conversation.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitnet_inference::{MakeConstraint, SamplingParams};
use bitnet_models::SamplingDefaults;
use bitnet_server::{LocalAnswer, LocalChat};
use bitnet_tokenizers::TokenId;
use pyo3::prelude::*;

use crate::error;

/// A checked request. Made by `Engine.request`.
#[pyclass(frozen, module = "bitnet._native")]
pub(crate) struct Request {
    pub(crate) request: bitnet_inference::Request,
    /// If the prompt is a conversation.
    chat: Option<Arc<LocalChat>>,
}

/// An answer to a conversation: its text without thinking and calls, its thinking, its calls (id,
/// name, arguments in JSON), and whether the calls are whole.
pub(crate) type AnswerTuple = (String, String, Vec<(String, String, String)>, bool);

impl Request {
    pub(crate) fn new(request: bitnet_inference::Request, chat: Option<Arc<LocalChat>>) -> Self {
        Self { request, chat }
    }

    /// Makes the constraint on the tokens, if the answer has a form.
    pub(crate) fn constraint(&self) -> Option<MakeConstraint> {
        self.chat.as_ref()?.constraint(&self.request.stop_ids)
    }
}

#[pymethods]
impl Request {
    /// The seed of the random draws.
    #[getter]
    fn seed(&self) -> u64 {
        self.request.sampling.seed
    }

    /// The tokens of the prompt.
    #[getter]
    fn prompt_tokens(&self) -> Vec<u32> {
        self.request.prompt.iter().map(|token| token.0).collect()
    }

    /// Reads the text of a whole answer to a conversation; `None` if the prompt is none.
    fn read(&self, text: &str) -> Option<AnswerTuple> {
        let LocalAnswer {
            content,
            reasoning,
            calls,
            has_whole_calls,
        } = self.chat.as_ref()?.read(text);
        let calls = calls.into_iter();
        let calls = calls.map(|call| (call.id, call.name, call.arguments));
        Some((content, reasoning, calls.collect(), has_whole_calls))
    }
}

/// A conversation as the model gets it. Made by `Engine.read_chat`.
#[pyclass(frozen, module = "bitnet._native")]
pub(crate) struct Chat(pub(crate) Arc<LocalChat>);

#[pymethods]
impl Chat {
    /// The text that the model continues.
    #[getter]
    fn text(&self) -> &str {
        self.0.text()
    }

    /// The tokens that the model continues.
    #[getter]
    fn prompt_tokens(&self) -> Vec<u32> {
        self.0.prompt().iter().map(|token| token.0).collect()
    }

    /// Whether the answer must be a call of a tool.
    #[getter]
    fn must_call(&self) -> bool {
        self.0.must_call()
    }
}

/// The keywords of sampling; `None` leaves a parameter to the model's recommendation, else to the
/// default.
pub(crate) struct Sampling {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) typical_p: Option<f32>,
    pub(crate) repeat_penalty: Option<f32>,
    pub(crate) repeat_last_n: Option<usize>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) logit_bias: BTreeMap<u32, f32>,
    pub(crate) seed: u64,
}

impl Sampling {
    /// The parameters: the keywords, else the model's recommendation, else the defaults.
    pub(crate) fn params(self, model: &SamplingDefaults) -> SamplingParams {
        let default = SamplingParams::recommended(model);
        let bias = self.logit_bias.into_iter();
        SamplingParams {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            typical_p: self.typical_p.unwrap_or(default.typical_p),
            repetition_penalty: self.repeat_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            penalty_window: self.repeat_last_n.unwrap_or(default.penalty_window),
            logit_bias: bias.map(|(token, bias)| (TokenId(token), bias)).collect(),
            seed: self.seed,
        }
    }
}

/// A whole number from 0 on; `None` if the keyword is not given.
pub(crate) fn count<'py, T>(name: &str, value: Option<&Bound<'py, PyAny>>) -> PyResult<Option<T>>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    let Some(value) = value else {
        return Ok(None);
    };
    match value.extract::<T>() {
        Ok(count) => Ok(Some(count)),
        Err(_) => Err(error::argument(format!(
            "{name} is {}, but must be a whole number from 0 on",
            value.repr()?
        ))),
    }
}

/// Token ids from a sequence of whole numbers: a list, a tuple, a NumPy array.
pub(crate) fn token_ids(tokens: &Bound<'_, PyAny>) -> PyResult<Vec<TokenId>> {
    let mut ids = Vec::with_capacity(tokens.len().unwrap_or(0));
    for (index, token) in tokens.try_iter()?.enumerate() {
        let token = token?;
        match token.extract::<u32>() {
            Ok(id) => ids.push(TokenId(id)),
            Err(_) => {
                return Err(error::argument(format!(
                    "token {index} is {}, but must be a whole number from 0 on",
                    token.repr()?
                )));
            }
        }
    }
    Ok(ids)
}
