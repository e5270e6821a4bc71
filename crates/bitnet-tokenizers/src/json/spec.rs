//! From a [`Definition`] to the metadata of a GGUF file.

use std::borrow::Cow;

use super::components::unsupported;
use crate::error::Result;
use crate::pretokenize;
use crate::spec::TokenizerSpec;
use crate::tokenizer::{Definition, MergePair, Merges, ModelSettings, SpacePrefix};
use crate::vocabulary::{Spelling, TokenKind};

/// The metadata of a GGUF file for `architecture` that means the same as a definition.
///
/// # Errors
/// If GGUF has no name for the rules.
pub(super) fn to_spec<'a>(
    definition: Definition<'a>,
    architecture: &'a str,
) -> Result<TokenizerSpec<'a>> {
    let is_byte_level = definition.spelling == Spelling::ByteLevel;
    let ModelSettings::Bpe(settings) = definition.model else {
        unreachable!("tokenizer.json gives BPE only")
    };
    let Merges::Pairs(pairs) = definition.merges else {
        unreachable!("tokenizer.json gives pairs only")
    };
    let pre = match pretokenize::name_of(&definition.pretokenizer) {
        Some("llama-bpe") if !settings.ignore_merges => "dbrx",
        Some(name) => name,
        None if is_byte_level => {
            return Err(unsupported("pre_tokenizer", "without a name in GGUF"));
        }
        None => "default",
    };
    let tokens = definition.tokens.iter();
    let token_types = tokens.map(|(_, kind)| *kind as i32).collect();
    let unless_byte_level = |value| (!is_byte_level).then_some(value);
    Ok(TokenizerSpec {
        architecture: Cow::Borrowed(architecture),
        model: Cow::Borrowed(if is_byte_level { "gpt2" } else { "llama" }),
        pre: Some(Cow::Borrowed(pre)),
        scores: if is_byte_level {
            Vec::new()
        } else {
            scores(&definition.tokens, &pairs)
        },
        token_types,
        merges: match is_byte_level {
            true => pairs
                .iter()
                .map(|(left, right)| Cow::Owned(format!("{left} {right}")))
                .collect(),
            false => Vec::new(),
        },
        tokens: definition
            .tokens
            .into_iter()
            .map(|(text, _)| text)
            .collect(),
        bos: definition.roles.bos,
        eos: definition.roles.eos,
        eot: None,
        eom: None,
        unknown: definition.roles.unknown,
        padding: definition.roles.padding,
        add_bos: Some(definition.add_bos && definition.roles.bos.is_some()),
        add_eos: Some(definition.add_eos),
        add_space_prefix: unless_byte_level(definition.space_prefix != SpacePrefix::Never),
        chat_template: definition.chat_template,
        named_chat_templates: definition.named_chat_templates,
    })
}

/// A score for each token: the negated rank of the first merge that produces it, or a score below
/// all ranks if no merge does.
fn scores(tokens: &[(Cow<'_, str>, TokenKind)], merges: &[MergePair<'_>]) -> Vec<f32> {
    let mut ranks = hashbrown::HashMap::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |(text, _): &(Cow<'_, str>, TokenKind)| {
        -(ranks.get(&**text).copied().unwrap_or(merges.len()) as f32)
    };
    tokens.iter().map(score).collect()
}
