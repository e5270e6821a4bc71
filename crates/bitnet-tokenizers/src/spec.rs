//! A tokenizer's metadata in a GGUF file, and the rules for absent keys.

use std::borrow::Cow;

use crate::bpe::BpeSettings;
use crate::error::{Error, Result, quoted};
use crate::pretokenize;
use crate::tokenizer::{Definition, Merges, ModelSettings, Roles, SpacePrefix, Tokenizer};
use crate::vocabulary::{Spelling, TokenKind, byte_of_name};

/// A tokenizer as the `tokenizer.*` metadata of a GGUF file describes it; absent keys are `None` or
/// empty.
///
/// Ids are positions in `tokens`. An id of `u32::MAX` (the −1 of some converters) counts as absent.
#[derive(Clone, Debug, Default)]
pub struct TokenizerSpec<'a> {
    /// `general.architecture`: decides the meaning of an absent `pre`.
    pub architecture: Cow<'a, str>,
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: Cow<'a, str>,
    /// `tokenizer.ggml.pre`, the pre-tokenizer of a byte-level BPE.
    ///
    /// If it is absent, as in the official BitNet file, a BitNet architecture means `llama-bpe` and
    /// any other means `default`, as in llama.cpp.
    pub pre: Option<Cow<'a, str>>,
    /// `tokenizer.ggml.tokens`: byte-level tokens in their alphabet, SentencePiece's with `▁` for a
    /// space.
    pub tokens: Vec<Cow<'a, str>>,
    /// `tokenizer.ggml.scores`, one per token. Byte-level BPE does not use them.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, one per token, the numbers of [`TokenKind`].
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: two pieces and a space between them, best first.
    pub merges: Vec<Cow<'a, str>>,
    /// `tokenizer.ggml.bos_token_id`
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`
    pub padding: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; absent, true for `llama` and for `llama-bpe`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`; absent, false.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`, of SentencePiece; absent, true.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`
    pub chat_template: Option<Cow<'a, str>>,
    /// `tokenizer.chat_template.NAME` for each NAME of `tokenizer.chat_templates`, with its name.
    pub named_chat_templates: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

/// Whether `general.architecture` is one of BitNet's.
pub(crate) fn is_bitnet_architecture(name: &str) -> bool {
    name == "bitnet" || is_bitnet_b158_architecture(name)
}

/// Whether `general.architecture` is a name of BitNet b1.58 2B4T.
pub(crate) fn is_bitnet_b158_architecture(name: &str) -> bool {
    matches!(
        name,
        "bitnet-b1.58" | "bitnet_b1_58" | "bitnet-25" | "bitnet25" | "bitnet158"
    )
}

impl Tokenizer {
    /// Builds a tokenizer from GGUF metadata.
    ///
    /// Loading the 128,256 tokens and 280,147 merges of Llama 3 takes some tens of milliseconds and
    /// about 20 MB.
    ///
    /// # Errors
    /// If the metadata is invalid: an unsupported model or pre-tokenizer, lists of different
    /// lengths, ids outside the vocabulary, merges that are not pairs. The error names the culprit.
    /// Never panics for any metadata.
    pub fn from_spec(spec: &TokenizerSpec<'_>) -> Result<Self> {
        Self::build(spec.definition()?)
    }
}

impl TokenizerSpec<'_> {
    /// The meaning of the metadata; ids are not checked yet.
    pub(crate) fn definition(&self) -> Result<Definition<'_>> {
        let vocab_size = self.tokens.len();
        check_len("tokenizer.ggml.scores", self.scores.len(), vocab_size)?;
        check_len(
            "tokenizer.ggml.token_type",
            self.token_types.len(),
            vocab_size,
        )?;
        match &*self.model {
            "gpt2" => byte_level(self),
            "llama" => Ok(sentence_piece(self)),
            name => Err(Error::UnsupportedModel { name: quoted(name) }),
        }
    }
}

fn check_len(what: &'static str, len: usize, vocab_size: usize) -> Result<()> {
    match len {
        0 => Ok(()),
        len if len == vocab_size => Ok(()),
        len => Err(Error::LengthMismatch {
            what,
            len,
            vocab_size,
        }),
    }
}

fn byte_level<'a>(spec: &'a TokenizerSpec<'_>) -> Result<Definition<'a>> {
    let name = match &spec.pre {
        Some(name) => &**name,
        None if is_bitnet_architecture(&spec.architecture) => "llama-bpe",
        None => "default",
    };
    let steps = pretokenize::named(name).ok_or_else(|| Error::UnsupportedPretokenizer {
        name: quoted(name),
        supported: pretokenize::supported_names(),
    })?;
    if spec.merges.is_empty() && has_long_tokens(spec) {
        return Err(Error::NoMerges {
            vocab_size: spec.tokens.len(),
        });
    }
    let is_llama_3 = matches!(
        name,
        "llama-bpe" | "llama3" | "llama-v3" | "pixtral" | "lfm2"
    );
    let settings = BpeSettings {
        ignore_merges: is_llama_3,
        ..BpeSettings::default()
    };
    Ok(Definition {
        merges: Merges::Joined(&spec.merges),
        model: ModelSettings::Bpe(settings),
        pretokenizer: steps.to_vec(),
        ..common(spec, Spelling::ByteLevel, is_llama_3)
    })
}

/// Whether a vocabulary has tokens of text that only merges make.
fn has_long_tokens(spec: &TokenizerSpec<'_>) -> bool {
    let is_text = |id: usize| spec.token_types.get(id).is_none_or(|kind| *kind == 1);
    let mut tokens = spec.tokens.iter().enumerate();
    tokens.any(|(id, token)| is_text(id) && token.chars().nth(1).is_some())
}

fn sentence_piece<'a>(spec: &'a TokenizerSpec<'_>) -> Definition<'a> {
    let vocab_size = spec.tokens.len();
    let mut definition = Definition {
        model: ModelSettings::Spm(if spec.scores.is_empty() {
            vec![0.0; vocab_size]
        } else {
            spec.scores.clone()
        }),
        space_prefix: match spec.add_space_prefix {
            Some(false) => SpacePrefix::Never,
            _ => SpacePrefix::AfterSpecial {
                unless_present: false,
            },
        },
        ..common(spec, Spelling::SpaceEscaped, true)
    };
    // SentencePiece's own ids, which old files do not state.
    for (role, id) in [
        (&mut definition.roles.unknown, 0),
        (&mut definition.roles.bos, 1),
        (&mut definition.roles.eos, 2),
    ] {
        if role.is_none() && id < vocab_size {
            *role = Some(id as u32);
        }
    }
    definition
}

fn common<'a>(spec: &'a TokenizerSpec<'_>, spelling: Spelling, add_bos: bool) -> Definition<'a> {
    let kind = |id: usize, text: &str| match spec.token_types.get(id) {
        Some(&number) => TokenKind::from_gguf(number),
        None if spelling == Spelling::SpaceEscaped && byte_of_name(text).is_some() => {
            TokenKind::Byte
        }
        None => TokenKind::Normal,
    };
    let tokens = spec.tokens.iter().enumerate();
    let present = |id: Option<u32>| id.filter(|&id| id != u32::MAX);
    Definition {
        spelling,
        tokens: tokens
            .map(|(id, text)| (Cow::Borrowed(&**text), kind(id, text)))
            .collect(),
        added: Vec::new(),
        merges: Merges::Pairs(Vec::new()),
        model: ModelSettings::Bpe(BpeSettings::default()),
        nfc: false,
        pretokenizer: Vec::new(),
        space_prefix: SpacePrefix::Never,
        roles: Roles {
            bos: present(spec.bos),
            eos: present(spec.eos),
            eot: present(spec.eot),
            eom: present(spec.eom),
            unknown: present(spec.unknown),
            padding: present(spec.padding),
            stop: Vec::new(),
        },
        add_bos: spec.add_bos.unwrap_or(add_bos),
        add_bos_is_explicit: spec.add_bos.is_some(),
        add_eos: spec.add_eos.unwrap_or(false),
        chat_template: spec.chat_template.as_deref().map(Cow::Borrowed),
        named_chat_templates: spec.named_chat_templates.clone(),
    }
}
