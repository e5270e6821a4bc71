//! The tokenizer: text to ids, and ids to bytes.

use std::borrow::Cow;
use std::ops::Range;

use unicode_normalization::UnicodeNormalization;

use crate::bpe::{Bpe, BpeSettings, split_merge};
use crate::chat::rendered::RenderedChat;
use crate::detokenizer::{DecodeOptions, decode};
use crate::error::{Error, Result};
use crate::merge::Merger;
use crate::pretokenize::{self, Pieces, Step};
use crate::special::{SpecialToken, SpecialTokens};
use crate::spm::Spm;
use crate::token::TokenId;
use crate::vocabulary::{ESCAPED_SPACE, Spelling, TokenKind, Vocabulary};

/// The usual names of tokens that end a generation.
const STOP_NAMES: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<eos>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
];

/// Options for encoding a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Add the tokens before and after the text that the metadata requires: [`Tokenizer::bos`] and
    /// [`Tokenizer::eos`].
    pub add_special: bool,
    /// Read control tokens written out in the text (`<|eot_id|>`) as those tokens. Never set it for
    /// untrusted text: see [`Tokenizer::encode_chat`].
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    /// Adds the tokens that the metadata requires; control tokens in the text are plain text.
    fn default() -> Self {
        Self {
            add_special: true,
            parse_special: false,
        }
    }
}

/// Whether a prompt begins with BOS, the token that begins a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptBos {
    /// If the model's files ask for it ([`Tokenizer::adds_bos`]).
    #[default]
    AsModel,
    /// If the vocabulary has one.
    Always,
    /// Only if the text spells it out and control tokens are read as tokens.
    Never,
}

/// A vocabulary and the rules to encode text with it.
///
/// Deterministic, and immutable once built: share it between threads as an `Arc`.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    model: Model,
    special: SpecialTokens,
    nfc: bool,
    pretokenizer: Vec<Step>,
    space_prefix: SpacePrefix,
    roles: Roles,
    add_bos: bool,
    add_eos: bool,
    stop_ids: Vec<TokenId>,
    chat_template: Option<String>,
    named_chat_templates: Vec<(String, String)>,
}

enum Model {
    Bpe(Bpe),
    Spm(Spm),
}

/// When encoding adds a space before a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpacePrefix {
    Never,
    /// Before the first text, and each text after a special token.
    AfterSpecial {
        /// Whether a text that begins with a space gets no second one.
        unless_present: bool,
    },
    /// Before a text at the beginning of the input only.
    First {
        /// Whether a text that begins with a space gets no second one.
        unless_present: bool,
    },
}

/// The parts of a tokenizer, as the readers of its file formats produce them.
pub(crate) struct Definition<'a> {
    pub(crate) spelling: Spelling,
    /// In the order of their ids.
    pub(crate) tokens: Vec<(Cow<'a, str>, TokenKind)>,
    pub(crate) added: Vec<Added>,
    pub(crate) merges: Merges<'a>,
    pub(crate) model: ModelSettings,
    pub(crate) nfc: bool,
    pub(crate) pretokenizer: Vec<Step>,
    pub(crate) space_prefix: SpacePrefix,
    pub(crate) roles: Roles,
    pub(crate) add_bos: bool,
    /// Whether the file sets `add_bos`. A default does not apply where there is no such token.
    pub(crate) add_bos_is_explicit: bool,
    pub(crate) add_eos: bool,
    pub(crate) chat_template: Option<Cow<'a, str>>,
    /// Named templates.
    pub(crate) named_chat_templates: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

/// The rules for the text around a token, for tokens that have such rules.
pub(crate) struct Added {
    pub(crate) id: u32,
    pub(crate) strip_left: bool,
    pub(crate) strip_right: bool,
    pub(crate) single_word: bool,
    /// Whether to search for the token in normalized text.
    pub(crate) is_normalized: bool,
}

/// The merges of a BPE, best first.
pub(crate) enum Merges<'a> {
    /// Two pieces separated by a space.
    Joined(&'a [Cow<'a, str>]),
    Pairs(Vec<MergePair<'a>>),
}

/// Two pieces that merge into one.
pub(crate) type MergePair<'a> = (Cow<'a, str>, Cow<'a, str>);

impl Merges<'_> {
    /// All merges as pairs.
    pub(crate) fn split(&self) -> Result<Vec<MergePair<'_>>> {
        let borrowed = |(left, right)| (Cow::Borrowed(left), Cow::Borrowed(right));
        match self {
            Self::Joined(merges) => merges
                .iter()
                .enumerate()
                .map(|(index, merge)| split_merge(index, merge).map(borrowed))
                .collect(),
            Self::Pairs(pairs) => Ok(pairs
                .iter()
                .map(|(left, right)| borrowed((&**left, &**right)))
                .collect()),
        }
    }
}

pub(crate) enum ModelSettings {
    Bpe(BpeSettings),
    /// The scores, one for each token.
    Spm(Vec<f32>),
}

/// The ids of the tokens with a role.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roles {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) eot: Option<u32>,
    pub(crate) eom: Option<u32>,
    pub(crate) unknown: Option<u32>,
    pub(crate) padding: Option<u32>,
    /// Further tokens that end a generation.
    pub(crate) stop: Vec<u32>,
}

impl Roles {
    fn check(&self, vocab_size: usize) -> Result<()> {
        let named = [
            ("bos token", self.bos),
            ("eos token", self.eos),
            ("eot token", self.eot),
            ("eom token", self.eom),
            ("unknown token", self.unknown),
            ("padding token", self.padding),
        ];
        let named = named
            .into_iter()
            .filter_map(|(what, id)| id.map(|id| (what, id)));
        let stop = self.stop.iter().map(|&id| ("stop token", id));
        match named.chain(stop).find(|&(_, id)| id as usize >= vocab_size) {
            Some((what, id)) => Err(Error::IdOutOfRange {
                what,
                id,
                vocab_size,
            }),
            None => Ok(()),
        }
    }
}

impl Tokenizer {
    pub(crate) fn build(mut definition: Definition<'_>) -> Result<Self> {
        let vocab_size = definition.tokens.len();
        for (text, kind) in &mut definition.tokens {
            if STOP_NAMES.contains(&&**text) {
                *kind = TokenKind::Control;
            }
        }
        let tokens = definition
            .tokens
            .iter()
            .map(|(text, kind)| (&**text, *kind));
        let mut vocabulary = Vocabulary::new(definition.spelling, tokens)?;
        definition.roles.check(vocab_size)?;
        let unknown = definition.roles.unknown;
        let model = match definition.model {
            ModelSettings::Spm(scores) => Model::Spm(Spm::new(&scores, unknown)),
            ModelSettings::Bpe(settings) => Model::Bpe(match &definition.merges {
                Merges::Joined(merges) => {
                    let pairs = merges
                        .iter()
                        .enumerate()
                        .map(|(index, merge)| split_merge(index, merge));
                    Bpe::new(&mut vocabulary, pairs, settings, unknown)?
                }
                Merges::Pairs(pairs) => {
                    let pairs = pairs.iter().map(|(left, right)| Ok((&**left, &**right)));
                    Bpe::new(&mut vocabulary, pairs, settings, unknown)?
                }
            }),
        };
        let special = special_tokens(&definition.tokens, &definition.added);
        let add_bos = resolve_added(
            "bos",
            definition.add_bos,
            definition.add_bos_is_explicit,
            definition.roles.bos,
        )?;
        let add_eos = resolve_added("eos", definition.add_eos, true, definition.roles.eos)?;
        Ok(Self {
            stop_ids: stop_ids(&definition.roles, &special),
            vocabulary,
            model,
            special,
            nfc: definition.nfc,
            pretokenizer: definition.pretokenizer,
            space_prefix: definition.space_prefix,
            roles: definition.roles,
            add_bos,
            add_eos,
            chat_template: definition.chat_template.map(Cow::into_owned),
            named_chat_templates: definition
                .named_chat_templates
                .into_iter()
                .map(|(name, source)| (name.into_owned(), source.into_owned()))
                .collect(),
        })
    }

    /// The tokens of a text.
    ///
    /// User-defined tokens in the text always match, as in llama.cpp and Hugging Face; control
    /// tokens and the unknown token match only with [`EncodeOptions::parse_special`], otherwise
    /// they are plain text. At each position the longest token matches. Time and memory are at most
    /// proportional to `text.len() · log(text.len())`.
    ///
    /// # Errors
    /// If the text is longer than 4 GiB, or has a character that the vocabulary cannot encode.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<TokenId>> {
        let mut out = Vec::with_capacity(text.len() / 4 + 2);
        let bos = self
            .roles
            .bos
            .filter(|_| options.add_special && self.add_bos);
        let eos = self
            .roles
            .eos
            .filter(|_| options.add_special && self.add_eos);
        out.extend(bos.map(TokenId));
        self.encode_into(text, &mut out, |_, _| options.parse_special)?;
        out.extend(eos.map(TokenId));
        Ok(out)
    }

    /// The tokens of a prompt: a text that a model is to continue. Adds no EOS, and BOS at most
    /// once: not if the text begins with it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(
        &self,
        text: &str,
        bos: PromptBos,
        parse_special: bool,
    ) -> Result<Vec<TokenId>> {
        let options = EncodeOptions {
            add_special: false,
            parse_special,
        };
        let mut out = self.encode(text, options)?;
        self.put_bos_first(bos, &mut out);
        Ok(out)
    }

    fn put_bos_first(&self, wanted: PromptBos, tokens: &mut Vec<TokenId>) {
        let is_wanted = match wanted {
            PromptBos::Never => false,
            PromptBos::AsModel => self.add_bos,
            PromptBos::Always => true,
        };
        if let Some(bos) = self.bos().filter(|_| is_wanted)
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
    }

    /// The tokens of a rendered chat, with the control tokens of its template and none from its
    /// contents.
    ///
    /// Text from a message is plain text wherever the template puts it: the name of a control token
    /// in it is encoded as characters. BOS comes first if the metadata requires it and the template
    /// has not written it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_chat(&self, chat: &RenderedChat) -> Result<Vec<TokenId>> {
        let mut out = Vec::with_capacity(chat.text().len() / 4 + 2);
        self.encode_into(chat.text(), &mut out, |start, end| {
            let guards = chat.guards();
            let next = guards.partition_point(|guard| guard.end <= start);
            guards.get(next).is_none_or(|guard| end <= guard.start)
        })?;
        self.put_bos_first(PromptBos::AsModel, &mut out);
        Ok(out)
    }

    /// Appends the tokens of `text`; `allowed(start, end)`: whether a control token may match
    /// there.
    fn encode_into(
        &self,
        text: &str,
        out: &mut Vec<TokenId>,
        allowed: impl Fn(usize, usize) -> bool,
    ) -> Result<()> {
        // One byte for the added space.
        let max = u32::MAX as usize - 1;
        if text.len() > max {
            return Err(Error::TooLarge {
                what: "the text",
                len: text.len(),
                max,
            });
        }
        let mut scratch = Scratch::default();
        let mut start = 0;
        let allowed = |token: &SpecialToken, place: usize| {
            let end = place + token.text.len();
            (!token.is_guarded() || allowed(place, end))
                && (!token.single_word || is_whole_word(text, place..end))
        };
        while let Some((token, place)) = self.special.find(text, start, allowed) {
            let before = &text[start..place];
            let before = if token.strip_left {
                before.trim_end()
            } else {
                before
            };
            self.encode_plain(before, start == 0, &mut scratch, out)?;
            out.push(TokenId(token.id));
            start = place + token.text.len();
            if token.strip_right {
                start = text.len() - text[start..].trim_start().len();
            }
        }
        self.encode_plain(&text[start..], start == 0, &mut scratch, out)
    }

    /// Appends the tokens of text between special tokens or the ends.
    fn encode_plain(
        &self,
        text: &str,
        at_start: bool,
        scratch: &mut Scratch,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        if self.nfc && !unicode_normalization::is_nfc(text) {
            let text: String = text.nfc().collect();
            return self.encode_composed(&text, at_start, scratch, out);
        }
        self.encode_words(text, at_start, scratch, out)
    }

    /// Appends the tokens of text that has just become NFC, with the user-defined tokens that match
    /// in such text.
    fn encode_composed(
        &self,
        text: &str,
        at_start: bool,
        scratch: &mut Scratch,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        let mut start = 0;
        let allowed = |token: &SpecialToken, place: usize| {
            let range = place..place + token.text.len();
            token.is_normalized
                && !token.is_guarded()
                && (!token.single_word || is_whole_word(text, range))
        };
        while let Some((token, place)) = self.special.find(text, start, allowed) {
            self.encode_words(&text[start..place], at_start && start == 0, scratch, out)?;
            out.push(TokenId(token.id));
            start = place + token.text.len();
        }
        self.encode_words(&text[start..], at_start && start == 0, scratch, out)
    }

    /// Appends the tokens of text without special tokens.
    fn encode_words(
        &self,
        text: &str,
        at_start: bool,
        scratch: &mut Scratch,
        out: &mut Vec<TokenId>,
    ) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let text = self.normalized(text, at_start);
        let (vocabulary, merger) = (&self.vocabulary, &mut scratch.merger);
        match &self.model {
            Model::Spm(spm) => spm.encode_text(vocabulary, text.as_bytes(), merger, out),
            Model::Bpe(bpe) => {
                let pieces = scratch.pieces.cut(&text, &self.pretokenizer);
                pieces.iter().try_for_each(|piece| {
                    bpe.encode_word(vocabulary, &text.as_bytes()[piece.clone()], merger, out)
                })
            }
        }
    }

    fn normalized<'a>(&self, text: &'a str, at_start: bool) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        // These vocabularies do not distinguish a space from the sign for a space.
        if self.vocabulary.spelling() == Spelling::SpaceEscaped && text.contains(ESCAPED_SPACE) {
            text = Cow::Owned(text.replace(ESCAPED_SPACE, " "));
        }
        let prefixed = match self.space_prefix {
            SpacePrefix::Never => false,
            SpacePrefix::AfterSpecial { unless_present } => {
                !(unless_present && text.starts_with(' '))
            }
            SpacePrefix::First { unless_present } => {
                at_start && !(unless_present && text.starts_with(' '))
            }
        };
        if prefixed {
            Cow::Owned(format!(" {text}"))
        } else {
            text
        }
    }

    /// The text of tokens; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[TokenId], options: DecodeOptions) -> String {
        decode(self, tokens, options)
    }

    /// The bytes of a token, which need not be whole characters; empty for an id outside the
    /// vocabulary.
    ///
    /// The bytes of a control token are its name.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        if self.vocabulary.has(id.0) {
            self.vocabulary.piece(id.0)
        } else {
            &[]
        }
    }

    /// The kind of a token; ids outside the vocabulary are [`TokenKind::Unused`].
    pub fn kind(&self, id: TokenId) -> TokenKind {
        self.vocabulary.kind(id.0)
    }

    /// Whether a token is a control token or the unknown token, which have no text.
    pub fn is_special(&self, id: TokenId) -> bool {
        matches!(self.kind(id), TokenKind::Control | TokenKind::Unknown)
    }

    /// The number of tokens. A model's embedding may have more rows, never fewer.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The special token (control, user-defined or unknown) with this text.
    pub fn special_token(&self, text: &str) -> Option<TokenId> {
        self.special.get(text).map(|token| TokenId(token.id))
    }

    /// The token that begins a text, if the vocabulary names one.
    pub fn bos(&self) -> Option<TokenId> {
        self.roles.bos.map(TokenId)
    }

    /// The token that ends a text, if the vocabulary names one.
    pub fn eos(&self) -> Option<TokenId> {
        self.roles.eos.map(TokenId)
    }

    /// The token for text that the vocabulary cannot encode, if it names one.
    pub fn unknown(&self) -> Option<TokenId> {
        self.roles.unknown.map(TokenId)
    }

    /// The padding token, if the vocabulary names one.
    pub fn padding(&self) -> Option<TokenId> {
        self.roles.padding.map(TokenId)
    }

    /// Whether encoding adds [`bos`](Self::bos) before a text.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// The tokens that end a generation, ascending: the tokens that the metadata names (EOS, end of
    /// turn, end of message) and tokens with one of the usual names, such as `<|eot_id|>`,
    /// `<|im_end|>` or `</s>`.
    pub fn stop_ids(&self) -> &[TokenId] {
        &self.stop_ids
    }

    /// The same tokenizer, but exactly these tokens end an answer. Ignores ids outside the
    /// vocabulary.
    #[must_use]
    pub fn with_stop_ids(mut self, mut ids: Vec<TokenId>) -> Self {
        let tokens = self.vocab_size();
        ids.retain(|id| (id.0 as usize) < tokens);
        ids.sort_unstable();
        ids.dedup();
        self.stop_ids = ids;
        self
    }

    /// The Jinja chat template of this tokenizer's file.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// A further chat template of the file by its name, such as `tool_use`.
    pub fn named_chat_template(&self, name: &str) -> Option<&str> {
        let mut templates = self.named_chat_templates.iter();
        templates
            .find(|(other, _)| other == name)
            .map(|(_, source)| source.as_str())
    }

    /// The names of the file's further chat templates.
    pub fn chat_template_names(&self) -> impl Iterator<Item = &str> {
        self.named_chat_templates
            .iter()
            .map(|(name, _)| name.as_str())
    }

    /// The kind of tokenizer, for people: `byte-level BPE`, `BPE with byte fallback` or
    /// `SentencePiece`.
    pub fn model_name(&self) -> &'static str {
        match (&self.model, self.vocabulary.spelling()) {
            (Model::Spm(_), _) => "SentencePiece",
            (Model::Bpe(_), Spelling::ByteLevel) => "byte-level BPE",
            (Model::Bpe(_), Spelling::SpaceEscaped) => "BPE with byte fallback",
        }
    }

    /// The pre-tokenizer by its name in GGUF files; `none` if text is not split, `custom` if it has
    /// no name.
    pub fn pretokenizer_name(&self) -> &'static str {
        if self.pretokenizer.is_empty() {
            return "none";
        }
        pretokenize::name_of(&self.pretokenizer).unwrap_or("custom")
    }

    /// Whether decoding removes the space that encoding adds first.
    pub(crate) fn has_space_prefix(&self) -> bool {
        self.space_prefix != SpacePrefix::Never
    }
}

/// Buffers kept from word to word.
#[derive(Default)]
struct Scratch {
    pieces: Pieces,
    merger: Merger,
}

fn resolve_added(
    what: &'static str,
    add: bool,
    is_explicit: bool,
    id: Option<u32>,
) -> Result<bool> {
    match id {
        None if add && is_explicit => Err(Error::MissingToken { what }),
        None => Ok(false),
        Some(_) => Ok(add),
    }
}

fn special_tokens(tokens: &[(Cow<'_, str>, TokenKind)], added: &[Added]) -> SpecialTokens {
    let is_special = |kind| {
        matches!(
            kind,
            TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown
        )
    };
    let special = tokens
        .iter()
        .enumerate()
        .filter(|(_, (_, kind))| is_special(*kind));
    let mut special: Vec<_> = special
        .map(|(id, (text, kind))| SpecialToken {
            id: id as u32,
            text: (**text).into(),
            kind: *kind,
            strip_left: false,
            strip_right: false,
            single_word: false,
            is_normalized: false,
        })
        .collect();
    for added in added {
        if let Ok(index) = special.binary_search_by_key(&added.id, |token| token.id) {
            special[index].strip_left = added.strip_left;
            special[index].strip_right = added.strip_right;
            special[index].single_word = added.single_word;
            special[index].is_normalized = added.is_normalized;
        }
    }
    SpecialTokens::new(special)
}

fn stop_ids(roles: &Roles, special: &SpecialTokens) -> Vec<TokenId> {
    let named = STOP_NAMES
        .iter()
        .filter_map(|name| special.get(name))
        .map(|token| token.id);
    let roles = [roles.eos, roles.eot, roles.eom]
        .into_iter()
        .flatten()
        .chain(roles.stop.iter().copied());
    let mut ids: Vec<_> = roles.chain(named).map(TokenId).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Whether no word character is next to the range.
fn is_whole_word(text: &str, range: Range<usize>) -> bool {
    !text[..range.start]
        .chars()
        .next_back()
        .is_some_and(pretokenize::is_word)
        && !text[range.end..]
            .chars()
            .next()
            .is_some_and(pretokenize::is_word)
}
