//! [`AnswerReader`]: an answer as it arrives, parsed into thinking, text and calls of tools.

use bitnet_tokenizers::{ReasoningSplitter, SplitText};

use crate::api::calls::{CallFinder, Found};

/// Parses one answer.
#[derive(Clone)]
pub(crate) struct AnswerReader {
    /// For models whose template has tags of thinking.
    splitter: Option<ReasoningSplitter>,
    /// For requests with tools.
    finder: Option<CallFinder>,
    /// Whether the client wants the thinking.
    shows_reasoning: bool,
    num_reasoning_tokens: usize,
}

impl AnswerReader {
    /// A reader of an answer from its first token on.
    pub(crate) fn new(
        splitter: Option<ReasoningSplitter>,
        finder: Option<CallFinder>,
        shows_reasoning: bool,
    ) -> Self {
        Self {
            splitter,
            finder,
            shows_reasoning,
            num_reasoning_tokens: 0,
        }
    }

    /// Parses the text of a token.
    pub(crate) fn token(&mut self, text: &str) -> Vec<Found> {
        let is_reasoning = |reader: &Self| {
            let splitter = reader.splitter.as_ref();
            splitter.is_some_and(ReasoningSplitter::is_reasoning)
        };
        let was_reasoning = is_reasoning(self);
        let found = self.text(text);
        self.num_reasoning_tokens += usize::from(was_reasoning || is_reasoning(self));
        found
    }

    /// Parses text that was held back until the end.
    pub(crate) fn text(&mut self, text: &str) -> Vec<Found> {
        let parts = match &mut self.splitter {
            Some(splitter) => splitter.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![SplitText::Content(text.to_owned())],
        };
        let mut found = Vec::new();
        self.read(parts, &mut found);
        found
    }

    /// Parses the end of the answer.
    pub(crate) fn finish(&mut self) -> Vec<Found> {
        let splitter = self.splitter.as_mut();
        let parts = splitter.map_or_else(Vec::new, ReasoningSplitter::finish);
        let mut found = Vec::new();
        self.read(parts, &mut found);
        if let Some(finder) = &mut self.finder {
            finder.finish(&mut found);
        }
        found
    }

    fn read(&mut self, parts: Vec<SplitText>, found: &mut Vec<Found>) {
        for part in parts {
            match (part, &mut self.finder) {
                (SplitText::Reasoning(text), _) if self.shows_reasoning => {
                    found.push(Found::Reasoning(text));
                }
                (SplitText::Reasoning(_), _) => {}
                (SplitText::Content(text), Some(finder)) => finder.push(&text, found),
                (SplitText::Content(text), None) => found.push(Found::Text(text)),
            }
        }
    }

    /// Whether the answer has calls of tools, and all of them are whole.
    pub(crate) fn has_whole_calls(&self) -> bool {
        let finder = self.finder.as_ref();
        finder.is_some_and(|finder| finder.num_calls() > 0 && !finder.is_cut())
    }

    /// Number of tokens of thinking, its tags included; `None` for a model that does not think.
    pub(crate) fn num_reasoning_tokens(&self) -> Option<usize> {
        self.splitter.as_ref().map(|_| self.num_reasoning_tokens)
    }
}
