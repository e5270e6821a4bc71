//! Hugging Face's JSON files: tokenizer.json and the configurations beside it.
//!
//! Byte-level BPE (Llama 3, Falcon 3, Qwen) and SentencePiece written as BPE with byte fallback
//! (Llama 2, Gemma) are supported; any other component causes an error that names it.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::bpe::{BpeSettings, split_merge};
use crate::error::{Error, Result, quoted};
use crate::pretokenize::{self, DEEPSEEK_3, Step};
use crate::sentencepiece::{self, TOKENIZER_MODEL};
use crate::spec::TokenizerSpec;
use crate::tokenizer::{
    Added, Definition, MergePair, Merges, ModelSettings, Roles, SpacePrefix, Tokenizer,
};
use crate::vocabulary::{ESCAPED_SPACE, Spelling, TokenKind, byte_of_name};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
const MORE_CHAT_TEMPLATES: &str = "additional_chat_templates";

/// Maximum size in bytes of tokenizer.json, and of each other file.
const MAX_BYTES: [u64; 2] = [256 << 20, 16 << 20];

/// The contents of a tokenizer's files; all but the first are optional.
#[derive(Clone, Debug, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`: the vocabulary and the rules.
    pub tokenizer: String,
    /// `tokenizer_config.json`: BOS, EOS and whether they are added, and the chat template.
    pub tokenizer_config: Option<String>,
    /// `special_tokens_map.json`: BOS and EOS, if the configuration does not name them.
    pub special_tokens_map: Option<String>,
    /// `generation_config.json`: the tokens that end a generation.
    pub generation_config: Option<String>,
    /// `chat_template.jinja`, which has priority over the template in the configuration.
    pub chat_template: Option<String>,
    /// `additional_chat_templates/NAME.jinja`: further templates, sorted by NAME. If there is one,
    /// the templates in the configuration are not read.
    pub named_chat_templates: Vec<(String, String)>,
}

impl TokenizerFiles {
    /// Whether a directory has a file that [`read`](Self::read) takes the vocabulary from.
    pub fn exist_in(directory: &Path) -> bool {
        let mut names = [TOKENIZER, TOKENIZER_MODEL].iter();
        names.any(|name| directory.join(name).exists())
    }

    /// Reads the files of a directory. Without a `tokenizer.json`, a `tokenizer.model` of
    /// SentencePiece becomes what transformers makes of it.
    ///
    /// # Errors
    /// If the vocabulary or another existing file cannot be read, is too large or is not UTF-8, or
    /// something in a `tokenizer.model` is not supported.
    pub fn read(directory: &Path) -> Result<Self> {
        let beside = |name| if_found(read_text(directory, name, MAX_BYTES[1]));
        let mut tokenizer_config = beside(CONFIG)?;
        let text = if_found(read_text(directory, TOKENIZER, MAX_BYTES[0]));
        let tokenizer = match text? {
            Some(text) => text,
            None if directory.join(TOKENIZER_MODEL).exists() => {
                let bytes = read(directory, TOKENIZER_MODEL, MAX_BYTES[1])?;
                let (tokenizer, config) =
                    sentencepiece::to_json(&bytes, tokenizer_config.as_deref())?;
                tokenizer_config = Some(config);
                tokenizer
            }
            None => read_text(directory, TOKENIZER, MAX_BYTES[0])?,
        };
        Ok(Self {
            tokenizer,
            tokenizer_config,
            special_tokens_map: beside(SPECIAL_TOKENS_MAP)?,
            generation_config: beside(GENERATION_CONFIG)?,
            chat_template: beside(CHAT_TEMPLATE)?,
            named_chat_templates: named_chat_templates(&directory.join(MORE_CHAT_TEMPLATES))?,
        })
    }

    /// The tokenizer as a GGUF file would describe it, for `architecture`.
    ///
    /// SentencePiece's scores are not in tokenizer.json; each token gets the negated rank of the
    /// first merge that produces it, which orders merges the same way.
    ///
    /// # Errors
    /// As [`Tokenizer::from_files`], or if GGUF has no name for the rules.
    pub fn to_spec<'a>(&'a self, architecture: &'a str) -> Result<TokenizerSpec<'a>> {
        to_spec(definition(self)?, architecture)
    }
}

impl Tokenizer {
    /// Builds a tokenizer from a directory with a `tokenizer.json` or a `tokenizer.model`.
    ///
    /// # Errors
    /// As [`TokenizerFiles::read`] and [`from_files`](Self::from_files).
    pub fn from_dir(directory: &Path) -> Result<Self> {
        Self::from_files(&TokenizerFiles::read(directory)?)
    }

    /// Builds a tokenizer from the contents of Hugging Face's files.
    ///
    /// BOS and EOS are added to texts as the post-processor of tokenizer.json says. As in
    /// transformers 5, `add_bos_token` and `add_eos_token` of the configuration are not read. An
    /// added token that is `special` becomes a control token, another a user-defined one.
    ///
    /// # Errors
    /// If a component is not supported or a file cannot be parsed; the error names it.
    pub fn from_files(files: &TokenizerFiles) -> Result<Self> {
        Self::build(definition(files)?)
    }
}

/// `None` for a file that does not exist.
fn if_found(text: Result<String>) -> Result<Option<String>> {
    match text {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

fn read_text(directory: &Path, name: &str, max_bytes: u64) -> Result<String> {
    let not_utf8 = |error: std::string::FromUtf8Error| Error::Io {
        path: directory.join(name),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, error.utf8_error()),
    };
    String::from_utf8(read(directory, name, max_bytes)?).map_err(not_utf8)
}

fn read(directory: &Path, name: &str, max_bytes: u64) -> Result<Vec<u8>> {
    let path = directory.join(name);
    let length = std::fs::metadata(&path).and_then(|metadata| match metadata.len() {
        len if len <= max_bytes => Ok(()),
        len => Err(std::io::Error::other(format!(
            "it has {len} bytes, the maximum is {max_bytes}"
        ))),
    });
    length
        .and_then(|()| std::fs::read(&path))
        .map_err(|source| Error::Io { path, source })
}

/// The files of the folder `NAME.jinja`, if there is such a folder.
fn named_chat_templates(directory: &Path) -> Result<Vec<(String, String)>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            let path = directory.to_owned();
            return Err(Error::Io { path, source });
        }
    };
    let mut templates = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| Error::Io {
            path: directory.to_owned(),
            source,
        })?;
        let file_name = path.file_name();
        let Some(name) = file_name
            .to_str()
            .and_then(|name| name.strip_suffix(".jinja"))
        else {
            continue;
        };
        let template = read_text(directory, &format!("{name}.jinja"), MAX_BYTES[1])?;
        templates.push((name.to_owned(), template));
    }
    templates.sort();
    Ok(templates)
}

// ---- the shape of tokenizer.json ----

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow, default)]
    added_tokens: Vec<AddedToken<'a>>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(borrow)]
    model: ModelFile<'a>,
}

#[derive(Deserialize)]
struct AddedToken<'a> {
    id: u64,
    #[serde(borrow)]
    content: Text<'a>,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    /// Whether to search for the token in normalized text.
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct ModelFile<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    vocab: Vocab<'a>,
    #[serde(borrow, default)]
    merges: Vec<Merge<'a>>,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// A string that borrows from the file unless it has escapes.
struct Text<'a>(Cow<'a, str>);

/// The tokens and their ids; `None` for a list, which models other than BPE have.
struct Vocab<'a>(Option<Vec<(Cow<'a, str>, u64)>>);

/// A merge as `"a b"` or `["a", "b"]`.
enum Merge<'a> {
    Joined(Cow<'a, str>),
    Pair(Cow<'a, str>, Cow<'a, str>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor).map(Self)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabVisitor).map(Self)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = Option<Vec<(Cow<'de, str>, u64)>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from tokens to ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((Text(token), id)) = map.next_entry()? {
            entries.push((token, id));
        }
        Ok(Some(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a merge: \"a b\" or [\"a\", \"b\"]")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Merge::Joined(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Merge::Joined(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let too_short = |len| serde::de::Error::invalid_length(len, &self);
        let Text(left) = list.next_element()?.ok_or_else(|| too_short(0))?;
        let Text(right) = list.next_element()?.ok_or_else(|| too_short(1))?;
        match list.next_element::<IgnoredAny>()? {
            None => Ok(Merge::Pair(left, right)),
            Some(_) => Err(serde::de::Error::invalid_length(3, &self)),
        }
    }
}

// ---- from the files to a definition ----

fn definition(files: &TokenizerFiles) -> Result<Definition<'_>> {
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

type Named<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

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

fn unsupported(component: &'static str, name: impl Into<String>) -> Error {
    Error::Unsupported {
        component,
        name: quoted(&name.into()),
    }
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

// ---- normalizer, pre_tokenizer, decoder, post_processor ----

/// The combined rules of the components around the model.
struct Components {
    spelling: Spelling,
    nfc: bool,
    space_prefix: SpacePrefix,
    steps: Vec<Step>,
}

impl Components {
    fn read(file: &File<'_>) -> Result<Self> {
        let is_byte_level = |component: &Value, list: &str| {
            members(component, list)
                .iter()
                .any(|member| kind_of(member) == "ByteLevel")
        };
        let spelling = if is_byte_level(&file.pre_tokenizer, "pretokenizers")
            || is_byte_level(&file.decoder, "decoders")
        {
            Spelling::ByteLevel
        } else if file.model.byte_fallback || file.decoder.to_string().contains(ESCAPED_SPACE) {
            Spelling::SpaceEscaped
        } else {
            return Err(unsupported(
                "model",
                "BPE that is neither byte-level nor SentencePiece-like",
            ));
        };
        let mut this = Self {
            spelling,
            nfc: false,
            space_prefix: SpacePrefix::Never,
            steps: Vec::new(),
        };
        for normalizer in members(&file.normalizer, "normalizers") {
            this.add_normalizer(normalizer)?;
        }
        for pre_tokenizer in members(&file.pre_tokenizer, "pretokenizers") {
            this.add_pre_tokenizer(pre_tokenizer)?;
        }
        for decoder in members(&file.decoder, "decoders") {
            match kind_of(decoder) {
                "ByteLevel" | "Replace" | "ByteFallback" | "Fuse" | "Strip" | "Metaspace" => {}
                name => return Err(unsupported("decoder", name)),
            }
        }
        Ok(this)
    }

    fn add_normalizer(&mut self, normalizer: &Value) -> Result<()> {
        let escapes = self.spelling == Spelling::SpaceEscaped;
        let content = normalizer["content"].as_str();
        match kind_of(normalizer) {
            "NFC" => self.nfc = true,
            "Prepend" if escapes && normalizer["prepend"] == "▁" => {
                self.space_prefix = SpacePrefix::AfterSpecial {
                    unless_present: false,
                };
            }
            "Replace"
                if escapes && normalizer["pattern"]["String"] == " " && content == Some("▁") => {}
            name => return Err(unsupported("normalizer", name)),
        }
        Ok(())
    }

    fn add_pre_tokenizer(&mut self, pre_tokenizer: &Value) -> Result<()> {
        let flag = |name: &str, default: bool| pre_tokenizer[name].as_bool().unwrap_or(default);
        let after_bytes = self.steps.iter().any(|step| step.cuts_bytes());
        let byte_level = self.spelling == Spelling::ByteLevel;
        let step = match kind_of(pre_tokenizer) {
            "ByteLevel" if byte_level => {
                if flag("add_prefix_space", true) {
                    if !self.steps.is_empty() {
                        return Err(unsupported(
                            "pre_tokenizer",
                            "ByteLevel with add_prefix_space after others",
                        ));
                    }
                    self.space_prefix = SpacePrefix::AfterSpecial {
                        unless_present: true,
                    };
                }
                flag("use_regex", true).then_some(Step::Gpt2)
            }
            "Split" if byte_level => Some(split_step(pre_tokenizer)?),
            "Punctuation" if byte_level => match pre_tokenizer["behavior"].as_str() {
                Some("Contiguous") => Some(Step::PunctuationRuns { backtick: true }),
                None | Some("Isolated") => Some(Step::Punctuation),
                Some(name) => {
                    return Err(unsupported("pre_tokenizer", format!("Punctuation {name}")));
                }
            },
            "Digits" if byte_level => Some(
                match (self.reads_mapped_bytes(), flag("individual_digits", false)) {
                    (true, individual) => Step::ByteDigits { individual },
                    (false, true) => Step::Numbers,
                    (false, false) => Step::NumberRuns,
                },
            ),
            "Metaspace" if !byte_level => self.metaspace_step(pre_tokenizer)?,
            // The normalizer has replaced spaces by "▁", so there is nothing to split at.
            "Split" if !byte_level && pre_tokenizer["pattern"]["String"] == " " => None,
            name => return Err(unsupported("pre_tokenizer", name)),
        };
        match step {
            Some(step) if after_bytes && !step.reads_bytes() => Err(unsupported(
                "pre_tokenizer",
                format!("{} after Digits", kind_of(pre_tokenizer)),
            )),
            step => {
                self.steps.extend(step);
                Ok(())
            }
        }
    }

    /// Whether a ByteLevel component came earlier, so that later components see bytes as characters
    /// of its alphabet.
    fn reads_mapped_bytes(&self) -> bool {
        self.steps.contains(&Step::Gpt2)
    }

    fn metaspace_step(&mut self, pre_tokenizer: &Value) -> Result<Option<Step>> {
        if pre_tokenizer["replacement"]
            .as_str()
            .is_some_and(|sign| sign != "▁")
        {
            return Err(unsupported(
                "pre_tokenizer",
                "Metaspace with another replacement than ▁",
            ));
        }
        let adds_space = pre_tokenizer["add_prefix_space"].as_bool().unwrap_or(true);
        self.space_prefix = match pre_tokenizer["prepend_scheme"].as_str() {
            Some("never") => SpacePrefix::Never,
            Some("first") => SpacePrefix::First {
                unless_present: true,
            },
            Some("always") => SpacePrefix::AfterSpecial {
                unless_present: true,
            },
            None if adds_space => SpacePrefix::AfterSpecial {
                unless_present: true,
            },
            None => SpacePrefix::Never,
            Some(name) => {
                return Err(unsupported(
                    "pre_tokenizer",
                    format!("Metaspace prepending {name}"),
                ));
            }
        };
        Ok(pre_tokenizer["split"]
            .as_bool()
            .unwrap_or(true)
            .then_some(Step::BeforeSpaces))
    }
}

/// The step of a `Split` by one of the published expressions.
fn split_step(split: &Value) -> Result<Step> {
    let Some(pattern) = split["pattern"]["Regex"].as_str() else {
        return Err(unsupported(
            "pre_tokenizer",
            format!("Split by {}", split["pattern"]),
        ));
    };
    let step = match pattern {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        | r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        | r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)" => Step::Gpt2,
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        | r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+" => {
            Step::Llama3 { max_digits: 3 }
        }
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        | r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+" => {
            Step::Llama3 { max_digits: 1 }
        }
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        | r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+" => {
            Step::Qwen35
        }
        r"[\p{P}\$\+<=>\^~\|`]+" => Step::PunctuationRuns { backtick: true },
        r"[\p{P}\$\+<=>\^~\|]+" => Step::PunctuationRuns { backtick: false },
        r"[0-9][0-9][0-9]" | r"[0-9]{3}" => Step::AsciiDigits { count: 3 },
        r"[0-9]" => Step::AsciiDigits { count: 1 },
        r"\p{N}" => Step::Numbers,
        r"\p{N}+" => Step::NumberRuns,
        r"\p{N}{1,3}" => Step::NumbersByThree,
        "[一-龥぀-ゟ゠-ヿ]+" => Step::HanAndKana,
        DEEPSEEK_3 => Step::DeepSeek3,
        _ => {
            return Err(unsupported(
                "pre_tokenizer",
                format!("Split by {pattern:?}"),
            ));
        }
    };
    let covers_all = matches!(step, Step::Gpt2 | Step::Llama3 { .. } | Step::Qwen35);
    match (
        split["behavior"].as_str(),
        split["invert"].as_bool().unwrap_or(false),
    ) {
        (Some("Isolated"), _) => Ok(step),
        (Some("Removed"), true) if covers_all => Ok(step),
        (behavior, invert) => Err(unsupported(
            "pre_tokenizer",
            format!(
                "Split {} (invert {invert})",
                behavior.unwrap_or("without behavior")
            ),
        )),
    }
}

/// The tokens that the post-processor puts before and after a single text, if it is a template.
fn template_tokens(post_processor: &Value) -> Result<(Option<String>, Option<String>)> {
    let (mut before, mut after) = (None, None);
    for processor in members(post_processor, "processors") {
        match kind_of(processor) {
            "TemplateProcessing" => {}
            "ByteLevel" => continue,
            name => return Err(unsupported("post_processor", name)),
        }
        let mut text_seen = false;
        for item in processor["single"]
            .as_array()
            .map_or(&[][..], Vec::as_slice)
        {
            let Some(id) = item["SpecialToken"]["id"].as_str() else {
                text_seen = true;
                continue;
            };
            let place = if text_seen { &mut after } else { &mut before };
            if place.replace(id.to_owned()).is_some() {
                return Err(unsupported(
                    "post_processor",
                    "TemplateProcessing with several tokens on one side",
                ));
            }
        }
    }
    Ok((before, after))
}

/// The components of a `Sequence`; any other component alone; none for null.
fn members<'v>(component: &'v Value, list: &str) -> &'v [Value] {
    match component {
        Value::Null => &[],
        _ if kind_of(component) == "Sequence" => {
            component[list].as_array().map_or(&[], Vec::as_slice)
        }
        _ => std::slice::from_ref(component),
    }
}

fn kind_of(component: &Value) -> &str {
    component["type"].as_str().unwrap_or("without a type")
}

// ---- the configurations ----

/// The other files of the directory.
struct Config {
    config: Value,
    special_tokens_map: Value,
    generation_config: Value,
}

impl Config {
    fn read(files: &TokenizerFiles) -> Result<Self> {
        let parse = |file, text: &Option<String>| match text {
            None => Ok(Value::Null),
            Some(text) => serde_json::from_str(text).map_err(|source| Error::Json { file, source }),
        };
        Ok(Self {
            config: parse(CONFIG, &files.tokenizer_config)?,
            special_tokens_map: parse(SPECIAL_TOKENS_MAP, &files.special_tokens_map)?,
            generation_config: parse(GENERATION_CONFIG, &files.generation_config)?,
        })
    }

    /// The text of a special token, given as a string or as an object with a `content`.
    fn token(&self, name: &'static str) -> Result<Option<String>> {
        let files = [
            (CONFIG, &self.config),
            (SPECIAL_TOKENS_MAP, &self.special_tokens_map),
        ];
        for (file, value) in files {
            match (&value[name], &value[name]["content"]) {
                (Value::Null, _) => {}
                (Value::String(text), _) | (_, Value::String(text)) => {
                    return Ok(Some(text.clone()));
                }
                _ => {
                    return Err(Error::BadField {
                        file,
                        what: format!("{name} is not a token"),
                    });
                }
            }
        }
        Ok(None)
    }

    /// `eos_token_id` of generation_config.json, one or several.
    fn stop_ids(&self) -> Vec<u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match &self.generation_config["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(id).collect(),
            value => id(value).into_iter().collect(),
        }
    }

    /// The chat templates by their names; a single one is `default`.
    fn chat_templates(&self) -> Named<'static> {
        match &self.config["chat_template"] {
            Value::String(template) => vec![("default".into(), template.clone().into())],
            Value::Array(templates) => {
                let template = |template: &Value| {
                    let name = template["name"].as_str()?.to_owned();
                    Some((
                        name.into(),
                        template["template"].as_str()?.to_owned().into(),
                    ))
                };
                templates.iter().filter_map(template).collect()
            }
            _ => Vec::new(),
        }
    }
}

// ---- on to GGUF ----

fn to_spec<'a>(definition: Definition<'a>, architecture: &'a str) -> Result<TokenizerSpec<'a>> {
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
