//! [`TokenizerFiles`]: the files of a tokenizer's directory, as texts.

use std::path::Path;

use crate::error::{Error, Result};
use crate::sentencepiece::{self, TOKENIZER_MODEL};

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
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
