//! [`MessageWriter`]: writes a message, and the events of its stream, from the parts of an answer.
//! The events add up to the whole message.

use bitnet_inference::{Finish, FinishReason, Token};
use sha2::{Digest, Sha256};

use crate::api::calls::Found;
use crate::api::messages::object::{
    BlockDelta, ContentBlock, MessageDelta, MessageErrorBody, MessageEvent, MessageObject,
};
use crate::api::reader::AnswerReader;
use crate::api::stream::{Chunk, ChunkFormat, ChunkUsage, End};
use crate::api::usage::Usage;
use crate::api::{ApiError, to_json};
use crate::id::random_id;

/// Writes a message.
pub(crate) struct MessageWriter {
    pub(crate) message: MessageObject,
    reader: AnswerReader,
    /// The texts that end the answer.
    stop_sequences: Vec<String>,
    request_id: String,
    /// Whether the last block can grow.
    is_open: bool,
    /// The arguments of the last block so far.
    arguments: String,
}

impl MessageWriter {
    pub(crate) fn new(
        message: MessageObject,
        reader: AnswerReader,
        stop_sequences: Vec<String>,
        request_id: String,
    ) -> Self {
        Self {
            message,
            reader,
            stop_sequences,
            request_id,
            is_open: false,
            arguments: String::new(),
        }
    }

    fn add(&mut self, found: Found) -> Vec<Chunk> {
        match found {
            Found::Text(text) => self.add_text(&text),
            Found::Reasoning(text) => self.add_thinking(&text),
            Found::Call { name, .. } => self.begin_block(ContentBlock::ToolUse {
                id: random_id("toolu_"),
                name,
                input: serde_json::Map::new(),
            }),
            Found::Arguments { text, .. } => {
                self.arguments.push_str(&text);
                vec![self.delta(BlockDelta::InputJson {
                    partial_json: &text,
                })]
            }
        }
    }

    fn add_all(&mut self, found: Vec<Found>) -> Vec<Chunk> {
        let parts = found.into_iter();
        parts.flat_map(|found| self.add(found)).collect()
    }

    fn add_text(&mut self, text: &str) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        if !self.is_open || !matches!(self.message.content.last(), Some(ContentBlock::Text { .. }))
        {
            chunks = self.begin_block(ContentBlock::Text {
                text: String::new(),
                citations: None,
            });
        }
        if let Some(ContentBlock::Text { text: whole, .. }) = self.message.content.last_mut() {
            whole.push_str(text);
        }
        chunks.push(self.delta(BlockDelta::Text { text }));
        chunks
    }

    fn add_thinking(&mut self, text: &str) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let last = self.message.content.last();
        if !self.is_open || !matches!(last, Some(ContentBlock::Thinking { .. })) {
            chunks = self.begin_block(ContentBlock::Thinking {
                thinking: String::new(),
                signature: String::new(),
            });
        }
        if let Some(ContentBlock::Thinking { thinking, .. }) = self.message.content.last_mut() {
            thinking.push_str(text);
        }
        chunks.push(self.delta(BlockDelta::Thinking { thinking: text }));
        chunks
    }

    /// Begins a block, after the end of the one before.
    fn begin_block(&mut self, block: ContentBlock) -> Vec<Chunk> {
        let mut chunks = self.end_block();
        chunks.push(chunk(&MessageEvent::ContentBlockStart {
            index: self.message.content.len(),
            content_block: &block,
        }));
        self.message.content.push(block);
        self.is_open = true;
        chunks
    }

    /// Ends the last block, if it can still grow.
    fn end_block(&mut self) -> Vec<Chunk> {
        if !std::mem::take(&mut self.is_open) {
            return Vec::new();
        }
        let arguments = std::mem::take(&mut self.arguments);
        let mut chunks = Vec::new();
        match self.message.content.last_mut() {
            Some(ContentBlock::ToolUse { input, .. }) => {
                // Arguments that were cut off are not JSON.
                *input = serde_json::from_str(&arguments).unwrap_or_default();
            }
            Some(ContentBlock::Thinking {
                thinking,
                signature,
            }) => {
                *signature = signature_of(thinking);
                let signature = signature.clone();
                chunks.push(self.delta(BlockDelta::Signature {
                    signature: &signature,
                }));
            }
            _ => {}
        }
        let index = self.message.content.len().saturating_sub(1);
        chunks.push(chunk(&MessageEvent::ContentBlockStop { index }));
        chunks
    }

    /// An addition to the last block.
    fn delta(&self, delta: BlockDelta<'_>) -> Chunk {
        let index = self.message.content.len().saturating_sub(1);
        chunk(&MessageEvent::ContentBlockDelta { index, delta })
    }

    fn stop_reason(&self, finish: &Finish) -> &'static str {
        match finish.reason {
            FinishReason::Length => "max_tokens",
            FinishReason::Context => "model_context_window_exceeded",
            FinishReason::Stop if self.reader.has_whole_calls() => "tool_use",
            FinishReason::Stop if finish.stop_string.is_some() => "stop_sequence",
            FinishReason::Stop => "end_turn",
        }
    }
}

/// The SHA-256 of a text in hexadecimal digits.
fn signature_of(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn chunk(event: &MessageEvent<'_>) -> Chunk {
    Chunk {
        event: Some(event.name()),
        data: to_json(event),
    }
}

impl ChunkFormat for MessageWriter {
    fn open(&mut self) -> Vec<Chunk> {
        vec![chunk(&MessageEvent::MessageStart {
            message: &self.message,
        })]
    }

    fn begin(&mut self, _: usize, _: ChunkUsage) -> Vec<Chunk> {
        Vec::new()
    }

    fn text(&mut self, _: usize, text: &str, token: Option<&Token>, _: ChunkUsage) -> Vec<Chunk> {
        let found = match token {
            Some(_) => self.reader.token(text),
            None => self.reader.text(text),
        };
        self.add_all(found)
    }

    fn end(&mut self, _: usize, finish: &Finish, _: ChunkUsage) -> End {
        let found = self.reader.finish();
        let mut chunks = self.add_all(found);
        chunks.extend(self.end_block());
        let reason = self.stop_reason(finish);
        self.message.stop_reason = Some(reason);
        let stop = finish.stop_string.filter(|_| reason == "stop_sequence");
        self.message.stop_sequence = stop.and_then(|at| self.stop_sequences.get(at).cloned());
        End {
            chunks,
            reason,
            reasoning_tokens: self.reader.num_reasoning_tokens(),
        }
    }

    async fn last(&mut self, usage: Usage) -> Vec<Chunk> {
        self.message.usage = usage.into();
        let delta = MessageDelta {
            stop_reason: self.message.stop_reason,
            stop_sequence: self.message.stop_sequence.as_deref(),
        };
        let usage = self.message.usage;
        vec![
            chunk(&MessageEvent::MessageDelta { delta, usage }),
            chunk(&MessageEvent::MessageStop),
        ]
    }

    async fn failed(&mut self, error: &ApiError) -> Vec<Chunk> {
        vec![Chunk {
            event: Some("error"),
            data: to_json(&MessageErrorBody::new(error, &self.request_id)),
        }]
    }
}
