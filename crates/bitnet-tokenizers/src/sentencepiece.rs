//! `tokenizer.model`, SentencePiece's own file, as the `tokenizer.json` that transformers 5.24
//! makes of it.
//!
//! transformers reads the file in two ways. `LlamaTokenizer` takes the pieces only: every piece
//! that two others make up is a merge, ranked by its id, and normalization is dropped. Other
//! classes follow the settings of the file and rank merges by score.

use hashbrown::HashSet;
use prost::Message;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result, quoted};
use crate::vocabulary::TokenKind;

/// The name of the file.
pub(crate) const TOKENIZER_MODEL: &str = "tokenizer.model";

/// Maximum length of a piece in bytes. Looking for merges takes time in proportion to its square.
const PIECE_BYTES_MAX: usize = 256;

// The fields of sentencepiece_model.proto that are used here.

#[derive(Message)]
struct ModelFile {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Message)]
struct Piece {
    #[prost(string, required, tag = "1")]
    text: String,
    #[prost(float, required, tag = "2")]
    score: f32,
    /// The numbers of [`TokenKind`].
    #[prost(int32, required, tag = "3", default = "1")]
    kind: i32,
}

#[derive(Clone, Message)]
struct Trainer {
    /// 1 is Unigram, 2 BPE.
    #[prost(int32, required, tag = "3", default = "1")]
    model_type: i32,
    #[prost(bool, required, tag = "35")]
    byte_fallback: bool,
    #[prost(int32, required, tag = "40", default = "0")]
    unknown_id: i32,
    #[prost(int32, required, tag = "41", default = "1")]
    bos_id: i32,
    #[prost(int32, required, tag = "42", default = "2")]
    eos_id: i32,
}

#[derive(Clone, Message)]
struct Normalizer {
    #[prost(string, required, tag = "1")]
    name: String,
    /// The table of the normalization; empty for none.
    #[prost(bytes = "vec", required, tag = "2")]
    table: Vec<u8>,
    #[prost(bool, required, tag = "3", default = "true")]
    add_dummy_prefix: bool,
    #[prost(bool, required, tag = "4", default = "true")]
    remove_extra_whitespaces: bool,
}

/// The contents of `tokenizer.json` and `tokenizer_config.json` that mean the same as a
/// `tokenizer.model` and the `tokenizer_config.json` beside it.
///
/// # Errors
/// If the file is not a model of SentencePiece, or something in it is not supported.
pub(crate) fn to_json(bytes: &[u8], config: Option<&str>) -> Result<(String, String)> {
    let file = ModelFile::decode(bytes)
        .map_err(|error| problem(format!("not a model of SentencePiece: {error}")))?;
    let mut config = match config {
        None => Map::new(),
        Some(text) => serde_json::from_str(text).map_err(|source| Error::Json {
            file: "tokenizer_config.json",
            source,
        })?,
    };
    let reading = Reading::of(&config)?;
    let trainer = file.trainer.as_ref().cloned().unwrap_or_default();
    file.name_roles(&trainer, reading, &mut config);
    let rules = match reading {
        Reading::Pieces => rules_of_llama(&config),
        Reading::Settings => file.rules(&trainer, &config)?,
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": file.added_tokens(&config)?,
        "normalizer": rules.normalizer,
        "pre_tokenizer": rules.pre_tokenizer,
        "post_processor": post_processor(&config),
        "decoder": decoder(rules.strips),
        "model": {
            "type": "BPE",
            "unk_token": (reading == Reading::Settings).then(|| config.get("unk_token")),
            "fuse_unk": true,
            "byte_fallback": reading == Reading::Pieces || trainer.byte_fallback,
            "vocab": file.vocabulary()?,
            "merges": file.merges(reading)?,
        },
    });
    Ok((tokenizer.to_string(), Value::Object(config).to_string()))
}

/// What transformers takes from the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// The pieces, as `LlamaTokenizer` does.
    Pieces,
    /// Also the settings.
    Settings,
}

impl Reading {
    fn of(config: &Map<String, Value>) -> Result<Self> {
        match config.get("tokenizer_class").and_then(Value::as_str) {
            Some("LlamaTokenizer" | "LlamaTokenizerFast") => Ok(Self::Pieces),
            None | Some("PreTrainedTokenizerFast" | "TokenizersBackend") => Ok(Self::Settings),
            Some(name) => Err(problem(format!(
                "read by {}, which is not supported without a tokenizer.json",
                quoted(name)
            ))),
        }
    }
}

/// How text becomes pieces.
struct Rules {
    normalizer: Value,
    pre_tokenizer: Value,
    /// Whether decoding removes a space at the beginning.
    strips: bool,
}

fn rules_of_llama(config: &Map<String, Value>) -> Rules {
    let flag = |name: &str, default| config.get(name).and_then(Value::as_bool).unwrap_or(default);
    let adds_space = flag("add_prefix_space", true);
    let scheme = match (adds_space, flag("legacy", false)) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    Rules {
        normalizer: Value::Null,
        pre_tokenizer: metaspace(scheme),
        strips: adds_space,
    }
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false})
}

impl ModelFile {
    /// The rules that the settings of the file ask for.
    fn rules(&self, trainer: &Trainer, config: &Map<String, Value>) -> Result<Rules> {
        let normalizer = self.normalizer.as_ref().cloned().unwrap_or_default();
        let unsupported = |what: String| Err(problem(format!("{what} is not supported")));
        if trainer.model_type != 2 {
            return unsupported(format!("model_type {} (BPE is 2)", trainer.model_type));
        }
        if !normalizer.table.is_empty() {
            return unsupported(format!("the normalization {}", quoted(&normalizer.name)));
        }
        if normalizer.remove_extra_whitespaces {
            return unsupported("remove_extra_whitespaces".to_owned());
        }
        let user_defined = TokenKind::UserDefined as i32;
        if let Some(piece) = self.pieces.iter().find(|piece| piece.kind == user_defined) {
            return unsupported(format!("the user-defined piece {}", quoted(&piece.text)));
        }
        let is_legacy = config.get("legacy") != Some(&Value::Bool(false));
        let escape = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let (normalizer, pre_tokenizer) = match (normalizer.add_dummy_prefix, is_legacy) {
            (false, _) => (escape, Value::Null),
            // A text that begins with a space gets another one, as in SentencePiece.
            (true, true) => (
                json!({"type": "Sequence", "normalizers": [prepend, escape]}),
                Value::Null,
            ),
            (true, false) => (escape, metaspace("first")),
        };
        Ok(Rules {
            strips: self
                .normalizer
                .as_ref()
                .is_none_or(|rules| rules.add_dummy_prefix),
            normalizer,
            pre_tokenizer,
        })
    }

    /// Names BOS, EOS and the unknown token in the configuration, where it does not.
    fn name_roles(&self, trainer: &Trainer, reading: Reading, config: &mut Map<String, Value>) {
        for (name, id, usual) in [
            ("bos_token", trainer.bos_id, "<s>"),
            ("eos_token", trainer.eos_id, "</s>"),
            ("unk_token", trainer.unknown_id, "<unk>"),
        ] {
            let piece = usize::try_from(id).ok().and_then(|id| self.pieces.get(id));
            let text = match reading {
                Reading::Pieces => self.pieces.iter().find(|piece| piece.text == usual),
                Reading::Settings => piece,
            };
            if let Some(piece) = text {
                config
                    .entry(name)
                    .or_insert_with(|| piece.text.clone().into());
            }
        }
    }

    /// Control and user-defined pieces, the tokens with a role, and what the configuration adds.
    fn added_tokens(&self, config: &Map<String, Value>) -> Result<Vec<Value>> {
        let roles = ["bos_token", "eos_token", "unk_token"];
        let roles: Vec<&str> = roles
            .iter()
            .filter_map(|role| config.get(*role).and_then(content))
            .collect();
        let mut added = Vec::new();
        for (id, piece) in self.pieces.iter().enumerate() {
            let has_role = roles.contains(&&*piece.text);
            let is_control = has_role || piece.kind == TokenKind::Control as i32;
            if is_control || piece.kind == TokenKind::UserDefined as i32 {
                added.push(json!({"id": id, "content": piece.text, "special": is_control}));
            }
        }
        let more = config
            .get("added_tokens_decoder")
            .and_then(Value::as_object);
        for (key, token) in more.into_iter().flatten() {
            let bad = |what: &str| problem(format!("added_tokens_decoder: {what}"));
            let id: usize = key
                .parse()
                .map_err(|_| bad(&format!("{} is not an id", quoted(key))))?;
            let text = content(token).ok_or_else(|| bad(&format!("token {id} has no content")))?;
            match self.pieces.get(id) {
                Some(piece) if piece.text != text => {
                    let (text, piece) = (quoted(text), quoted(&piece.text));
                    return Err(bad(&format!(
                        "token {id} is {text:?}, but {piece:?} in the file"
                    )));
                }
                _ => {}
            }
            added.retain(|other| other["id"] != id);
            let mut token = token.clone();
            token["id"] = id.into();
            added.push(token);
        }
        Ok(added)
    }

    fn vocabulary(&self) -> Result<Map<String, Value>> {
        let mut vocabulary = Map::with_capacity(self.pieces.len());
        for (id, piece) in self.pieces.iter().enumerate() {
            if vocabulary.insert(piece.text.clone(), id.into()).is_some() {
                return Err(problem(format!("two pieces are {}", quoted(&piece.text))));
            }
        }
        Ok(vocabulary)
    }

    /// All pairs of pieces whose union is a piece, best first.
    fn merges(&self, reading: Reading) -> Result<Vec<(&str, &str)>> {
        let is_merged =
            |piece: &&Piece| reading == Reading::Pieces || piece.kind == TokenKind::Normal as i32;
        let mut ranked: Vec<&Piece> = self.pieces.iter().filter(is_merged).collect();
        if reading == Reading::Settings {
            ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        }
        let known: HashSet<&str> = ranked.iter().map(|piece| &*piece.text).collect();
        let mut merges = Vec::new();
        for piece in &ranked {
            if piece.text.len() > PIECE_BYTES_MAX {
                return Err(Error::TooLarge {
                    what: "a piece of tokenizer.model",
                    len: piece.text.len(),
                    max: PIECE_BYTES_MAX,
                });
            }
            let splits = piece.text.char_indices().skip(1);
            let pairs = splits.map(|(at, _)| piece.text.split_at(at));
            merges.extend(
                pairs.filter(|(left, right)| known.contains(left) && known.contains(right)),
            );
        }
        Ok(merges)
    }
}

/// BOS and EOS around a text, only if the configuration asks for them.
fn post_processor(config: &Map<String, Value>) -> Value {
    let token = |flag: &str, role: &str| {
        let is_added = config.get(flag) == Some(&Value::Bool(true));
        let text = config.get(role).and_then(content).filter(|_| is_added);
        text.map(|text| json!({"SpecialToken": {"id": text, "type_id": 0}}))
    };
    let text = Some(json!({"Sequence": {"id": "A", "type_id": 0}}));
    let parts = [
        token("add_bos_token", "bos_token"),
        text,
        token("add_eos_token", "eos_token"),
    ];
    let single: Vec<Value> = parts.into_iter().flatten().collect();
    json!({"type": "TemplateProcessing", "single": single})
}

fn decoder(strips: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strips {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// The text of a token, given as a string or as an object with a `content`.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

fn problem(what: String) -> Error {
    Error::BadField {
        file: TOKENIZER_MODEL,
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeOptions, EncodeOptions, Tokenizer, TokenizerFiles};

    fn file(scores: impl Fn(usize) -> f32) -> ModelFile {
        let texts = [
            "<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "ab", "▁ab", "ba", "▁b",
        ];
        let piece = |(id, text): (usize, &&str)| Piece {
            text: (*text).to_owned(),
            score: scores(id),
            kind: match id {
                0 => 2,
                1 | 2 => 3,
                3 | 4 => 6,
                _ => 1,
            },
        };
        ModelFile {
            pieces: texts.iter().enumerate().map(piece).collect(),
            trainer: Some(Trainer {
                model_type: 2,
                byte_fallback: true,
                ..Trainer::default()
            }),
            normalizer: Some(Normalizer {
                name: "identity".to_owned(),
                remove_extra_whitespaces: false,
                ..Normalizer::default()
            }),
        }
    }

    fn load(file: &ModelFile, config: Option<Value>) -> Result<Tokenizer, String> {
        let config = config.map(|config| config.to_string());
        let json = to_json(&file.encode_to_vec(), config.as_deref());
        let (tokenizer, config) = json.map_err(|error| error.to_string())?;
        let files = TokenizerFiles {
            tokenizer,
            tokenizer_config: Some(config),
            ..TokenizerFiles::default()
        };
        Tokenizer::from_files(&files).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn assert_ids(file: &ModelFile, config: Option<Value>, expected: &[(&str, &[u32])]) {
        let tokenizer = load(file, config).expect("a tokenizer");
        for (text, ids) in expected {
            let options = EncodeOptions {
                add_special: true,
                parse_special: true,
            };
            let found = tokenizer.encode(text, options).expect("an encodable text");
            let found: Vec<u32> = found.into_iter().map(|id| id.0).collect();
            assert_eq!(found, *ids, "{text:?}");
        }
    }

    /// Expected values: `AutoTokenizer` of transformers 5.24 on a directory with these files.
    #[test]
    fn a_directory_with_only_this_file_encodes_as_in_transformers() {
        let rising = file(|id| id as f32);
        let falling = file(|id| -(id as f32));
        let llama = |more: Value| {
            let mut config = json!({"tokenizer_class": "LlamaTokenizer"});
            for (key, value) in more.as_object().into_iter().flatten() {
                config[key] = value.clone();
            }
            Some(config)
        };
        let of_llama: &[(&str, &[u32])] = &[
            ("ab ba", &[9, 5, 10]),
            (" ab", &[9]),
            ("bab é", &[11, 8, 5, 3, 4]),
            ("</s>ab", &[2, 8]),
            ("a<s> b", &[5, 6, 1, 11]),
            ("", &[]),
        ];
        assert_ids(&falling, llama(json!({})), of_llama);
        // Scores mean nothing to this class.
        assert_ids(&rising, llama(json!({})), of_llama);
        let around = json!({"add_bos_token": true, "add_eos_token": true});
        assert_ids(
            &falling,
            llama(around),
            &[("ab ba", &[1, 9, 5, 10, 2]), ("", &[1, 2])],
        );
        assert_ids(
            &falling,
            llama(json!({"legacy": true})),
            &[("</s>ab", &[2, 9])],
        );
        let no_space = llama(json!({"add_prefix_space": false}));
        assert_ids(
            &falling,
            no_space,
            &[("ab ba", &[8, 5, 10]), ("bab é", &[7, 8, 5, 3, 4])],
        );
        let added = json!({"added_tokens_decoder": {"12": {"content": "<x>", "special": true}}});
        assert_ids(&falling, llama(added), &[("ab<x>b", &[9, 12, 7])]);
        let of_settings: &[(&str, &[u32])] = &[
            ("ab ba", &[9, 5, 10]),
            (" ab", &[5, 9]),
            ("bab é", &[11, 8, 5, 3, 4]),
            ("</s>ab", &[2, 9]),
            ("a<s> b", &[5, 6, 1, 5, 11]),
            ("ab<x>b", &[9, 0, 7]),
        ];
        assert_ids(&falling, None, of_settings);
        assert_ids(&rising, None, &[("ab ba", &[9, 11, 6])]);
        let not_legacy = Some(json!({"legacy": false}));
        assert_ids(&falling, not_legacy, &[(" ab", &[9]), ("</s>ab", &[2, 8])]);
        let tokenizer = load(&falling, llama(json!({}))).expect("a tokenizer");
        let ids = [9, 5, 10, 5, 3, 4].map(crate::TokenId);
        assert_eq!(tokenizer.decode(&ids, DecodeOptions::default()), "ab ba é");
    }

    #[test]
    fn unsupported_settings_are_named() {
        let error = |file: &ModelFile, config| load(file, config).err().expect("an error");
        let mut unigram = file(|_| 0.0);
        unigram.trainer.as_mut().unwrap().model_type = 1;
        assert_eq!(
            error(&unigram, None),
            "tokenizer.model: model_type 1 (BPE is 2) is not supported"
        );
        let mut nfkc = file(|_| 0.0);
        nfkc.normalizer = Some(Normalizer {
            name: "nmt_nfkc".to_owned(),
            table: vec![1],
            ..Normalizer::default()
        });
        assert_eq!(
            error(&nfkc, None),
            "tokenizer.model: the normalization nmt_nfkc is not supported"
        );
        let class = Some(json!({"tokenizer_class": "GemmaTokenizer"}));
        assert_eq!(
            error(&file(|_| 0.0), class),
            "tokenizer.model: read by GemmaTokenizer, which is not supported without a tokenizer.json"
        );
        let other = Some(json!({"added_tokens_decoder": {"6": {"content": "x"}}}));
        assert_eq!(
            error(&file(|_| 0.0), other),
            "tokenizer.model: added_tokens_decoder: token 6 is \"x\", but \"a\" in the file"
        );
        assert!(to_json(b"\x0a\xff", None).is_err());
    }

    #[test]
    fn long_pieces_are_refused() {
        let mut long = file(|_| 0.0);
        long.pieces[6].text = "a".repeat(257);
        let error = load(&long, None).err().expect("an error");
        assert_eq!(
            error,
            "a piece of tokenizer.model has 257 bytes, the maximum is 256"
        );
    }
}
