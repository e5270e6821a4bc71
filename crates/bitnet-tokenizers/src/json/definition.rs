//! From the files to a [`Definition`]: tokens, merges, special tokens and templates.

use std::borrow::Cow;

use super::components::{Components, template_tokens, unsupported};
use super::config::{Config, Named};
use super::files::{TOKENIZER, TokenizerFiles};
use super::format::{AddedToken, File, Merge, ModelFile, Text};
use crate::bpe::{BpeSettings, split_merge};
use crate::error::{Error, Result, quoted};
use crate::tokenizer::{Added, Definition, MergePair, Merges, ModelSettings, Roles};
use crate::vocabulary::{Spelling, TokenKind, byte_of_name};

/// The tokenizer that the files define.
pub(super) fn definition(files: &TokenizerFiles) -> Result<Definition<'_>> {
    let file: File<'_> = serde_json::from_str(&files.tokenizer).map_err(|source| Error::Json {
        file: TOKENIZER,
        source,
    })?;
    check_model(&file.model)?;
    let components = Components::read(&file)?;
    let tokens = tokens(&file, components.spelling)?;
    let unknown = unknown_token(&file.model, &tokens)?;
    let config = Config::read(files)?;
    let (roles, [has_before, has_after]) = roles(&file, &config, &tokens, unknown)?;
    let model = &file.model;
    let settings = BpeSettings {
        ignore_merges: model.ignore_merges,
        fuse_unknown: model.fuse_unk,
    };
    let (chat_template, named_chat_templates) = chat_templates(files, &config);
    Ok(Definition {
        spelling: components.spelling,
        added: added(&file),
        merges: Merges::Pairs(merges(file.model.merges)?),
        model: ModelSettings::Bpe(settings),
        nfc: components.nfc,
        pretokenizer: components.steps,
        space_prefix: components.space_prefix,
        add_bos: has_before,
        add_bos_is_explicit: false,
        add_eos: has_after && roles.eos.is_some(),
        chat_template,
        named_chat_templates,
        roles,
        tokens,
    })
}

type Tokens<'a> = [(Cow<'a, str>, TokenKind)];

fn id_of(tokens: &Tokens<'_>, text: &str) -> Option<u32> {
    tokens
        .iter()
        .rposition(|(token, _)| token == text)
        .map(|id| id as u32)
}

/// The token for text that the vocabulary cannot spell, if the model names one.
fn unknown_token(model: &ModelFile<'_>, tokens: &Tokens<'_>) -> Result<Option<u32>> {
    let Some(token) = &model.unk_token else {
        return Ok(None);
    };
    let id = id_of(tokens, token).ok_or_else(|| Error::UnknownToken {
        what: "unk_token",
        token: quoted(token),
    })?;
    Ok(Some(id))
}

/// The special tokens, and whether the post-processor puts a token before and after a text.
fn roles(
    file: &File<'_>,
    config: &Config,
    tokens: &Tokens<'_>,
    unknown: Option<u32>,
) -> Result<(Roles, [bool; 2])> {
    let id_of = |text: &str| id_of(tokens, text);
    let role = |name| match config.token(name)? {
        None => Ok(None),
        Some(token) => match id_of(&token) {
            Some(id) => Ok(Some(id)),
            // A configuration may name tokens that its vocabulary never had.
            None if name == "pad_token" || name == "unk_token" => Ok(None),
            None => Err(Error::UnknownToken {
                what: name,
                token: quoted(&token),
            }),
        },
    };
    let (bos, eos) = (role("bos_token")?, role("eos_token")?);
    let (before, after) = template_tokens(&file.post_processor)?;
    // The tokens that the post-processor puts around a text are BOS and EOS.
    let roles = Roles {
        bos: before.as_deref().and_then(id_of).or(bos),
        eos: after.as_deref().and_then(id_of).or(eos),
        unknown: unknown.map_or_else(|| role("unk_token"), |id| Ok(Some(id)))?,
        padding: role("pad_token")?,
        stop: config.stop_ids(),
        ..Roles::default()
    };
    Ok((roles, [before.is_some(), after.is_some()]))
}

/// The added tokens that match text in a way of their own.
fn added(file: &File<'_>) -> Vec<Added> {
    let added = file.added_tokens.iter().filter_map(|token| {
        let AddedToken {
            lstrip: strip_left,
            rstrip: strip_right,
            single_word,
            normalized: is_normalized,
            ..
        } = *token;
        (strip_left || strip_right || single_word || is_normalized).then_some(Added {
            id: token.id as u32,
            strip_left,
            strip_right,
            single_word,
            is_normalized,
        })
    });
    sorted_by_id(added.collect())
}

/// The template and the named templates. Template files replace the configuration's templates.
fn chat_templates<'a>(
    files: &'a TokenizerFiles,
    config: &Config,
) -> (Option<Cow<'a, str>>, Named<'a>) {
    if files.chat_template.is_some() || !files.named_chat_templates.is_empty() {
        let named = files.named_chat_templates.iter();
        let named = named.map(|(name, source)| (Cow::from(name), Cow::from(source)));
        return (
            files.chat_template.as_deref().map(Cow::Borrowed),
            named.collect(),
        );
    }
    let mut named = config.chat_templates();
    let default = named.iter().position(|(name, _)| name == "default");
    let default = default.map(|index| named.remove(index).1);
    (default, named)
}

fn sorted_by_id(mut added: Vec<Added>) -> Vec<Added> {
    added.sort_by_key(|token| token.id);
    added
}

fn check_model(model: &ModelFile<'_>) -> Result<()> {
    let kind = model.kind.as_ref().map_or("BPE", |Text(kind)| kind);
    if kind != "BPE" {
        return Err(unsupported("model", kind));
    }
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if is_set(&model.continuing_subword_prefix) {
        return Err(unsupported("model", "BPE with continuing_subword_prefix"));
    }
    if is_set(&model.end_of_word_suffix) {
        return Err(unsupported("model", "BPE with end_of_word_suffix"));
    }
    if model.dropout.is_some_and(|dropout| dropout > 0.0) {
        return Err(unsupported("model", "BPE with dropout"));
    }
    Ok(())
}

/// The tokens in the order of their ids, including the added tokens.
fn tokens<'a>(file: &File<'a>, spelling: Spelling) -> Result<Vec<(Cow<'a, str>, TokenKind)>> {
    let Some(vocab) = &file.model.vocab.0 else {
        return Err(unsupported("model", "BPE with a list for a vocabulary"));
    };
    let count = vocab.len() + file.added_tokens.len();
    let added = file
        .added_tokens
        .iter()
        .map(|token| (&token.content.0, token.id));
    let highest = vocab
        .iter()
        .map(|(token, id)| (token, *id))
        .chain(added)
        .max_by_key(|&(_, id)| id);
    let Some((token, id)) = highest else {
        return Err(Error::NoTokens);
    };
    // Ids may have gaps, but a table of all ids must not be much larger than the file.
    if id >= count as u64 * 2 + 1024 {
        return Err(Error::SparseIds {
            token: quoted(token),
            id,
            count,
        });
    }
    let mut tokens = vec![(Cow::Borrowed(""), TokenKind::Unused); id as usize + 1];
    for (token, id) in vocab {
        let is_byte = spelling == Spelling::SpaceEscaped
            && file.model.byte_fallback
            && byte_of_name(token).is_some();
        let kind = if is_byte {
            TokenKind::Byte
        } else {
            TokenKind::Normal
        };
        tokens[*id as usize] = (token.clone(), kind);
    }
    let unknown = file.model.unk_token.as_deref();
    for token in &file.added_tokens {
        let kind = match token.special {
            true if unknown == Some(&*token.content.0) => TokenKind::Unknown,
            true => TokenKind::Control,
            false => TokenKind::UserDefined,
        };
        tokens[token.id as usize] = (token.content.0.clone(), kind);
    }
    Ok(tokens)
}

fn merges(merges: Vec<Merge<'_>>) -> Result<Vec<MergePair<'_>>> {
    let pair = |(index, merge)| match merge {
        Merge::Joined(Cow::Borrowed(text)) => split_merge(index, text)
            .map(|(left, right)| (Cow::Borrowed(left), Cow::Borrowed(right))),
        Merge::Joined(Cow::Owned(text)) => split_merge(index, &text)
            .map(|(left, right)| (Cow::Owned(left.into()), Cow::Owned(right.into()))),
        Merge::Pair(left, right) if left.is_empty() || right.is_empty() => Err(Error::BadMerge {
            index,
            merge: quoted(&format!("{left} {right}")),
        }),
        Merge::Pair(left, right) => Ok((left, right)),
    };
    merges.into_iter().enumerate().map(pair).collect()
}
