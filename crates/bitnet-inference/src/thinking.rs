//! [`Thinking`]: limits a model's thinking before its answer, and lets a form begin after it.
//!
//! Once the budget is spent, the model's own tag closes the thinking, and the model answers. A
//! form, such as a grammar of JSON, holds for the answer only: thinking is free text.

use std::sync::Arc;

use bitnet_tokenizers::{EncodeOptions, ReasoningStart, ReasoningTags, TokenId, Tokenizer};

use crate::request::Constraint;
use crate::stop::TokenSet;

/// Maximum number of tokens of one character: one for each byte.
const CHARACTER_MAX: usize = 4;

/// The tokens that the tags around a model's thinking are made of.
#[derive(Clone)]
pub struct ThinkingMarks {
    tags: ReasoningTags,
    tokenizer: Arc<Tokenizer>,
    /// The opening and the closing tag, if each is one token of the vocabulary.
    begin: Option<TokenId>,
    end: Option<TokenId>,
    /// The empty line that templates write behind the closing tag, if it is one token.
    gap: Option<TokenId>,
    /// Ends thinking as templates write it: the closing tag on a line of its own, an empty line.
    closing: Vec<TokenId>,
}

impl ThinkingMarks {
    /// The marks of a model whose template has these tags.
    ///
    /// # Errors
    /// If the vocabulary cannot encode the tags.
    pub fn new(
        tags: ReasoningTags,
        tokenizer: Arc<Tokenizer>,
    ) -> Result<Self, bitnet_tokenizers::Error> {
        let options = EncodeOptions {
            add_special: false,
            parse_special: true,
        };
        let one = |text: &str| match tokenizer.encode(text, options)?[..] {
            [token] => Ok(Some(token)),
            _ => Ok(None),
        };
        Ok(Self {
            begin: one(tags.begin)?,
            end: one(tags.end)?,
            gap: one("\n\n")?,
            closing: tokenizer.encode(&format!("\n{}\n\n", tags.end), options)?,
            tags,
            tokenizer,
        })
    }

    /// Whether each tag is one token, so that a form can begin right behind the closing one.
    #[must_use]
    pub fn are_tokens(&self) -> bool {
        self.begin.is_some() && self.end.is_some()
    }
}

/// The constraint of an answer that may begin with thinking.
pub struct Thinking {
    marks: Arc<ThinkingMarks>,
    vocab_size: usize,
    /// Maximum number of tokens of thinking, without the closing tag.
    budget: Option<usize>,
    spent: usize,
    place: Place,
    /// The last bytes of the answer, as far as a tag or a character may still be incomplete.
    tail: Vec<u8>,
    /// The constraint of the answer behind the thinking.
    form: Option<Box<dyn Constraint>>,
    /// Tokens that end the answer. They are forbidden until the form has begun.
    stop_ids: TokenSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Only white space so far: the model may open its thinking.
    Start,
    Thinking,
    /// The budget is spent; this many tokens of the closing are written.
    Closing(usize),
    /// Right behind the closing tag, before a form.
    Gap,
    Answer,
}

impl Thinking {
    /// A constraint of tokens below `vocab_size` for an answer that begins at `start`.
    #[must_use]
    pub fn new(
        marks: Arc<ThinkingMarks>,
        start: ReasoningStart,
        vocab_size: usize,
        budget: Option<usize>,
    ) -> Self {
        let place = match start {
            ReasoningStart::MayOpen => Place::Start,
            ReasoningStart::Open => Place::Thinking,
            ReasoningStart::Closed => Place::Answer,
        };
        let mut this = Self {
            marks,
            vocab_size,
            budget,
            spent: 0,
            place,
            tail: Vec::new(),
            form: None,
            stop_ids: TokenSet::default(),
        };
        this.check_budget();
        this
    }

    /// The same with a form of the answer; `stop_ids` end the answer.
    ///
    /// Marks that are [no tokens](ThinkingMarks::are_tokens) leave no room for thinking: the form
    /// then holds from the beginning, unless the prompt has opened the thinking.
    #[must_use]
    pub fn before(mut self, form: Box<dyn Constraint>, stop_ids: &[TokenId]) -> Self {
        self.form = Some(form);
        self.stop_ids = TokenSet::new(stop_ids);
        if self.place == Place::Start && !self.marks.are_tokens() {
            self.place = Place::Answer;
        }
        self
    }

    /// Closes the thinking if its budget is spent. A character may be completed first.
    fn check_budget(&mut self) {
        let Some(budget) = self.budget else { return };
        let may_close = ends_whole(&self.tail) || self.spent >= budget + CHARACTER_MAX;
        if self.place == Place::Thinking && self.spent >= budget && may_close {
            self.place = Place::Closing(0);
        }
    }

    /// Takes a token of the beginning: white space, the opening tag, or the answer.
    fn begin(&mut self, token: TokenId) -> Result<(), String> {
        let is_tag = self.marks.begin == Some(token);
        if let (Some(form), false) = (&mut self.form, is_tag) {
            self.place = Place::Answer;
            return form.accept(token);
        }
        self.tail.extend(self.marks.tokenizer.token_bytes(token));
        let text = self.tail.trim_ascii_start();
        let tag = self.marks.tags.begin.as_bytes();
        if text.starts_with(tag) {
            self.tail = text[tag.len()..].to_owned();
            self.place = Place::Thinking;
            self.check_budget();
        } else if !tag.starts_with(text) {
            self.tail.clear();
            self.place = Place::Answer;
        }
        Ok(())
    }

    /// Takes a token of the thinking.
    fn think(&mut self, token: TokenId) -> Result<(), String> {
        self.tail.extend(self.marks.tokenizer.token_bytes(token));
        let tag = self.marks.tags.end.as_bytes();
        let mut windows = self.tail.windows(tag.len());
        if let Some(at) = windows.position(|window| window == tag) {
            let rest = self.tail[at + tag.len()..].trim_ascii();
            if !rest.is_empty() && self.form.is_some() {
                let tag = self.marks.tags.end;
                return Err(format!(
                    "a token has both {tag} and the beginning of the answer"
                ));
            }
            self.tail.clear();
            self.place = Place::Gap;
            return Ok(());
        }
        self.spent += 1;
        self.check_budget();
        let old = self.tail.len().saturating_sub(tag.len());
        self.tail.drain(..old);
        Ok(())
    }
}

/// Whether bytes end with a whole character of UTF-8, or with bytes that are none.
fn ends_whole(bytes: &[u8]) -> bool {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let first = tail.iter().rposition(|byte| byte & 0xC0 != 0x80);
    let Some(first) = first else { return true };
    let len = match tail[first] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    tail.len() - first >= len
}

impl Constraint for Thinking {
    fn is_free(&self) -> bool {
        self.form.is_none() && !matches!(self.place, Place::Closing(_))
    }

    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        match (self.place, &mut self.form) {
            (Place::Closing(written), _) => allowed.assign_one(self.marks.closing[written]),
            (Place::Thinking, _) => {
                allowed.fill(self.vocab_size);
                allowed.remove(&self.stop_ids);
            }
            (_, None) => allowed.fill(self.vocab_size),
            (place, Some(form)) => {
                form.allowed(allowed)?;
                let more = match place {
                    Place::Start => self.marks.begin,
                    Place::Gap => self.marks.gap,
                    _ => None,
                };
                more.into_iter().for_each(|token| allowed.insert(token));
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        match self.place {
            Place::Start => return self.begin(token),
            Place::Thinking => return self.think(token),
            Place::Closing(written) if written + 1 == self.marks.closing.len() => {
                self.place = Place::Answer;
            }
            Place::Closing(written) => self.place = Place::Closing(written + 1),
            Place::Gap | Place::Answer => {
                let is_gap = self.place == Place::Gap && self.marks.gap == Some(token);
                self.place = Place::Answer;
                if let (Some(form), false) = (&mut self.form, is_gap) {
                    return form.accept(token);
                }
            }
        }
        Ok(())
    }
}
