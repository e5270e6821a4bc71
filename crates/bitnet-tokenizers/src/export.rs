//! Writes a tokenizer from a GGUF file as Hugging Face's files.
//!
//! Byte-level BPE keeps its form. SentencePiece becomes BPE with byte fallback, as in Hugging
//! Face's own converter: each split of a token into two other tokens is a merge, ordered by the
//! token's score.

use std::borrow::Cow;

use hashbrown::HashMap;
use serde::ser::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::error::{Error, Result, quoted};
use crate::json::TokenizerFiles;
use crate::pretokenize::{DEEPSEEK_3, Step};
use crate::spec::TokenizerSpec;
use crate::tokenizer::{Definition, ModelSettings, SpacePrefix, Tokenizer};
use crate::vocabulary::{Spelling, TokenKind};

impl TokenizerSpec<'_> {
    /// The tokenizer as tokenizer.json, tokenizer_config.json and generation_config.json.
    ///
    /// # Errors
    /// As [`Tokenizer::from_spec`], or if tokenizer.json cannot express it.
    pub fn to_files(&self) -> Result<TokenizerFiles> {
        let tokenizer = Tokenizer::from_spec(self)?; // which checks everything
        let definition = self.definition()?;
        let text = |id: Option<u32>| id.map(|id| &*definition.tokens[id as usize].0);
        let roles = &definition.roles;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": definition.add_bos && roles.bos.is_some(),
            "add_eos_token": definition.add_eos && roles.eos.is_some(),
            "bos_token": text(roles.bos),
            "eos_token": text(roles.eos),
            "unk_token": text(roles.unknown),
            "pad_token": text(roles.padding),
            "clean_up_tokenization_spaces": false,
            "chat_template": chat_templates(&definition),
        });
        let generation = json!({
            "bos_token_id": roles.bos,
            "eos_token_id": tokenizer.stop_ids(),
            "pad_token_id": roles.padding,
        });
        let file = File::of(&definition)?;
        Ok(TokenizerFiles {
            tokenizer: serde_json::to_string_pretty(&file).map_err(|source| Error::Json {
                file: "tokenizer.json",
                source,
            })?,
            tokenizer_config: Some(pretty(&config)),
            special_tokens_map: None,
            generation_config: Some(pretty(&generation)),
            chat_template: None,
            named_chat_templates: Vec::new(),
        })
    }
}

/// The template as a string; several as a list with their names.
fn chat_templates(definition: &Definition<'_>) -> Value {
    if definition.named_chat_templates.is_empty() {
        return json!(definition.chat_template);
    }
    let default = definition
        .chat_template
        .iter()
        .map(|source| ("default", &**source));
    let named = definition.named_chat_templates.iter();
    let all = default.chain(named.map(|(name, source)| (&**name, &**source)));
    all.map(|(name, source)| json!({"name": name, "template": source}))
        .collect()
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[derive(serde::Serialize)]
struct File<'a> {
    version: &'static str,
    truncation: Value,
    padding: Value,
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Model<'a>,
}

#[derive(serde::Serialize)]
struct Model<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: Value,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Value,
    end_of_word_suffix: Value,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "in_order")]
    vocab: Vec<(&'a str, usize)>,
    merges: Vec<Merge<'a>>,
}

/// A map that keeps its entries in the order of the ids, as readers expect.
fn in_order<S: Serializer>(
    entries: &[(&str, usize)],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().copied())
}

/// Two pieces that merge into one.
struct Merge<'a>(Cow<'a, str>, Cow<'a, str>);

impl Serialize for Merge<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let Self(left, right) = self;
        // Old readers know only the form with a space, which cannot express a piece that contains a
        // space.
        match left.contains(' ') || right.contains(' ') {
            true => (left, right).serialize(serializer),
            false => serializer.collect_str(&format_args!("{left} {right}")),
        }
    }
}

impl<'a> File<'a> {
    fn of(definition: &'a Definition<'_>) -> Result<Self> {
        let is_byte_level = definition.spelling == Spelling::ByteLevel;
        let vocab = vocab(definition, is_byte_level)?;
        let unknown = definition
            .roles
            .unknown
            .map(|id| &*definition.tokens[id as usize].0);
        let merges = match &definition.model {
            ModelSettings::Bpe(_) => definition
                .merges
                .split()?
                .into_iter()
                .map(|(a, b)| Merge(a, b))
                .collect(),
            ModelSettings::Spm(scores) => merges_of_scores(&definition.tokens, scores),
        };
        Ok(Self {
            version: "1.0",
            truncation: Value::Null,
            padding: Value::Null,
            added_tokens: added_tokens(definition),
            normalizer: if is_byte_level {
                Value::Null
            } else {
                escape_spaces(definition.space_prefix)
            },
            pre_tokenizer: if is_byte_level {
                byte_level_pre_tokenizer(&definition.pretokenizer)?
            } else {
                Value::Null
            },
            post_processor: post_processor(definition),
            decoder: if is_byte_level {
                byte_level(true)
            } else {
                unescape_spaces(definition.space_prefix)
            },
            model: Model {
                kind: "BPE",
                dropout: Value::Null,
                unk_token: unknown.filter(|_| !is_byte_level),
                continuing_subword_prefix: Value::Null,
                end_of_word_suffix: Value::Null,
                fuse_unk: !is_byte_level,
                byte_fallback: !is_byte_level,
                ignore_merges: matches!(&definition.model, ModelSettings::Bpe(settings) if settings.ignore_merges),
                vocab,
                merges,
            },
        })
    }
}

fn is_added(kind: TokenKind) -> bool {
    matches!(
        kind,
        TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined
    )
}

fn added_tokens(definition: &Definition<'_>) -> Vec<Value> {
    let tokens = definition.tokens.iter().enumerate();
    let added = tokens.filter(|(_, (_, kind))| is_added(*kind));
    let json = |(id, (text, kind)): (usize, &(Cow<'_, str>, TokenKind))| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": *kind != TokenKind::UserDefined})
    };
    added.map(json).collect()
}

/// The tokens of the vocabulary with their ids.
fn vocab<'a>(definition: &'a Definition<'_>, is_byte_level: bool) -> Result<Vec<(&'a str, usize)>> {
    let tokens = definition.tokens.iter().enumerate();
    // SentencePiece's own files also list their control tokens in the vocabulary.
    let listed = tokens.filter(|(_, (_, kind))| !(is_byte_level && is_added(*kind)));
    let vocab: Vec<(&str, usize)> = listed.map(|(id, (text, _))| (&**text, id)).collect();
    let mut seen = hashbrown::HashSet::with_capacity(vocab.len());
    if let Some((text, _)) = vocab.iter().find(|(text, _)| !seen.insert(*text)) {
        return Err(unsupported(format!(
            "two tokens that are both {}",
            quoted(text)
        )));
    }
    Ok(vocab)
}

/// All pairs of tokens whose union is a token, by the score of the union, then by the ids of the
/// two tokens.
fn merges_of_scores<'a>(tokens: &'a [(Cow<'_, str>, TokenKind)], scores: &[f32]) -> Vec<Merge<'a>> {
    let pieces = || {
        tokens
            .iter()
            .enumerate()
            .filter(|(_, (_, kind))| *kind == TokenKind::Normal)
    };
    let ids: HashMap<&str, usize> = pieces().map(|(id, (text, _))| (&**text, id)).collect();
    let mut merges = Vec::new();
    for (id, (text, _)) in pieces() {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&a), Some(&b)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[id], a, b, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    merges
        .into_iter()
        .map(|(.., left, right)| Merge(Cow::Borrowed(left), Cow::Borrowed(right)))
        .collect()
}

fn escape_spaces(prefix: SpacePrefix) -> Value {
    let escape = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let steps = if prefix == SpacePrefix::Never {
        vec![escape]
    } else {
        vec![prepend, escape]
    };
    json!({"type": "Sequence", "normalizers": steps})
}

fn unescape_spaces(prefix: SpacePrefix) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix != SpacePrefix::Never {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// All splits as expressions, then bytes to characters; GPT-2's own split is part of the latter.
fn byte_level_pre_tokenizer(steps: &[Step]) -> Result<Value> {
    if steps == [Step::Gpt2] {
        return Ok(byte_level(true));
    }
    let mut list = steps
        .iter()
        .map(|step| step_json(*step))
        .collect::<Result<Vec<_>>>()?;
    list.push(byte_level(false));
    Ok(json!({"type": "Sequence", "pretokenizers": list}))
}

/// Uses the terms of tokenizer.json.
fn step_json(step: Step) -> Result<Value> {
    let split = |pattern: &str| {
        Ok(
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
        )
    };
    let llama_3 = |digits: &str| {
        format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    match step {
        Step::Gpt2 => {
            split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
        }
        Step::Llama3 { max_digits: 3 } => split(&llama_3(r"\p{N}{1,3}")),
        Step::Llama3 { max_digits: 1 } => split(&llama_3(r"\p{N}")),
        Step::Qwen35 => split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        Step::PunctuationRuns { backtick: true } => split(r"[\p{P}\$\+<=>\^~\|`]+"),
        Step::PunctuationRuns { backtick: false } => split(r"[\p{P}\$\+<=>\^~\|]+"),
        Step::Punctuation => Ok(json!({"type": "Punctuation", "behavior": "Isolated"})),
        Step::NumberRuns => split(r"\p{N}+"),
        Step::NumbersByThree => split(r"\p{N}{1,3}"),
        Step::HanAndKana => split("[一-龥぀-ゟ゠-ヿ]+"),
        Step::DeepSeek3 => split(DEEPSEEK_3),
        Step::Numbers => split(r"\p{N}"),
        Step::AsciiDigits { count: 1 } => split("[0-9]"),
        Step::AsciiDigits { count: 3 } => split("[0-9][0-9][0-9]"),
        other => Err(unsupported(format!("the pre-tokenizing step {other:?}"))),
    }
}

/// Tokens before and after a text.
fn post_processor(definition: &Definition<'_>) -> Value {
    let id = |wanted: bool, id: Option<u32>| id.filter(|_| wanted);
    let before = id(definition.add_bos, definition.roles.bos);
    let after = id(definition.add_eos, definition.roles.eos);
    if before.is_none() && after.is_none() {
        return Value::Null;
    }
    let name = |id: u32| &*definition.tokens[id as usize].0;
    let special =
        |id: Option<u32>| id.map(|id| json!({"SpecialToken": {"id": name(id), "type_id": 0}}));
    let template = |texts: &[&str]| {
        let around = |text: &str| {
            let text = Some(json!({"Sequence": {"id": text, "type_id": 0}}));
            [special(before), text, special(after)]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
        };
        texts
            .iter()
            .flat_map(|text| around(text))
            .collect::<Vec<_>>()
    };
    let special_tokens = [before, after].into_iter().flatten().map(|id| {
        (
            name(id).to_owned(),
            json!({"id": name(id), "ids": [id], "tokens": [name(id)]}),
        )
    });
    json!({
        "type": "TemplateProcessing",
        "single": template(&["A"]),
        "pair": template(&["A", "B"]),
        "special_tokens": special_tokens.collect::<serde_json::Map<_, _>>(),
    })
}

fn unsupported(name: String) -> Error {
    Error::Unsupported {
        component: "tokenizer.json without",
        name,
    }
}
