//! [`Tally`]: what the answers of a batch add up to.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// Numbers of requests.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub(crate) struct RequestCounts {
    /// Requests of the batch; 0 until they have been read.
    pub(crate) total: usize,
    /// Requests that were answered.
    pub(crate) completed: usize,
    /// Requests that got an error.
    pub(crate) failed: usize,
}

/// The tokens of a batch: the sum over its answers so far.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub(crate) struct BatchUsage {
    /// Tokens of the prompts.
    input_tokens: u64,
    input_tokens_details: BatchInputDetails,
    /// Generated tokens, including tokens that end an answer.
    output_tokens: u64,
    output_tokens_details: BatchOutputDetails,
    /// The sum of both.
    total_tokens: u64,
}

/// Details of the prompts' tokens.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
struct BatchInputDetails {
    /// Tokens of the prompts that were in the cache.
    cached_tokens: u64,
}

/// Details of the generated tokens.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
struct BatchOutputDetails {
    /// Tokens of thinking, with the tags around it.
    reasoning_tokens: u64,
}

/// What the answers of a batch add up to.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Tally {
    pub(crate) counts: RequestCounts,
    /// `None` for a batch that a version without this number has made.
    #[serde(default)]
    pub(crate) usage: Option<BatchUsage>,
    /// The names of the models that have answered.
    #[serde(default)]
    models: Vec<String>,
}

impl Tally {
    /// The tally of a batch without answers.
    pub(crate) fn new(total: usize) -> Self {
        Self {
            counts: RequestCounts {
                total,
                ..RequestCounts::default()
            },
            usage: Some(BatchUsage::default()),
            models: Vec::new(),
        }
    }

    /// Adds an answer: its body, or `None` for an error.
    pub(crate) fn add(&mut self, body: Option<&Value>) {
        let Some(body) = body else {
            self.counts.failed += 1;
            return;
        };
        self.counts.completed += 1;
        self.usage.get_or_insert_default().add(&body["usage"]);
        let model = body["model"].as_str().unwrap_or_default();
        if !model.is_empty() && !self.models.iter().any(|known| known == model) {
            self.models.push(model.to_owned());
        }
    }

    /// The model that has answered, if it is only one.
    pub(crate) fn model(&self) -> Option<&str> {
        match &self.models[..] {
            [model] => Some(model),
            _ => None,
        }
    }
}

impl BatchUsage {
    /// Adds the usage of an answer, by the names of any API.
    fn add(&mut self, usage: &Value) {
        let count = |pointers: [&str; 2]| -> u64 {
            let mut counts = pointers
                .iter()
                .filter_map(|name| usage.pointer(name)?.as_u64());
            counts.next().unwrap_or(0)
        };
        let input = count(["/prompt_tokens", "/input_tokens"]);
        let output = count(["/completion_tokens", "/output_tokens"]);
        self.input_tokens += input;
        self.output_tokens += output;
        self.total_tokens += input + output;
        self.input_tokens_details.cached_tokens += count([
            "/prompt_tokens_details/cached_tokens",
            "/input_tokens_details/cached_tokens",
        ]);
        self.output_tokens_details.reasoning_tokens += count([
            "/completion_tokens_details/reasoning_tokens",
            "/output_tokens_details/reasoning_tokens",
        ]);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_tokens_of_chats_responses_and_vectors_are_added_up() {
        let mut tally = Tally::new(4);
        assert_eq!(tally.model(), None);
        let chat = json!({
            "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
            "prompt_tokens_details": { "cached_tokens": 8 },
            "completion_tokens_details": { "reasoning_tokens": 2 },
        });
        let response = json!({
            "input_tokens": 100, "output_tokens": 50, "total_tokens": 150,
            "input_tokens_details": { "cached_tokens": 80 },
            "output_tokens_details": { "reasoning_tokens": 20 },
        });
        let vectors = json!({ "prompt_tokens": 1000, "total_tokens": 1000 });
        for usage in [chat, response, vectors] {
            tally.add(Some(&json!({ "model": "a", "usage": usage })));
        }
        tally.add(None);
        let counts = RequestCounts {
            total: 4,
            completed: 3,
            failed: 1,
        };
        assert_eq!((tally.counts, tally.model()), (counts, Some("a")));
        let expected = json!({
            "input_tokens": 1110, "input_tokens_details": { "cached_tokens": 88 },
            "output_tokens": 55, "output_tokens_details": { "reasoning_tokens": 22 },
            "total_tokens": 1165,
        });
        assert_eq!(json!(tally.usage), expected);
        tally.add(Some(&json!({ "model": "b" })));
        assert_eq!(tally.model(), None, "there are two");
    }
}
