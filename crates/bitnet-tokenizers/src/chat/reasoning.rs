//! Separates a model's reasoning from its answer.

/// The tags around reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningTags {
    /// `<think>`
    pub begin: &'static str,
    /// `</think>`
    pub end: &'static str,
}

/// The tags that models use.
const TAGS: &[ReasoningTags] = &[
    ReasoningTags {
        begin: "<think>",
        end: "</think>",
    },
    ReasoningTags {
        begin: "<seed:think>",
        end: "</seed:think>",
    },
    ReasoningTags {
        begin: "[THINK]",
        end: "[/THINK]",
    },
    ReasoningTags {
        begin: "<|START_THINKING|>",
        end: "<|END_THINKING|>",
    },
    ReasoningTags {
        begin: "<thought>",
        end: "</thought>",
    },
    ReasoningTags {
        begin: "<reasoning>",
        end: "</reasoning>",
    },
];

/// Where an answer begins, as its prompt decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningStart {
    /// The model may open its reasoning with the tag.
    MayOpen,
    /// The prompt ends with the opening tag: the answer begins with reasoning.
    Open,
    /// The prompt ends with the closing tag: the answer has no reasoning.
    Closed,
}

impl ReasoningTags {
    /// The tags that a template writes or looks for.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        TAGS.iter().find(|tags| source.contains(tags.end)).copied()
    }

    /// Where the answer to `prompt` begins. White space at the end of `prompt` does not matter.
    pub fn start_after(self, prompt: &str) -> ReasoningStart {
        let prompt = prompt.trim_end();
        if prompt.ends_with(self.begin) {
            ReasoningStart::Open
        } else if prompt.ends_with(self.end) {
            ReasoningStart::Closed
        } else {
            ReasoningStart::MayOpen
        }
    }
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitText {
    /// Reasoning.
    Reasoning(String),
    /// The content of the answer.
    Content(String),
}

/// Splits an answer that arrives in pieces into reasoning and content.
///
/// The tags themselves, and white space around them, are in neither part.
#[derive(Clone, Debug)]
pub struct ReasoningSplitter {
    tags: ReasoningTags,
    place: Place,
    /// Text that cannot be classified until more text arrives.
    pending: String,
}

/// The position of the text so far within an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Only white space arrived so far.
    Start,
    /// White space after the opening tag may follow.
    BeforeReasoning,
    Reasoning,
    /// White space after the closing tag may follow.
    BeforeContent,
    Content,
}

impl ReasoningSplitter {
    /// A splitter for an answer to `prompt`, which may end with the opening tag.
    pub fn new(tags: ReasoningTags, prompt: &str) -> Self {
        let place = match tags.start_after(prompt) {
            ReasoningStart::Open => Place::BeforeReasoning,
            ReasoningStart::Closed => Place::BeforeContent,
            ReasoningStart::MayOpen => Place::Start,
        };
        Self {
            tags,
            place,
            pending: String::new(),
        }
    }

    /// Takes more text; returns the pieces that are classified now.
    pub fn push(&mut self, text: &str) -> Vec<SplitText> {
        self.pending.push_str(text);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    /// Whether the text so far ends in reasoning.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.place, Place::BeforeReasoning | Place::Reasoning)
    }

    /// Ends the answer; returns the held-back text.
    pub fn finish(&mut self) -> Vec<SplitText> {
        let rest = std::mem::take(&mut self.pending);
        match self.place {
            _ if rest.is_empty() => Vec::new(),
            Place::Start | Place::Content => vec![SplitText::Content(rest)],
            Place::Reasoning => {
                let rest = rest.trim_end().to_owned();
                let rest = Some(rest).filter(|rest| !rest.is_empty());
                rest.map(SplitText::Reasoning).into_iter().collect()
            }
            Place::BeforeReasoning | Place::BeforeContent => Vec::new(),
        }
    }

    /// Advances by one state; false if it needs more text.
    fn step(&mut self, out: &mut Vec<SplitText>) -> bool {
        match self.place {
            Place::Start => {
                let text = self.pending.trim_start();
                if text.starts_with(self.tags.begin) {
                    let begin = self.pending.len() - text.len() + self.tags.begin.len();
                    self.pending.drain(..begin);
                    self.place = Place::BeforeReasoning;
                } else if self.tags.begin.starts_with(text) {
                    return false;
                } else {
                    self.place = Place::Content;
                }
                true
            }
            Place::BeforeReasoning | Place::BeforeContent => {
                let text = self.pending.trim_start();
                self.pending = text.to_owned();
                if self.pending.is_empty() {
                    return false;
                }
                self.place = match self.place {
                    Place::BeforeReasoning => Place::Reasoning,
                    _ => Place::Content,
                };
                true
            }
            Place::Reasoning => self.reasoning(out),
            Place::Content => {
                if !self.pending.is_empty() {
                    out.push(SplitText::Content(std::mem::take(&mut self.pending)));
                }
                false
            }
        }
    }

    fn reasoning(&mut self, out: &mut Vec<SplitText>) -> bool {
        let end = self.pending.find(self.tags.end);
        let known = match end {
            Some(end) => &self.pending[..end],
            None => &self.pending[..self.pending.len() - held_back(&self.pending, self.tags.end)],
        };
        // This white space may directly precede the tag.
        let text = known.trim_end().to_owned();
        if !text.is_empty() {
            self.pending.drain(..text.len());
            out.push(SplitText::Reasoning(text));
        }
        if end.is_none() {
            return false;
        }
        let rest = self.pending.trim_start();
        self.pending = rest.strip_prefix(self.tags.end).unwrap_or(rest).to_owned();
        self.place = Place::BeforeContent;
        true
    }
}

/// The length of the longest suffix of `text` that is a prefix of `mark`.
fn held_back(text: &str, mark: &str) -> usize {
    let lengths = (1..mark.len().min(text.len() + 1)).rev();
    lengths
        .into_iter()
        .find(|&len| text.ends_with(&mark[..len]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reasoning and the content of `text` after `prompt`, cut into pieces of `size`
    /// characters.
    fn split(prompt: &str, text: &str, size: usize) -> (String, String) {
        let mut splitter = ReasoningSplitter::new(TAGS[0], prompt);
        let chars: Vec<char> = text.chars().collect();
        let pieces = chars
            .chunks(size)
            .map(|piece| piece.iter().collect::<String>());
        let mut parts: Vec<_> = pieces.flat_map(|piece| splitter.push(&piece)).collect();
        parts.extend(splitter.finish());
        let (mut reasoning, mut content) = (String::new(), String::new());
        for part in parts {
            match part {
                SplitText::Reasoning(text) => reasoning += &text,
                SplitText::Content(text) => content += &text,
            }
        }
        (reasoning, content)
    }

    #[test]
    fn reasoning_and_content_are_split_in_pieces_of_any_size() {
        let expect = |reasoning: &str, content: &str| (reasoning.to_owned(), content.to_owned());
        for size in 1..40 {
            let both = split(
                "",
                "<think>\na </th b\n\n c\n</think>\n\nHi <think>é ",
                size,
            );
            assert_eq!(both, expect("a </th b\n\n c", "Hi <think>é "), "{size}");
            let open = split(
                "<|im_start|>assistant\n<think>\n",
                "a\n</think>\n\nHi",
                size,
            );
            assert_eq!(open, expect("a", "Hi"), "{size}");
            let closed = split("<think>\n\n</think>\n\n", "Hi </think>", size);
            assert_eq!(closed, expect("", "Hi </think>"), "{size}");
            assert_eq!(
                split("", " Hi <think>", size),
                expect("", " Hi <think>"),
                "{size}"
            );
            assert_eq!(split("", "<think>a b", size), expect("a b", ""), "{size}");
            assert_eq!(split("", "<thin", size), expect("", "<thin"), "{size}");
        }
    }

    #[test]
    fn the_tags_come_from_the_template() {
        let begin = |source| ReasoningTags::of_template(source).map(|tags| tags.begin);
        assert_eq!(begin("{{ x.split('</think>') }}"), Some("<think>"));
        assert_eq!(begin("[THINK]{{ x }}[/THINK]"), Some("[THINK]"));
        assert_eq!(begin("{{ messages }}"), None);
    }
}
