//! The components around the model in tokenizer.json: normalizer, pre-tokenizer, decoder and
//! post-processor.

use serde_json::Value;

use super::format::File;
use crate::error::{Error, Result, quoted};
use crate::pretokenize::{DEEPSEEK_3, Step};
use crate::tokenizer::SpacePrefix;
use crate::vocabulary::{ESCAPED_SPACE, Spelling};

/// The combined rules of the components around the model.
pub(super) struct Components {
    pub(super) spelling: Spelling,
    pub(super) nfc: bool,
    pub(super) space_prefix: SpacePrefix,
    pub(super) steps: Vec<Step>,
}

impl Components {
    /// Reads the components of a file.
    ///
    /// # Errors
    /// If one is not supported; the error names it.
    pub(super) fn read(file: &File<'_>) -> Result<Self> {
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
pub(super) fn template_tokens(post_processor: &Value) -> Result<(Option<String>, Option<String>)> {
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

/// The error for a component of this kind.
pub(super) fn unsupported(component: &'static str, name: impl Into<String>) -> Error {
    Error::Unsupported {
        component,
        name: quoted(&name.into()),
    }
}
