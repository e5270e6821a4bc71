//! [`ResponseWriter`]: writes a response, and the events of its stream, from the parts of an
//! answer. The events add up to the whole response.

use std::sync::Arc;

use bitnet_inference::{Finish, FinishReason, Token};
use bitnet_tokenizers::Tokenizer;

use crate::api::calls::Found;
use crate::api::logprobs::TokenLogprob;
use crate::api::reader::AnswerReader;
use crate::api::responses::items::{Item, ItemKind};
use crate::api::responses::object::{
    IncompleteDetails, OutputItem, OutputPart, ResponseError, ResponseEvent, ResponseObject,
};
use crate::api::stream::{Chunk, ChunkFormat, ChunkUsage, End};
use crate::api::usage::Usage;
use crate::api::{ApiError, to_json};
use crate::clock::unix_time;
use crate::id::random_id;
use crate::store::{ResponseStore, RunningResponse, StoredResponse};

/// Writes a response.
pub(crate) struct ResponseWriter {
    pub(crate) response: ResponseObject,
    reader: AnswerReader,
    tokenizer: Option<Arc<Tokenizer>>,
    /// Events so far.
    num_events: u64,
    /// Whether the last item of the output can grow.
    is_open: bool,
    /// Log-probabilities of tokens whose text is held back.
    logprobs: Vec<TokenLogprob>,
    reason: FinishReason,
    keeping: Keeping,
}

/// How a response is kept.
pub(crate) struct Keeping {
    pub(crate) store: Arc<ResponseStore>,
    pub(crate) owner: Option<Arc<str>>,
    pub(crate) previous: Option<String>,
    /// The items of its own input.
    pub(crate) input: Vec<Item>,
    /// Lets clients cancel it until its end.
    pub(crate) _running: RunningResponse,
}

impl ResponseWriter {
    pub(crate) fn new(
        response: ResponseObject,
        reader: AnswerReader,
        tokenizer: Option<Arc<Tokenizer>>,
        keeping: Keeping,
    ) -> Self {
        Self {
            response,
            reader,
            tokenizer,
            num_events: 0,
            is_open: false,
            logprobs: Vec::new(),
            reason: FinishReason::Stop,
            keeping,
        }
    }

    /// An event about the whole response.
    fn of_response(&mut self, name: &'static str) -> Chunk {
        let event = ResponseEvent {
            r#type: name,
            response: Some(&self.response),
            ..ResponseEvent::default()
        };
        numbered(&mut self.num_events, event)
    }

    /// An event about the last item.
    fn of_item(&mut self, name: &'static str) -> Chunk {
        let event = ResponseEvent {
            r#type: name,
            output_index: self.response.output.len().checked_sub(1),
            item: self.response.output.last(),
            ..ResponseEvent::default()
        };
        numbered(&mut self.num_events, event)
    }

    /// An event within the last item.
    fn within_item<'e>(
        num_events: &mut u64,
        output: &'e [OutputItem],
        event: ResponseEvent<'e>,
    ) -> Chunk {
        let event = ResponseEvent {
            output_index: output.len().checked_sub(1),
            item_id: output.last().map(OutputItem::id),
            ..event
        };
        numbered(num_events, event)
    }

    /// Begins an item, after the end of the one before.
    fn begin_item(&mut self, item: OutputItem) -> Vec<Chunk> {
        let mut chunks = self.end_item("completed");
        self.response.output.push(item);
        self.is_open = true;
        chunks.push(self.of_item("response.output_item.added"));
        let part = match self.response.output.last() {
            Some(OutputItem::Message { .. }) => OutputPart::output_text(),
            Some(OutputItem::Reasoning { .. }) => OutputPart::ReasoningText {
                text: String::new(),
            },
            _ => return chunks,
        };
        let event = ResponseEvent {
            r#type: "response.content_part.added",
            content_index: Some(0),
            part: Some(&part),
            ..ResponseEvent::default()
        };
        chunks.push(Self::within_item(
            &mut self.num_events,
            &self.response.output,
            event,
        ));
        if let Some(OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. }) =
            self.response.output.last_mut()
        {
            content.push(part);
        }
        chunks
    }

    /// Ends the last item, if it can still grow.
    fn end_item(&mut self, status: &'static str) -> Vec<Chunk> {
        let logprobs = std::mem::take(&mut self.logprobs);
        let Some(item) = self.response.output.last_mut().filter(|_| self.is_open) else {
            return Vec::new();
        };
        self.is_open = false;
        item.set_status(status);
        if let OutputItem::Message { content, .. } = item
            && let Some(OutputPart::OutputText { logprobs: all, .. }) = content.last_mut()
        {
            all.extend(logprobs);
        }
        let mut chunks = self.done_events();
        chunks.push(self.of_item("response.output_item.done"));
        chunks
    }

    /// The events that repeat the contents of the last item.
    fn done_events(&mut self) -> Vec<Chunk> {
        let output = &self.response.output;
        let event = ResponseEvent::default();
        let events = match output.last() {
            Some(OutputItem::FunctionCall { arguments, .. }) => vec![ResponseEvent {
                r#type: "response.function_call_arguments.done",
                arguments: Some(arguments),
                ..event
            }],
            Some(OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. }) => {
                let part = content.last();
                let done = ResponseEvent {
                    content_index: Some(0),
                    text: part.map(OutputPart::text),
                    ..event
                };
                let done = match part {
                    Some(OutputPart::OutputText { logprobs, .. }) => ResponseEvent {
                        r#type: "response.output_text.done",
                        logprobs: Some(logprobs),
                        ..done
                    },
                    _ => ResponseEvent {
                        r#type: "response.reasoning_text.done",
                        ..done
                    },
                };
                let part = ResponseEvent {
                    r#type: "response.content_part.done",
                    content_index: Some(0),
                    part,
                    ..ResponseEvent::default()
                };
                vec![done, part]
            }
            None => Vec::new(),
        };
        let write = |event| Self::within_item(&mut self.num_events, output, event);
        events.into_iter().map(write).collect()
    }

    /// Adds a part of the answer.
    fn add(&mut self, found: Found) -> Vec<Chunk> {
        match found {
            Found::Text(text) => self.add_text(&text),
            Found::Reasoning(text) => self.add_reasoning(&text),
            Found::Call { name, .. } => {
                let item = OutputItem::FunctionCall {
                    id: self.next_id(ItemKind::FunctionCall),
                    status: "in_progress",
                    call_id: random_id("call_"),
                    name,
                    arguments: String::new(),
                };
                self.begin_item(item)
            }
            Found::Arguments { text, .. } => self.add_arguments(&text),
        }
    }

    fn next_id(&self, kind: ItemKind) -> String {
        kind.id(&self.response.id, self.response.output.len())
    }

    fn add_text(&mut self, text: &str) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        if !self.is_open
            || !matches!(
                self.response.output.last(),
                Some(OutputItem::Message { .. })
            )
        {
            let logprobs = std::mem::take(&mut self.logprobs);
            let item = OutputItem::Message {
                id: self.next_id(ItemKind::Message),
                status: "in_progress",
                role: "assistant",
                content: Vec::new(),
            };
            chunks = self.begin_item(item);
            self.logprobs = logprobs;
        }
        let logprobs = std::mem::take(&mut self.logprobs);
        let event = ResponseEvent {
            r#type: "response.output_text.delta",
            content_index: Some(0),
            delta: Some(text),
            logprobs: Some(&logprobs),
            ..ResponseEvent::default()
        };
        let output = &self.response.output;
        chunks.push(Self::within_item(&mut self.num_events, output, event));
        if let Some(OutputItem::Message { content, .. }) = self.response.output.last_mut()
            && let Some(OutputPart::OutputText {
                text: whole,
                logprobs: all,
                ..
            }) = content.last_mut()
        {
            whole.push_str(text);
            all.extend(logprobs);
        }
        chunks
    }

    fn add_reasoning(&mut self, text: &str) -> Vec<Chunk> {
        self.logprobs.clear();
        let last = self.response.output.last();
        let mut chunks = Vec::new();
        if !self.is_open || !matches!(last, Some(OutputItem::Reasoning { .. })) {
            let item = OutputItem::Reasoning {
                id: self.next_id(ItemKind::Reasoning),
                status: "in_progress",
                summary: Vec::new(),
                content: Vec::new(),
            };
            chunks = self.begin_item(item);
        }
        let event = ResponseEvent {
            r#type: "response.reasoning_text.delta",
            content_index: Some(0),
            delta: Some(text),
            ..ResponseEvent::default()
        };
        let output = &self.response.output;
        chunks.push(Self::within_item(&mut self.num_events, output, event));
        if let Some(OutputItem::Reasoning { content, .. }) = self.response.output.last_mut()
            && let Some(OutputPart::ReasoningText { text: whole }) = content.last_mut()
        {
            whole.push_str(text);
        }
        chunks
    }

    fn add_arguments(&mut self, text: &str) -> Vec<Chunk> {
        self.logprobs.clear();
        let event = ResponseEvent {
            r#type: "response.function_call_arguments.delta",
            delta: Some(text),
            ..ResponseEvent::default()
        };
        let output = &self.response.output;
        let chunk = Self::within_item(&mut self.num_events, output, event);
        if let Some(OutputItem::FunctionCall { arguments, .. }) = self.response.output.last_mut() {
            arguments.push_str(text);
        }
        vec![chunk]
    }

    fn add_all(&mut self, found: Vec<Found>) -> Vec<Chunk> {
        let parts = found.into_iter();
        parts.flat_map(|found| self.add(found)).collect()
    }

    /// Ends the response, and keeps it if the client wants that.
    async fn finish(&mut self, status: &'static str) {
        self.response.status = status;
        if status == "completed" {
            self.response.completed_at = Some(unix_time());
        }
        if !self.response.store {
            return;
        }
        let id = self.response.id.clone();
        let items = std::mem::take(&mut self.keeping.input)
            .into_iter()
            .enumerate();
        // Indexes of the output begin at 0, and indexes of the input far above.
        let items = items.map(|(index, item)| item.listed(&id, INPUT_INDEX + index));
        let stored = StoredResponse {
            owner: self.keeping.owner.as_deref().map(str::to_owned),
            previous: self.keeping.previous.clone(),
            response: to_json(&self.response),
            input: to_json(&items.collect::<Vec<_>>()),
            id,
        };
        self.keeping.store.insert(stored).await;
    }
}

/// The index of the first item of the input, in ids.
const INPUT_INDEX: usize = 0x8000;

/// Writes an event with the next number.
fn numbered(num_events: &mut u64, event: ResponseEvent<'_>) -> Chunk {
    let event = ResponseEvent {
        sequence_number: *num_events,
        ..event
    };
    *num_events += 1;
    Chunk {
        event: Some(event.r#type),
        data: to_json(&event),
    }
}

impl ChunkFormat for ResponseWriter {
    fn open(&mut self) -> Vec<Chunk> {
        let names = ["response.created", "response.in_progress"];
        names.map(|name| self.of_response(name)).into()
    }

    fn begin(&mut self, _: usize, _: ChunkUsage) -> Vec<Chunk> {
        Vec::new()
    }

    fn text(&mut self, _: usize, text: &str, token: Option<&Token>, _: ChunkUsage) -> Vec<Chunk> {
        let found = match token {
            Some(token) => {
                let tokenizer = self.tokenizer.as_deref();
                self.logprobs.extend(TokenLogprob::new(tokenizer, token));
                self.reader.token(text)
            }
            None => self.reader.text(text),
        };
        self.add_all(found)
    }

    fn end(&mut self, _: usize, finish: &Finish, _: ChunkUsage) -> End {
        let found = self.reader.finish();
        let mut chunks = self.add_all(found);
        if self.response.output.is_empty() {
            chunks.extend(self.add_text(""));
        }
        self.reason = finish.reason;
        let (status, reason) = match finish.reason {
            FinishReason::Stop if self.reader.has_whole_calls() => ("completed", "tool_calls"),
            FinishReason::Stop => ("completed", "stop"),
            FinishReason::Length | FinishReason::Context => ("incomplete", "length"),
        };
        chunks.extend(self.end_item(status));
        End {
            chunks,
            reason,
            reasoning_tokens: self.reader.num_reasoning_tokens(),
        }
    }

    async fn last(&mut self, usage: Usage) -> Vec<Chunk> {
        self.response.usage = Some(usage.into());
        let (status, name) = match self.reason {
            FinishReason::Stop => ("completed", "response.completed"),
            FinishReason::Length | FinishReason::Context => {
                let reason = "max_output_tokens";
                self.response.incomplete_details = Some(IncompleteDetails { reason });
                ("incomplete", "response.incomplete")
            }
        };
        self.finish(status).await;
        vec![self.of_response(name)]
    }

    async fn failed(&mut self, error: &ApiError) -> Vec<Chunk> {
        let mut chunks = self.end_item("incomplete");
        let status = match error.is_cancelled() {
            true => "cancelled",
            false => {
                let code = match error.code() {
                    "form_failed" => "invalid_prompt",
                    _ => "server_error",
                };
                let message = error.message().to_owned();
                self.response.error = Some(ResponseError { code, message });
                "failed"
            }
        };
        self.finish(status).await;
        chunks.push(self.of_response("response.failed"));
        chunks
    }
}
