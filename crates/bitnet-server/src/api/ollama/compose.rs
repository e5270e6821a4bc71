//! [`LineWriter`]: writes an answer in the lines of Ollama's API. The whole answer is what the
//! lines add up to.

use std::sync::Arc;
use std::time::SystemTime;

use bitnet_inference::{Finish, Timings, Token};
use bitnet_tokenizers::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::calls::Found;
use crate::api::logprobs::TokenLogprob;
use crate::api::reader::AnswerReader;
use crate::api::stream::{Chunk, ChunkFormat, ChunkUsage, End, Framing};
use crate::api::usage::Usage;
use crate::api::{ApiError, to_json};
use crate::id::random_id;
use crate::record::Record;

/// A line of an answer, or the whole answer.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct OllamaAnswer {
    model: String,
    /// A date and time, as RFC 3339 writes them.
    created_at: String,
    /// Of a chat: more of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<OllamaMessage>,
    /// Of a continued prompt: more text.
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<String>,
    /// Of a continued prompt: more of what the model thinks before it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<TokenLogprob>,
    /// Whether this is the last line.
    done: bool,
    /// `stop`, `length` or `load`
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'static str>,
    #[serde(flatten)]
    counts: Option<OllamaCounts>,
}

/// Counts and times of a whole answer.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
struct OllamaCounts {
    /// Nanoseconds from the request to the end of the answer.
    total_duration: u64,
    /// Always 0: the model is loaded when the server starts.
    load_duration: u64,
    /// Tokens of the prompt.
    prompt_eval_count: usize,
    /// Nanoseconds.
    prompt_eval_duration: u64,
    /// Generated tokens.
    eval_count: usize,
    /// Nanoseconds.
    eval_duration: u64,
}

/// A message of the model.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
struct OllamaMessage {
    /// `assistant`
    role: &'static str,
    content: String,
    /// What the model thinks before it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<OllamaCall>,
}

/// A call of a function.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct OllamaCall {
    id: String,
    function: OllamaFunction,
}

/// The function and its arguments.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct OllamaFunction {
    index: usize,
    name: String,
    #[schema(value_type = Object)]
    arguments: Map<String, Value>,
}

/// The kind of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OllamaKind {
    Chat,
    Generate,
}

/// What a line, or a whole answer, has of the model's output.
#[derive(Clone, Debug, Default)]
struct Parts {
    content: String,
    thinking: String,
    calls: Vec<OllamaCall>,
    logprobs: Vec<TokenLogprob>,
}

/// Writes lines.
pub(crate) struct LineWriter {
    kind: OllamaKind,
    model: String,
    reader: AnswerReader,
    tokenizer: Option<Arc<Tokenizer>>,
    record: Arc<Record>,
    /// The name and the arguments so far of a call that is not whole.
    call: Option<(String, String)>,
    num_calls: usize,
    /// The whole answer so far.
    whole: Parts,
    reason: &'static str,
    timings: Timings,
}

impl LineWriter {
    pub(crate) fn new(
        kind: OllamaKind,
        model: String,
        reader: AnswerReader,
        tokenizer: Option<Arc<Tokenizer>>,
        record: Arc<Record>,
    ) -> Self {
        Self {
            kind,
            model,
            reader,
            tokenizer,
            record,
            call: None,
            num_calls: 0,
            whole: Parts::default(),
            reason: "stop",
            timings: Timings::default(),
        }
    }

    /// The answer to a request that only loads or unloads the model: `reason` is `load` or
    /// `unload`.
    pub(crate) fn without_prompt(
        kind: OllamaKind,
        model: &str,
        reason: &'static str,
    ) -> OllamaAnswer {
        OllamaAnswer {
            done: true,
            done_reason: Some(reason),
            counts: Some(OllamaCounts::default()),
            ..answer(kind, model.to_owned(), Parts::default())
        }
    }

    /// The whole answer, after its end.
    pub(crate) fn whole(&mut self) -> OllamaAnswer {
        let parts = std::mem::take(&mut self.whole);
        self.last_line(parts)
    }

    fn last_line(&self, parts: Parts) -> OllamaAnswer {
        OllamaAnswer {
            done: true,
            done_reason: Some(self.reason),
            counts: Some(self.counts()),
            ..answer(self.kind, self.model.clone(), parts)
        }
    }

    fn counts(&self) -> OllamaCounts {
        let nanoseconds = |duration: std::time::Duration| duration.as_nanos() as u64;
        let timings = &self.timings;
        OllamaCounts {
            total_duration: nanoseconds(self.record.elapsed()),
            load_duration: 0,
            prompt_eval_count: timings.prompt_tokens,
            prompt_eval_duration: nanoseconds(timings.prefill),
            eval_count: timings.generated_tokens,
            eval_duration: nanoseconds(timings.decode),
        }
    }

    fn add(&mut self, found: Vec<Found>, parts: &mut Parts) {
        for part in found {
            match part {
                Found::Text(text) => parts.content += &text,
                Found::Reasoning(text) => parts.thinking += &text,
                Found::Call { name, .. } => {
                    self.end_call(parts);
                    self.call = Some((name, String::new()));
                }
                Found::Arguments { text, .. } => {
                    if let Some((_, arguments)) = &mut self.call {
                        arguments.push_str(&text);
                    }
                }
            }
        }
    }

    /// A call that is cut off has no arguments that could be sent, so it is left out.
    fn end_call(&mut self, parts: &mut Parts) {
        let Some((name, arguments)) = self.call.take() else {
            return;
        };
        if let Ok(arguments) = serde_json::from_str(&arguments) {
            let function = OllamaFunction {
                index: self.num_calls,
                name,
                arguments,
            };
            self.num_calls += 1;
            let id = random_id("call_");
            parts.calls.push(OllamaCall { id, function });
        }
    }

    /// The line for parts of the answer, if there are any.
    fn line(&mut self, parts: Parts) -> Vec<Chunk> {
        let is_empty = parts.content.is_empty()
            && parts.thinking.is_empty()
            && parts.calls.is_empty()
            && parts.logprobs.is_empty();
        if is_empty {
            return Vec::new();
        }
        let whole = &mut self.whole;
        whole.content += &parts.content;
        whole.thinking += &parts.thinking;
        whole.calls.extend(parts.calls.iter().cloned());
        whole.logprobs.extend(parts.logprobs.iter().cloned());
        vec![to_json(&answer(self.kind, self.model.clone(), parts)).into()]
    }
}

/// An answer, or a part of one, that is not the end.
fn answer(kind: OllamaKind, model: String, parts: Parts) -> OllamaAnswer {
    let Parts {
        content,
        thinking,
        calls,
        logprobs,
    } = parts;
    let thinking = Some(thinking).filter(|thinking| !thinking.is_empty());
    let base = OllamaAnswer {
        model,
        created_at: now(),
        logprobs,
        ..OllamaAnswer::default()
    };
    match kind {
        OllamaKind::Chat => OllamaAnswer {
            message: Some(OllamaMessage {
                role: "assistant",
                content,
                thinking,
                tool_calls: calls,
            }),
            ..base
        },
        OllamaKind::Generate => OllamaAnswer {
            response: Some(content),
            thinking,
            ..base
        },
    }
}

fn now() -> String {
    humantime::format_rfc3339_micros(SystemTime::now()).to_string()
}

/// An error as a body, or as a line.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaErrorBody<'a> {
    /// A message for people; it names the field that is wrong.
    error: &'a str,
}

impl<'a> OllamaErrorBody<'a> {
    pub(crate) fn new(error: &'a ApiError) -> Self {
        Self {
            error: error.message(),
        }
    }
}

impl ChunkFormat for LineWriter {
    const FRAMING: Framing = Framing::Lines;

    fn begin(&mut self, _: usize, _: ChunkUsage) -> Vec<Chunk> {
        Vec::new()
    }

    fn text(&mut self, _: usize, text: &str, token: Option<&Token>, _: ChunkUsage) -> Vec<Chunk> {
        let mut parts = Parts::default();
        let found = match token {
            Some(token) => {
                let tokenizer = self.tokenizer.as_deref();
                parts.logprobs.extend(TokenLogprob::new(tokenizer, token));
                self.reader.token(text)
            }
            None => self.reader.text(text),
        };
        self.add(found, &mut parts);
        self.line(parts)
    }

    fn end(&mut self, _: usize, finish: &Finish, _: ChunkUsage) -> End {
        let mut parts = Parts::default();
        let found = self.reader.finish();
        self.add(found, &mut parts);
        self.end_call(&mut parts);
        self.reason = finish.reason.name();
        self.timings = finish.timings;
        End {
            chunks: self.line(parts),
            reason: self.reason,
            reasoning_tokens: self.reader.num_reasoning_tokens(),
        }
    }

    async fn last(&mut self, _: Usage) -> Vec<Chunk> {
        vec![to_json(&self.last_line(Parts::default())).into()]
    }

    async fn failed(&mut self, error: &ApiError) -> Vec<Chunk> {
        vec![to_json(&OllamaErrorBody::new(error)).into()]
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Method;
    use bitnet_inference::FinishReason;
    use bitnet_tokenizers::CallForm;
    use serde_json::json;

    use super::*;
    use crate::api::calls::CallFinder;

    /// The messages of the lines of an answer that arrives in pieces.
    fn messages(pieces: &[&str]) -> (Vec<Value>, Value) {
        let finder = CallFinder::new(CallForm::Plain, Arc::default());
        let reader = AnswerReader::new(None, Some(finder), true);
        let (path, route) = (String::new(), String::new());
        let record = Record::new(Method::POST, path, route, String::new(), None);
        let kind = OllamaKind::Chat;
        let mut writer = LineWriter::new(kind, "m".to_owned(), reader, None, Arc::new(record));
        let mut chunks: Vec<_> = pieces
            .iter()
            .flat_map(|piece| writer.text(0, piece, None, None))
            .collect();
        let finish = Finish {
            reason: FinishReason::Stop,
            stop_string: None,
            timings: Timings::default(),
            pooled: None,
        };
        chunks.extend(writer.end(0, &finish, None).chunks);
        let message = |chunk: &Chunk| {
            let line: Value = serde_json::from_str(&chunk.data).expect("JSON");
            line["message"].clone()
        };
        let whole = json!(writer.whole());
        (
            chunks.iter().map(message).collect(),
            whole["message"].clone(),
        )
    }

    #[test]
    fn a_call_is_sent_in_one_line_when_it_is_whole() {
        let call = r#"<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>"#;
        let (start, end) = call.split_at(30);
        let (lines, whole) = messages(&["I look. ", start, end, "\n", call]);
        let calls = |message: &Value| -> Vec<Value> {
            let calls = message["tool_calls"].as_array().into_iter().flatten();
            calls.map(|call| call["function"].clone()).collect()
        };
        let expected =
            |index: usize| json!({ "index": index, "name": "f", "arguments": { "a": 1 } });
        assert_eq!(lines[0]["content"], "I look. ");
        let found: Vec<_> = lines.iter().flat_map(calls).collect();
        assert_eq!(found, [expected(0), expected(1)]);
        assert_eq!(calls(&whole), found);
        // A call that is cut off has no arguments.
        let (lines, whole) = messages(&[&call[..40]]);
        assert!(
            lines
                .iter()
                .chain([&whole])
                .all(|message| calls(message).is_empty())
        );
    }
}
