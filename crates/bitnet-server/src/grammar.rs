//! [`Grammars`]: which tokens may come next, so that an answer is JSON of a schema, matches an
//! expression, or calls a tool.
//!
//! A grammar is compiled, within limits, on the threads for text, and followed on the engine's
//! thread, token by token. What cannot be compiled, or has no first token within the limits, is
//! refused: no answer is given without the constraint that was asked for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bitnet_inference::{Constraint, TokenSet};
use bitnet_tokenizers::TokenId;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::vocabulary::Vocabulary;

/// The most digits in a row in JSON, give or take a token, where its form does not demand more: a
/// number that a model does not end has no other end.
const DIGITS_MAX: usize = 32;
/// What became of so many grammars is kept: programs ask for the same again and again.
const KEPT_MAX: usize = 16;
/// The most characters of a complaint about a grammar.
const COMPLAINT_MAX: usize = 500;

/// What constrains an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Grammar {
    /// JSON of a schema.
    Schema(Value),
    /// A regular expression, which the whole answer matches.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
    /// Such a grammar of our own, of text and calls with arguments in JSON.
    Calls(String),
}

/// Compiles grammars for the tokens of one model.
pub(crate) struct Grammars {
    factory: ParserFactory,
    /// Tokens that begin with a digit.
    digits: Arc<SimpleVob>,
    /// What became of the latest grammars, the last one used first.
    kept: Mutex<VecDeque<(Grammar, Compiled)>>,
}

/// The beginning of an answer, or what is wrong with a grammar.
pub(crate) type Compiled = Result<TokenConstraint, GrammarError>;

/// What is wrong with a grammar.
pub(crate) type GrammarError = String;

/// The tokens, as llguidance wants them.
struct Tokens {
    trie: TokTrie,
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl Grammars {
    /// Takes some hundred milliseconds for a vocabulary of 128,000 tokens.
    pub(crate) fn new(vocabulary: &Vocabulary) -> Result<Self, String> {
        let Vocabulary { stop_ids, words } = vocabulary;
        let vocab_size = words.len() as u32;
        let is_digit = |word: &Vec<u8>| word.first().is_some_and(u8::is_ascii_digit);
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size, stop_ids[0]), words)
            .with_eos_tokens(stop_ids);
        let mut digits = trie.alloc_token_set();
        (0..vocab_size)
            .zip(words)
            .filter(|(_, word)| is_digit(word))
            .for_each(|(id, _)| digits.allow_token(id));
        let tokens: TokEnv = Arc::new(Tokens { trie });
        let mut factory = ParserFactory::new_simple(&tokens).map_err(|error| complaint(&error))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            // A kilobyte or two each.
            max_lexer_states: 20_000,
            // Forms of a few kilobytes that come to more take a second and longer; 500 fields come
            // to some 20,000.
            max_grammar_size: 50_000,
            initial_lexer_fuel: 300_000,
            // What is in the prompt stays out of errors.
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self {
            factory,
            digits: Arc::new(digits),
            kept: Mutex::new(VecDeque::new()),
        })
    }

    /// What a grammar came to that was compiled lately.
    pub(crate) fn known(&self, grammar: &Grammar) -> Option<Compiled> {
        let mut kept = self.kept();
        let index = kept.iter().position(|(known, _)| known == grammar)?;
        let entry = kept.remove(index)?;
        let compiled = entry.1.clone();
        kept.push_front(entry);
        Some(compiled)
    }

    /// Keeps what a grammar came to.
    pub(crate) fn keep(&self, grammar: &Grammar, compiled: Compiled) {
        let mut kept = self.kept();
        // Another thread may have compiled the same.
        kept.retain(|(known, _)| known != grammar);
        kept.push_front((grammar.clone(), compiled));
        kept.truncate(KEPT_MAX);
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(Grammar, Compiled)>> {
        // Each change is complete before anything could panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The beginning of an answer under a grammar. In a process that serves, the grammar must have
    /// been compiled by a helper process before; see [`Forms`](crate::forms::Forms).
    pub(crate) fn compile(&self, grammar: &Grammar) -> Compiled {
        if let Some(known) = self.known(grammar) {
            return known;
        }
        let compiled = self.compile_anew(grammar);
        self.keep(grammar, compiled.clone());
        compiled
    }

    fn compile_anew(&self, grammar: &Grammar) -> Compiled {
        let top = match grammar {
            Grammar::Schema(schema) => TopLevelGrammar::from_json_schema(with_options(schema)?),
            Grammar::Regex(expression) => TopLevelGrammar::from_regex(expression),
            Grammar::Lark(text) | Grammar::Calls(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let mut matcher = Matcher::new(self.factory.create_parser(top));
        // Here, where it keeps nobody waiting and whoever asked can still be refused: the first
        // tokens, and those behind what all answers begin with, such as the fields of an object.
        next_tokens(&mut matcher)?;
        let mut ahead = matcher.deep_clone();
        let forced = ahead.compute_ff_bytes();
        let forced = self.factory.tok_env().tokenize_bytes(&forced);
        ahead
            .consume_tokens(&forced)
            .map_err(|error| complaint(&error))?;
        next_tokens(&mut ahead)?;
        let is_json = matches!(grammar, Grammar::Schema(_) | Grammar::Calls(_));
        let digits = is_json.then(|| Digits {
            tokens: Arc::clone(self.factory.tok_env()),
            more: Arc::clone(&self.digits),
            has_text: matches!(grammar, Grammar::Calls(_)),
            in_a_row: 0,
        });
        Ok(TokenConstraint { matcher, digits })
    }
}

/// The tokens that may come next, at least one.
fn next_tokens(matcher: &mut Matcher) -> Result<SimpleVob, String> {
    let mask = matcher
        .compute_mask_or_eos()
        .map_err(|error| complaint(&error))?;
    if mask.is_zero() {
        Err("the grammar allows no token of this model here".to_owned())
    } else {
        Ok(mask)
    }
}

/// A schema with how it is to be read: at most one line end and its indentation between two things,
/// so that no answer is space without end. Where a value must be of exactly one kind of several,
/// these must be seen to exclude each other. Of kinds that are defined elsewhere that cannot be
/// seen, and programs write them so that they do: then it is enough that a value is of one of them.
pub(crate) fn with_options(schema: &Value) -> Result<Value, String> {
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => json!({}),
        _ => return Err("a JSON schema is an object".to_owned()),
    };
    let coerce_one_of = has_named_kinds(&schema);
    schema["x-guidance"] =
        json!({ "whitespace_pattern": r"( |\n[ ]{0,16})?", "coerce_one_of": coerce_one_of });
    Ok(schema)
}

/// Whether anything in a schema is exactly one of several kinds that are defined elsewhere.
fn has_named_kinds(schema: &Value) -> bool {
    let is_named = |kind: &Value| kind.get("$ref").is_some();
    match schema {
        Value::Object(fields) => {
            let kinds = fields.get("oneOf").and_then(Value::as_array);
            kinds.is_some_and(|kinds| kinds.iter().any(is_named))
                || fields.values().any(has_named_kinds)
        }
        Value::Array(values) => values.iter().any(has_named_kinds),
        _ => false,
    }
}

fn complaint(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    if text.contains("coerce_one_of") {
        return "the kinds of a 'oneOf' are not seen to exclude each other; 'anyOf' takes such"
            .to_owned();
    }
    text.trim().chars().take(COMPLAINT_MAX).collect()
}

/// A grammar on its way through one answer; from [`Grammars::compile`] at its beginning, which
/// clones share.
#[derive(Clone)]
pub(crate) struct TokenConstraint {
    matcher: Matcher,
    digits: Option<Digits>,
}

impl TokenConstraint {
    /// The same for another answer.
    pub(crate) fn anew(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            digits: self.digits.clone(),
        }
    }
}

/// How many digits an answer in JSON ends in.
#[derive(Clone)]
struct Digits {
    tokens: TokEnv,
    /// Tokens that begin with a digit.
    more: Arc<SimpleVob>,
    /// Where the answer may end, it is at text.
    has_text: bool,
    in_a_row: usize,
}

impl Digits {
    /// Takes away what adds to too many digits, if anything else may come.
    fn limit(&self, mask: &mut SimpleVob) {
        let is_text = self.has_text && mask.is_allowed(self.tokens.tok_trie().eos_token());
        if self.in_a_row < DIGITS_MAX || is_text {
            return;
        }
        let mut shorter = mask.clone();
        shorter.sub(&self.more);
        if !shorter.is_zero() {
            *mask = shorter;
        }
    }

    fn count(&mut self, token: TokenId) {
        let bytes = self.tokens.tok_trie().token(token.0);
        let at_end = bytes
            .iter()
            .rev()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let before = if at_end == bytes.len() {
            self.in_a_row
        } else {
            0
        };
        self.in_a_row = before + at_end;
    }
}

impl Constraint for TokenConstraint {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        let mut mask = next_tokens(&mut self.matcher)?;
        if let Some(digits) = &self.digits {
            digits.limit(&mut mask);
        }
        allowed.assign(mask.as_slice());
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        // The token that ends an answer comes when the grammar is at its end already.
        if self.matcher.is_stopped() {
            return Ok(());
        }
        if let Some(digits) = &mut self.digits {
            digits.count(token);
        }
        self.matcher
            .consume_token(token.0)
            .map_err(|error| complaint(&error))
    }
}

#[cfg(test)]
mod tests {
    use bitnet_inference::{Device, Loaded, load};
    use bitnet_models::LoadOptions;
    use bitnet_tokenizers::Tokenizer;

    use super::*;

    fn grammars(tokenizer: &Tokenizer) -> Grammars {
        Grammars::new(&Vocabulary::new(tokenizer).expect("a vocabulary")).expect("grammars")
    }

    fn tokenizer() -> Arc<Tokenizer> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../models/stories/stories.gguf");
        let device = Device::cpu(1);
        let Loaded { tokenization, .. } =
            load(&path, &LoadOptions::default(), device).expect("the built-in model");
        tokenization.expect("a tokenizer").tokenizer
    }

    /// Whether a text can be an answer under a grammar.
    fn accepts(grammars: &Grammars, tokenizer: &Tokenizer, grammar: &Grammar, text: &str) -> bool {
        let mut constraint = grammars.compile(grammar).expect("a grammar").anew();
        let mut allowed = TokenSet::default();
        let options = bitnet_tokenizers::EncodeOptions {
            add_special: false,
            parse_special: false,
        };
        for token in tokenizer.encode(text, options).expect("tokens") {
            if constraint.allowed(&mut allowed).is_err() || !allowed.contains(token) {
                return false;
            }
            constraint.accept(token).expect("an allowed token");
        }
        constraint.allowed(&mut allowed).is_ok()
            && tokenizer.stop_ids().iter().all(|id| allowed.contains(*id))
    }

    #[test]
    fn grammars_accept_what_they_describe_and_nothing_else() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let person = Grammar::Schema(json!({
            "type": "object",
            "properties": { "name": { "type": "string" }, "age": { "type": "integer" }, "tags": { "$ref": "#/$defs/tags" } },
            "required": ["name", "age"],
            "additionalProperties": false,
            "$defs": { "tags": { "type": "array", "items": { "enum": ["a", "b"] } } },
        }));
        let object = Grammar::Schema(json!({ "type": "object" }));
        let number = Grammar::Regex(r"[1-9][0-9]{0,3}".to_owned());
        let choice = Grammar::Lark("start: \"yes\" | \"no\\n\"".to_owned());
        for (grammar, text, expected) in [
            (&person, r#"{"name": "Tom", "age": 3}"#, true),
            (&person, r#"{"name":"Tom","age":3,"tags":["a","b"]}"#, true),
            (
                &person,
                "{\n  \"name\": \"T\\\"om\",\n  \"age\": 3\n}",
                true,
            ),
            (&person, r#"{"name": "Tom"}"#, false),
            (&person, r#"{"name": "Tom", "age": "3"}"#, false),
            (
                &person,
                r#"{"name": "Tom", "age": 3, "tags": ["c"]}"#,
                false,
            ),
            (&person, r#"{"name": "Tom", "age": 3, "more": 1}"#, false),
            (&person, r#"{"name": "Tom", "age": 3"#, false),
            (&person, "{     \"name\": \"Tom\", \"age\": 3}", false),
            (&object, r#"{"a": [1, {"b": null}], "c": "d"}"#, true),
            (&object, "[1]", false),
            (&number, "42", true),
            (&number, "042", false),
            (&number, "42 ", false),
            (&choice, "yes", true),
            (&choice, "no\n", true),
            (&choice, "no", false),
        ] {
            assert_eq!(
                accepts(&grammars, &tokenizer, grammar, text),
                expected,
                "{grammar:?} {text}"
            );
        }
    }

    #[test]
    fn a_number_in_json_has_an_end() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let number = Grammar::Schema(json!({ "type": "number" }));
        let any = Grammar::Schema(json!({ "type": "object" }));
        let demanded = Grammar::Schema(json!({ "type": "string", "pattern": "^[0-9]{80}$" }));
        let lark = "start: TEXT | \"<\" arguments \">\"\nTEXT: /[^<]*/\narguments: %json { \"type\": \"integer\" }\n";
        let [text, calls] = [
            Grammar::Lark(lark.to_owned()),
            Grammar::Calls(lark.to_owned()),
        ];
        let (few, many) = ("1".repeat(30), "1".repeat(80));
        for (grammar, before, after, takes_many) in [
            (&number, "", "", false),
            (&number, "0.", "", false),
            (&any, "{\"a\": -", "}", false),
            (&demanded, "\"", "\"", true),
            (&text, "<", ">", true),
            (&calls, "<", ">", false),
            (&calls, "", "", true),
        ] {
            let accepts = |digits: &str| {
                accepts(
                    &grammars,
                    &tokenizer,
                    grammar,
                    &format!("{before}{digits}{after}"),
                )
            };
            assert_eq!(
                (accepts(&few), accepts(&many)),
                (!std::ptr::eq(grammar, &demanded), takes_many),
                "{grammar:?}"
            );
        }
    }

    #[test]
    fn what_is_no_grammar_is_refused() {
        let grammars = grammars(&tokenizer());
        for wrong in [
            Grammar::Schema(json!(7)),
            Grammar::Schema(json!({ "type": "nonsense" })),
            Grammar::Schema(json!({ "$ref": "#/$defs/missing" })),
            Grammar::Schema(json!({ "type": "string", "pattern": "(" })),
            Grammar::Regex("(".to_owned()),
            Grammar::Lark("start: missing".to_owned()),
            Grammar::Lark(String::new()),
            Grammar::Lark(format!(
                "start: {}\"a\"{}",
                "(".repeat(60_000),
                ")".repeat(60_000)
            )),
        ] {
            let shown: String = format!("{wrong:?}").chars().take(80).collect();
            let complaint = grammars
                .compile(&wrong)
                .err()
                .unwrap_or_else(|| panic!("{shown} was taken"));
            assert!(
                !complaint.is_empty() && complaint.len() <= 4 * COMPLAINT_MAX,
                "{shown}: {complaint}"
            );
        }
    }

    #[test]
    fn a_grammar_is_compiled_once_and_stays_at_its_beginning() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let numbered = |index: usize| Grammar::Regex(format!("a{{{index}}}b"));
        let kept = |wanted: &Grammar| {
            grammars
                .kept
                .lock()
                .expect("no panic")
                .iter()
                .any(|(grammar, _)| grammar == wanted)
        };
        for _ in 0..3 {
            assert!(accepts(&grammars, &tokenizer, &numbered(1), "ab"));
            assert!(!accepts(&grammars, &tokenizer, &numbered(1), "aab"));
            assert!(grammars.compile(&Grammar::Regex("(".to_owned())).is_err());
        }
        assert_eq!(grammars.kept.lock().expect("no panic").len(), 2);
        for index in 2..=KEPT_MAX {
            grammars.compile(&numbered(index)).expect("a grammar");
            assert!(grammars.compile(&numbered(1)).is_ok());
        }
        assert!(
            kept(&numbered(1))
                && kept(&numbered(KEPT_MAX))
                && !kept(&Grammar::Regex("(".to_owned()))
        );
        assert_eq!(grammars.kept.lock().expect("no panic").len(), KEPT_MAX);
    }

    #[test]
    fn exactly_one_of_several_kinds_is_kept_to_or_refused() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let pet = |name: &str| json!({ "type": "object", "properties": { "is": { "const": name } }, "required": ["is"] });
        let disjoint =
            Grammar::Schema(json!({ "oneOf": [pet("cat"), pet("dog"), { "type": "null" }] }));
        assert!(accepts(
            &grammars,
            &tokenizer,
            &disjoint,
            r#"{"is": "dog"}"#
        ));
        let named = json!({ "oneOf": [{ "$ref": "#/$defs/cat" }, { "$ref": "#/$defs/dog" }],
            "$defs": { "cat": pet("cat"), "dog": pet("dog") } });
        assert!(accepts(
            &grammars,
            &tokenizer,
            &Grammar::Schema(named),
            r#"{"is": "cat"}"#
        ));
        let overlapping = json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] });
        let complaint = grammars
            .compile(&Grammar::Schema(overlapping))
            .err()
            .expect("a refusal");
        assert!(complaint.contains("exclude each other"), "{complaint}");
    }

    #[test]
    fn a_grammar_whose_first_token_is_too_much_work_is_refused() {
        let grammars = grammars(&tokenizer());
        let properties = |count: usize| -> Grammar {
            let properties =
                (0..count).map(|index| (format!("p{index}"), json!({ "type": "string" })));
            let properties: serde_json::Map<_, _> = properties.collect();
            Grammar::Schema(json!({ "type": "object", "properties": properties }))
        };
        assert!(grammars.compile(&properties(100)).is_ok());
        assert!(grammars.compile(&properties(3000)).is_err());
    }
}
