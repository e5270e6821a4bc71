//! [`Grammars`]: constrain answers to JSON of a schema, to a regular expression, or to text with
//! calls of tools.
//!
//! A grammar is compiled, within limits, on the threads for text. The engine's thread then follows
//! it token by token. A grammar that does not compile, or has no first token within the limits, is
//! refused: an answer never lacks the constraint that the request asked for.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bitnet_inference::{Constraint, TokenSet};
use bitnet_tokenizers::TokenId;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{GrammarBuilder, JsonCompileOptions, Matcher, ParserFactory};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::schema::Schema;
use crate::vocabulary::FormVocabulary;

/// Maximum number of digits in a row in JSON, plus or minus one token, unless the schema demands
/// more. Without this limit, a model may never end a number.
const DIGITS_MAX: usize = 32;
/// Maximum number of digits of an exponent in JSON: with [`DIGITS_MAX`] digits before it, the
/// number is one that an `f64` can hold. Parsers in Go and Rust refuse larger ones.
const EXPONENT_DIGITS_MAX: usize = 2;
/// Number of compiled grammars in the cache: clients often repeat the same ones.
const KEPT_MAX: usize = 16;
/// Maximum number of characters of an error message about a grammar.
const COMPLAINT_MAX: usize = 500;

/// The constraint of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Grammar {
    /// JSON of a schema.
    Schema(Schema),
    /// A regular expression, which the whole answer matches.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
    /// Text and calls of tools with arguments in JSON.
    Calls(CallsGrammar),
}

/// A grammar of text and calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CallsGrammar {
    /// In llguidance's dialect of Lark, with the schemas in it.
    pub(crate) lark: String,
    /// The schemas of arguments, each with the field of the request that has it.
    pub(crate) arguments: Vec<(String, Schema)>,
}

/// An error in a grammar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GrammarError {
    /// The field of the request that is wrong, where it is known more precisely than by the caller.
    pub(crate) param: Option<String>,
    pub(crate) problem: String,
}

impl From<String> for GrammarError {
    fn from(problem: String) -> Self {
        Self {
            param: None,
            problem,
        }
    }
}

/// Compiles grammars for the tokens of one model.
pub(crate) struct Grammars {
    factory: ParserFactory,
    numbers: Arc<NumberTokens>,
    /// The latest results, the last one used first.
    kept: Mutex<VecDeque<(Grammar, Compiled)>>,
}

/// The initial state of an answer, or the error in its grammar.
pub(crate) type Compiled = Result<TokenConstraint, GrammarError>;

/// The tokens in llguidance's form.
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
    /// Takes a few hundred milliseconds for a vocabulary of 128,000 tokens.
    pub(crate) fn new(vocabulary: &FormVocabulary) -> Result<Self, String> {
        let FormVocabulary { stop_ids, words } = vocabulary;
        let vocab_size = words.len() as u32;
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size, stop_ids[0]), words)
            .with_eos_tokens(stop_ids);
        let numbers = NumberTokens::new(&trie, words);
        let tokens: TokEnv = Arc::new(Tokens { trie });
        let mut factory = ParserFactory::new_simple(&tokens).map_err(|error| complaint(&error))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            // Each state takes a kilobyte or two.
            max_lexer_states: 20_000,
            // A schema with 500 fields has about 20,000; some inputs of a few kilobytes have more
            // and take over a second.
            max_grammar_size: 50_000,
            initial_lexer_fuel: 300_000,
            // Errors do not quote the prompt.
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self {
            factory,
            numbers: Arc::new(numbers),
            kept: Mutex::new(VecDeque::new()),
        })
    }

    /// The cached result of a grammar that was compiled recently.
    pub(crate) fn known(&self, grammar: &Grammar) -> Option<Compiled> {
        let mut kept = self.kept();
        let index = kept.iter().position(|(known, _)| known == grammar)?;
        let entry = kept.remove(index)?;
        let compiled = entry.1.clone();
        kept.push_front(entry);
        Some(compiled)
    }

    /// Keeps the result of a grammar.
    pub(crate) fn keep(&self, grammar: &Grammar, compiled: Compiled) {
        let mut kept = self.kept();
        // Another thread may have compiled the same grammar.
        kept.retain(|(known, _)| known != grammar);
        kept.push_front((grammar.clone(), compiled));
        kept.truncate(KEPT_MAX);
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(Grammar, Compiled)>> {
        // Lock poisoning is harmless: no change can panic halfway.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The initial state of an answer under a grammar. In a process that serves, the grammar must
    /// have been compiled by a helper process before; see [`Forms`](crate::forms::Forms).
    pub(crate) fn compile(&self, grammar: &Grammar) -> Compiled {
        if let Some(known) = self.known(grammar) {
            return known;
        }
        let compiled = self.compile_new(grammar);
        let compiled = compiled.map_err(|problem| self.explain(grammar, problem));
        self.keep(grammar, compiled.clone());
        compiled
    }

    fn compile_new(&self, grammar: &Grammar) -> Result<TokenConstraint, String> {
        let top = match grammar {
            Grammar::Schema(schema) => TopLevelGrammar::from_json_schema(schema.value().clone()),
            Grammar::Regex(expression) => TopLevelGrammar::from_regex(expression),
            Grammar::Lark(lark) | Grammar::Calls(CallsGrammar { lark, .. }) => {
                TopLevelGrammar::from_lark(lark.clone())
            }
        };
        let mut matcher = Matcher::new(self.factory.create_parser(top));
        // Compute the first tokens, and the tokens after the common beginning of all answers, such
        // as `{"name": `, on this thread: the request can still be refused, and no other request
        // waits.
        next_tokens(&mut matcher)?;
        let mut ahead = matcher.deep_clone();
        let forced = ahead.compute_ff_bytes();
        // Control tokens are a marker and their number here.
        let (forced, _) = self.factory.tok_env().tokenize_bytes_marker(&forced);
        ahead
            .consume_tokens(&forced)
            .map_err(|error| complaint(&error))?;
        next_tokens(&mut ahead)?;
        let is_json = matches!(grammar, Grammar::Schema(_) | Grammar::Calls(_));
        let numbers = is_json.then(|| NumberLimit {
            trie: Arc::clone(self.factory.tok_env()),
            tokens: Arc::clone(&self.numbers),
            has_text: matches!(grammar, Grammar::Calls(_)),
            digits_in_a_row: 0,
            place: JsonPlace::Other,
        });
        Ok(TokenConstraint { matcher, numbers })
    }

    /// Finds the invalid part of a schema, if the grammar is a schema.
    fn explain(&self, grammar: &Grammar, problem: String) -> GrammarError {
        let blame = |schema: &Schema| schema.blame(|schema| self.check_schema(schema));
        let (param, found) = match grammar {
            Grammar::Schema(schema) => (None, blame(schema)),
            Grammar::Calls(calls) => {
                let mut found = calls.arguments.iter().filter_map(|(param, schema)| {
                    blame(schema).map(|error| (Some(param.clone()), Some(error)))
                });
                found.next().unwrap_or_default()
            }
            Grammar::Regex(_) | Grammar::Lark(_) => (None, None),
        };
        let problem = found.map_or(problem, |error| error.to_string());
        GrammarError { param, problem }
    }

    /// Whether the grammar engine reads a schema.
    fn check_schema(&self, schema: &Value) -> Result<(), String> {
        let tokens = Some(Arc::clone(self.factory.tok_env()));
        let builder = GrammarBuilder::new(tokens, self.factory.limits().clone());
        let options = JsonCompileOptions::default();
        let read = options.json_to_llg_with_overrides(builder, schema.clone());
        read.map(|_| ()).map_err(|error| complaint(&error))
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

/// The error message, in our own words if the engine's message names its own options or states.
fn complaint(error: &impl Display) -> String {
    let text = error.to_string();
    if text.starts_with("oneOf constraints are not supported") {
        return "the schemas of 'oneOf' are not seen to exclude each other; 'anyOf' takes such"
            .to_owned();
    }
    if text.starts_with("NoExtension") {
        return "no answer fits it".to_owned();
    }
    let text = text
        .split("\n  while processing")
        .next()
        .unwrap_or_default();
    let text = text.trim_end_matches("<non-verbose/>").trim();
    text.trim_end_matches('.')
        .chars()
        .take(COMPLAINT_MAX)
        .collect()
}

/// The state of a grammar within one answer. [`Grammars::compile`] returns the initial state, which
/// clones share.
#[derive(Clone)]
pub(crate) struct TokenConstraint {
    matcher: Matcher,
    numbers: Option<NumberLimit>,
}

impl TokenConstraint {
    /// A copy in the initial state, for another answer.
    pub(crate) fn restarted(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            numbers: self.numbers.clone(),
        }
    }
}

/// Tokens that make numbers longer.
struct NumberTokens {
    /// Tokens that begin with a digit.
    digits: SimpleVob,
    /// Tokens that begin with at least one, two and three digits, after an optional sign.
    exponents: [SimpleVob; EXPONENT_DIGITS_MAX + 1],
    /// Tokens that contain too long an exponent.
    long_exponents: SimpleVob,
}

impl NumberTokens {
    fn new(trie: &TokTrie, words: &[Vec<u8>]) -> Self {
        let with = |is_in: &dyn Fn(&[u8]) -> bool| {
            let mut set = trie.alloc_token_set();
            (0..)
                .zip(words)
                .filter(|(_, word)| is_in(word))
                .for_each(|(id, _)| set.allow_token(id));
            set
        };
        let exponents = [1, 2, 3].map(|least| with(&|word| exponent_digits(word) >= least));
        let has_long_exponent = |word: &[u8]| {
            let is_mark = |byte: &u8| matches!(byte, b'e' | b'E');
            let mut marks = (0..word.len()).filter(|&at| is_mark(&word[at]));
            marks.any(|at| exponent_digits(&word[at + 1..]) > EXPONENT_DIGITS_MAX)
        };
        Self {
            digits: with(&|word| word.first().is_some_and(u8::is_ascii_digit)),
            exponents,
            long_exponents: with(&has_long_exponent),
        }
    }
}

/// The number of digits at the beginning, after an optional sign.
fn exponent_digits(word: &[u8]) -> usize {
    let digits = match word {
        [b'+' | b'-', digits @ ..] => digits,
        digits => digits,
    };
    digits
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count()
}

/// The position of an answer within JSON, as far as exponents need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JsonPlace {
    Other,
    String {
        is_escaped: bool,
    },
    /// After a digit or the point of a number.
    Number,
    /// After the `e`, with this many digits.
    Exponent(usize),
}

impl JsonPlace {
    fn step(self, byte: u8) -> Self {
        match (self, byte) {
            // JSON strings contain no line ends. Text may, after a quotation mark that is never
            // closed.
            (Self::String { .. }, b'\n') => Self::Other,
            (Self::String { is_escaped: true }, _) => Self::String { is_escaped: false },
            (Self::String { .. }, b'\\') => Self::String { is_escaped: true },
            (Self::String { .. }, b'"') => Self::Other,
            (Self::String { .. }, _) => self,
            (_, b'"') => Self::String { is_escaped: false },
            (Self::Exponent(digits), b'0'..=b'9') => Self::Exponent(digits + 1),
            (_, b'0'..=b'9') | (Self::Number, b'.') => Self::Number,
            (Self::Number, b'e' | b'E') => Self::Exponent(0),
            (Self::Exponent(0), b'+' | b'-') => self,
            _ => Self::Other,
        }
    }
}

/// Ends the numbers of an answer in JSON before they are too long.
#[derive(Clone)]
struct NumberLimit {
    trie: TokEnv,
    tokens: Arc<NumberTokens>,
    /// Whether the answer may have text beside JSON. Where such an answer may end, it is in text.
    has_text: bool,
    digits_in_a_row: usize,
    place: JsonPlace,
}

impl NumberLimit {
    /// Removes the tokens that add too many digits, if others are left.
    fn limit(&mut self, mask: &mut SimpleVob) {
        if self.has_text && mask.is_allowed(self.trie.tok_trie().eos_token()) {
            self.place = JsonPlace::Other;
            return;
        }
        let mut shorter = mask.clone();
        if self.digits_in_a_row >= DIGITS_MAX {
            shorter.sub(&self.tokens.digits);
        }
        if let JsonPlace::Exponent(digits) = self.place {
            let room = EXPONENT_DIGITS_MAX.saturating_sub(digits);
            shorter.sub(&self.tokens.exponents[room]);
        }
        if !matches!(self.place, JsonPlace::String { .. }) {
            shorter.sub(&self.tokens.long_exponents);
        }
        if !shorter.is_zero() {
            *mask = shorter;
        }
    }

    fn count(&mut self, token: TokenId) {
        let bytes = self.trie.tok_trie().token(token.0);
        self.place = bytes
            .iter()
            .fold(self.place, |place, &byte| place.step(byte));
        let is_digit = |byte: &&u8| byte.is_ascii_digit();
        let at_end = bytes.iter().rev().take_while(is_digit).count();
        if at_end == bytes.len() {
            self.digits_in_a_row += at_end;
        } else {
            self.digits_in_a_row = at_end;
        }
    }
}

impl Constraint for TokenConstraint {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        let mut mask = next_tokens(&mut self.matcher)?;
        if let Some(numbers) = &mut self.numbers {
            numbers.limit(&mut mask);
        }
        allowed.assign(mask.as_slice());
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        // The grammar has already ended when the stop token arrives.
        if self.matcher.is_stopped() {
            return Ok(());
        }
        if let Some(numbers) = &mut self.numbers {
            numbers.count(token);
        }
        self.matcher
            .consume_token(token.0)
            .map_err(|error| complaint(&error))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use bitnet_inference::{Device, Loaded, load};
    use bitnet_models::LoadOptions;
    use bitnet_tokenizers::Tokenizer;
    use serde_json::json;

    use super::*;
    use crate::schema::Strictness;

    fn schema(schema: Value) -> Grammar {
        Grammar::Schema(Schema::new(&schema, Strictness::Form).expect("a schema"))
    }

    /// A grammar of one tool with these parameters, whose calls are the arguments alone.
    fn tool(parameters: Value) -> Grammar {
        let schema = Schema::of_arguments(Some(&parameters), false).expect("a schema");
        Grammar::Schema(schema)
    }

    pub(crate) fn grammars(tokenizer: &Tokenizer) -> Grammars {
        let vocabulary = FormVocabulary::new(tokenizer, tokenizer.vocab_size());
        Grammars::new(&vocabulary.expect("a vocabulary")).expect("grammars")
    }

    pub(crate) fn tokenizer() -> Arc<Tokenizer> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../models/stories/stories.gguf");
        let device = Device::cpu(1);
        let Loaded { tokenization, .. } =
            load(&path, &LoadOptions::default(), device).expect("the built-in model");
        tokenization.expect("a tokenizer").tokenizer
    }

    /// Whether a text can be an answer under a grammar.
    pub(crate) fn accepts(
        grammars: &Grammars,
        tokenizer: &Tokenizer,
        grammar: &Grammar,
        text: &str,
    ) -> bool {
        let options = bitnet_tokenizers::EncodeOptions {
            add_special: false,
            parse_special: false,
        };
        let tokens = tokenizer.encode(text, options).expect("tokens");
        accepts_tokens(grammars, tokenizer, grammar, tokens)
    }

    /// The same of tokens.
    pub(crate) fn accepts_tokens(
        grammars: &Grammars,
        tokenizer: &Tokenizer,
        grammar: &Grammar,
        tokens: Vec<TokenId>,
    ) -> bool {
        let mut constraint = grammars.compile(grammar).expect("a grammar").restarted();
        let mut allowed = TokenSet::default();
        for token in tokens {
            if constraint.allowed(&mut allowed).is_err() || !allowed.contains(token) {
                return false;
            }
            constraint.accept(token).expect("an allowed token");
        }
        constraint.allowed(&mut allowed).is_ok()
            && tokenizer.stop_ids().iter().all(|id| allowed.contains(*id))
    }

    #[test]
    fn grammars_accept_only_the_texts_they_describe() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let person = schema(json!({
            "type": "object",
            "properties": { "name": { "type": "string" }, "age": { "type": "integer" }, "tags": { "$ref": "#/$defs/tags" } },
            "required": ["name", "age"],
            "additionalProperties": false,
            "$defs": { "tags": { "type": "array", "items": { "enum": ["a", "b"] } } },
        }));
        let object = schema(json!({ "type": "object" }));
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
    fn numbers_in_json_have_a_bounded_length() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let number = schema(json!({ "type": "number" }));
        let any = schema(json!({ "type": "object" }));
        let demanded = schema(json!({ "type": "string", "pattern": "^[0-9]{80}$" }));
        let lark = "start: TEXT | \"<\" arguments \">\"\nTEXT: /[^<]*/\narguments: %json { \"type\": \"integer\" }\n";
        let [text, calls] = [
            Grammar::Lark(lark.to_owned()),
            Grammar::Calls(CallsGrammar {
                lark: lark.to_owned(),
                arguments: Vec::new(),
            }),
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
    fn invalid_grammars_are_refused() {
        let grammars = grammars(&tokenizer());
        for wrong in [
            schema(json!({ "type": "string", "pattern": "(" })),
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
            let complaint = complaint.problem;
            assert!(
                !complaint.is_empty() && complaint.len() <= 4 * COMPLAINT_MAX,
                "{shown}: {complaint}"
            );
        }
    }

    #[test]
    fn a_grammar_is_compiled_once_and_its_cached_state_stays_initial() {
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
    fn one_of_is_enforced_or_refused() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let pet = |name: &str| json!({ "type": "object", "properties": { "is": { "const": name } }, "required": ["is"] });
        let disjoint = schema(json!({ "oneOf": [pet("cat"), pet("dog"), { "type": "null" }] }));
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
            &schema(named),
            r#"{"is": "cat"}"#
        ));
        let overlapping = json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] });
        let complaint = grammars
            .compile(&schema(overlapping))
            .err()
            .expect("a refusal");
        let complaint = complaint.problem;
        assert!(complaint.contains("exclude each other"), "{complaint}");
    }

    #[test]
    fn a_grammar_whose_first_token_is_too_much_work_is_refused() {
        let grammars = grammars(&tokenizer());
        let properties = |count: usize| -> Grammar {
            let properties =
                (0..count).map(|index| (format!("p{index}"), json!({ "type": "string" })));
            let properties: serde_json::Map<_, _> = properties.collect();
            schema(json!({ "type": "object", "properties": properties }))
        };
        assert!(grammars.compile(&properties(100)).is_ok());
        assert!(grammars.compile(&properties(3000)).is_err());
    }

    #[test]
    fn exponents_fit_into_an_f64() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let number = schema(json!({ "type": "number" }));
        let any = schema(json!({}));
        let calls =
            "start: TEXT | TEXT \"<\" arguments \">\"\nTEXT: /[^<]*/\narguments: %json {}\n";
        let calls = Grammar::Calls(CallsGrammar {
            lark: calls.to_owned(),
            arguments: Vec::new(),
        });
        for (grammar, text, expected) in [
            (&number, "6.3e+54", true),
            (&number, "-1E5", true),
            (&number, "0e-00", true),
            (&number, "6.3e+541", false),
            (&number, "1e5413", false),
            (&any, "[1e5413]", false),
            (&any, "[1e54, 2e13]", true),
            (&any, r#"["1e5413", "\"1e5413", "12e4567"]"#, true),
            (&any, r#"{"1e5413": 1e99}"#, true),
            (&any, r#"{"1e5413": 1e100}"#, false),
            (&calls, "1e5413", true),
            (&calls, "\"<1e5413>", false),
            (&calls, "\"<1e54>", true),
        ] {
            assert_eq!(
                accepts(&grammars, &tokenizer, grammar, text),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn normalized_schemas_accept_the_same_values() {
        let tokenizer = tokenizer();
        let grammars = grammars(&tokenizer);
        let int64 = json!({ "type": "integer", "minimum": i64::MIN, "maximum": i64::MAX });
        let snowflake = json!({ "type": "integer", "minimum": 1_000_000_000_000_000_001_i64 });
        let escaped = json!({ "$ref": "#/$defs/a~1b", "$defs": { "a/b": { "const": 1 } } });
        let parts = json!({
            "allOf": [{ "$ref": "#/$defs/a" }, { "properties": { "b": { "type": "null" } } }],
            "required": ["a", "b"], "$defs": { "a": { "properties": { "a": { "const": 1 } } } },
        });
        let union = json!({ "properties": { "a": { "const": 1 } }, "required": ["a"],
            "anyOf": [{ "properties": { "b": { "const": 2 } } }, { "required": ["a"] }] });
        let either = json!({ "properties": { "a": { "anyOf": [
            { "type": "object", "properties": { "x": { "const": 1 } } }, { "type": "null" },
        ] } } });
        let tree = json!({ "properties": { "c": { "type": "array", "items": { "$ref": "#" } } } });
        let double = json!({ "type": "number", "minimum": -f64::MAX, "maximum": f64::MAX });
        let large = json!({ "type": "number", "minimum": -1e20, "maximum": 1e20 });
        let open = json!({ "type": "object", "properties": { "a": { "type": "integer" } },
            "additionalProperties": { "type": "string" } });
        let url = json!({ "type": "string", "pattern": r"^[a-c:/?#[\]@&&]+$" });
        for (grammar, text, expected) in [
            (schema(open.clone()), r#"{"a": 1, "b": "x"}"#, true),
            (schema(open.clone()), r#"{"a": "x"}"#, false),
            // The same name as "a".
            (schema(open.clone()), r#"{"\u0061": "x"}"#, false),
            (tool(open), r#"{"a": 1, "\u0061": "x"}"#, false),
            (schema(url.clone()), r#""a:/[b]&""#, true),
            (schema(url), r#""a d""#, false),
            (schema(double), "-1.5e3", true),
            (schema(large.clone()), "-999999999999999871.5", true),
            (schema(large), "0.5", true),
            (schema(int64.clone()), "-9223372036854774784", true),
            (schema(int64.clone()), "9223372036854774784", true),
            (schema(int64.clone()), "9223372036854775808", false),
            (schema(int64.clone()), "-9223372036854775809", false),
            (schema(int64), "0", true),
            (schema(snowflake.clone()), "1234567890123456789", true),
            (schema(snowflake), "1000000000000000000", false),
            (schema(escaped), "1", true),
            (tool(parts.clone()), r#"{"a": 1, "b": null}"#, true),
            (tool(parts.clone()), r#"{"a": 1, "b": null, "c": 3}"#, false),
            (schema(parts), r#"{"a": 1, "b": null, "c": 3}"#, true),
            (tool(union.clone()), r#"{"a": 1, "b": 2}"#, true),
            (tool(union.clone()), r#"{"a": 1, "b": 3}"#, false),
            (tool(union), r#"{"a": 1, "c": 3}"#, false),
            (tool(either.clone()), r#"{"a": {"x": 1}}"#, true),
            (tool(either.clone()), r#"{"a": null}"#, true),
            (tool(either), r#"{"a": {"y": 1}}"#, false),
            (tool(tree.clone()), r#"{"c": [{"c": []}, {}]}"#, true),
            (tool(tree), r#"{"c": [{"d": 1}]}"#, false),
            (
                schema(json!({ "properties": { "a": true } })),
                "null",
                false,
            ),
            (
                schema(json!({ "properties": { "a": true } })),
                r#"{"b": 1}"#,
                true,
            ),
        ] {
            let is_accepted = accepts(&grammars, &tokenizer, &grammar, text);
            assert_eq!(is_accepted, expected, "{grammar:?} {text}");
        }
    }

    #[test]
    fn errors_of_the_grammar_engine_name_their_place() {
        let grammars = grammars(&tokenizer());
        let within = |p: Value| {
            json!({ "properties": {
                "first": { "type": "string" },
                "list": { "type": "array", "items": { "$ref": "#/$defs/entry" } },
            }, "$defs": { "entry": { "properties": { "p": p }, "required": ["p"] } } })
        };
        for (wrong, expected) in [
            (json!({ "type": "string", "pattern": "(" }), "regex"),
            (
                json!({ "type": "integer", "exclusiveMinimum": 1, "maximum": 1 }),
                "exclusiveMinimum (1)",
            ),
            (
                json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }),
                "exclude each",
            ),
        ] {
            let error = grammars.compile(&schema(within(wrong.clone()))).err();
            let problem = error.expect("a refusal").problem;
            let place = "at '#/$defs/entry/properties/p': ";
            assert!(
                problem.starts_with(place) && problem.contains(expected),
                "{problem}"
            );
        }
        let wrong = Schema::of_arguments(
            Some(&within(json!({ "type": "string", "pattern": "(" }))),
            false,
        );
        let wrong = wrong.expect("a schema");
        let right = Schema::of_arguments(None, false).expect("a schema");
        let lark = format!(
            "start: a | b\na: %json {}\nb: %json {}\n",
            right.value(),
            wrong.value()
        );
        let arguments = vec![
            ("tools[0]".to_owned(), right),
            ("tools[1]".to_owned(), wrong),
        ];
        let error = grammars
            .compile(&Grammar::Calls(CallsGrammar { lark, arguments }))
            .err();
        assert_eq!(error.expect("a refusal").param.as_deref(), Some("tools[1]"));
    }
}
