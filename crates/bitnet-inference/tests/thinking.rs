//! A model's thinking before its answer: a budget closes it, and a form begins after it.

use std::path::Path;
use std::sync::Arc;

use bitnet_inference::{Constraint, Thinking, ThinkingMarks, TokenSet, load_tokenization};
use bitnet_tokenizers::{ReasoningStart, ReasoningTags, TokenId, Tokenizer};

/// Tokens of the vocabulary, one of which is each tag.
const NEWLINE: TokenId = TokenId(198);
const END_OF_ANSWER: TokenId = TokenId(408);
const BEGIN: TokenId = TokenId(411);
const END: TokenId = TokenId(412);
const WORD: TokenId = TokenId(300);
const VOCAB_SIZE: usize = 421;

fn tokenizer() -> Arc<Tokenizer> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf");
    load_tokenization(&path).expect("a tokenizer").tokenizer
}

fn thinking(start: ReasoningStart, budget: Option<usize>) -> Thinking {
    let tags = ReasoningTags {
        begin: "<think>",
        end: "</think>",
    };
    let marks = ThinkingMarks::new(tags, tokenizer()).expect("marks");
    Thinking::new(Arc::new(marks), start, VOCAB_SIZE, budget)
}

/// The tokens that may come next; all if the constraint is free.
fn allowed(constraint: &mut Thinking) -> Vec<TokenId> {
    let mut set = TokenSet::default();
    if !constraint.is_free() {
        constraint.allowed(&mut set).expect("some token");
    }
    let is_free = constraint.is_free();
    let ids = (0..VOCAB_SIZE as u32).map(TokenId);
    ids.filter(|id| is_free || set.contains(*id)).collect()
}

fn take(constraint: &mut Thinking, tokens: &[TokenId]) {
    for token in tokens {
        assert!(allowed(constraint).contains(token), "{token} is allowed");
        constraint.accept(*token).expect("an allowed token");
    }
}

/// Takes the tokens of the closing, each of which is the only one allowed.
fn take_closing(constraint: &mut Thinking) {
    for token in [NEWLINE, END, NEWLINE, NEWLINE] {
        assert_eq!(allowed(constraint), [token]);
        take(constraint, &[token]);
    }
}

/// Allows one token only, for ever.
struct Only(TokenId);

impl Constraint for Only {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        *allowed = TokenSet::new(&[self.0]);
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        if token == self.0 {
            Ok(())
        } else {
            Err(format!("{token} is not {}", self.0))
        }
    }
}

#[test]
fn a_spent_budget_closes_the_thinking_with_its_tag() {
    for (start, first) in [
        (ReasoningStart::Open, &[][..]),
        (ReasoningStart::MayOpen, &[NEWLINE, BEGIN]),
    ] {
        for budget in [0, 1, 3] {
            let mut constraint = thinking(start, Some(budget));
            take(&mut constraint, first);
            for _ in 0..budget {
                assert_eq!(allowed(&mut constraint).len(), VOCAB_SIZE, "{budget}");
                take(&mut constraint, &[WORD]);
            }
            take_closing(&mut constraint);
            take(&mut constraint, &[WORD, BEGIN, WORD, END_OF_ANSWER]);
        }
    }
}

#[test]
fn an_answer_without_thinking_is_free() {
    let mut closed = thinking(ReasoningStart::Closed, Some(0));
    take(&mut closed, &[BEGIN, WORD]);
    let mut answered = thinking(ReasoningStart::MayOpen, Some(0));
    take(&mut answered, &[WORD, BEGIN, WORD]);
    let mut ended = thinking(ReasoningStart::Open, Some(2));
    take(&mut ended, &[WORD, END, WORD, WORD, WORD, WORD]);
}

#[test]
fn a_character_is_whole_before_the_budget_closes_the_thinking() {
    let bytes = tokenizer().encode("\u{1F44D}", Default::default());
    let bytes = bytes.expect("tokens");
    assert_eq!(bytes.len(), 4, "one token for each byte");
    let mut constraint = thinking(ReasoningStart::Open, Some(2));
    take(&mut constraint, &bytes);
    take_closing(&mut constraint);
    // Bytes that are no character do not keep it open.
    let mut constraint = thinking(ReasoningStart::Open, Some(1));
    take(&mut constraint, &[bytes[0]; 5]);
    take_closing(&mut constraint);
}

#[test]
fn a_form_holds_for_the_answer_behind_the_thinking() {
    let form = || Box::new(Only(TokenId(7)));
    let stop = [END_OF_ANSWER];
    let mut constraint = thinking(ReasoningStart::Open, None).before(form(), &stop);
    let free = allowed(&mut constraint);
    assert_eq!(free.len(), VOCAB_SIZE - 1);
    assert!(
        !free.contains(&END_OF_ANSWER),
        "the answer must have its form"
    );
    take(&mut constraint, &[WORD, TokenId(7), END]);
    assert_eq!(allowed(&mut constraint), [TokenId(7)]);
    take(&mut constraint, &[TokenId(7), TokenId(7)]);

    let mut spent = thinking(ReasoningStart::Open, Some(1)).before(form(), &stop);
    take(&mut spent, &[WORD]);
    take_closing(&mut spent);
    assert_eq!(allowed(&mut spent), [TokenId(7)]);

    let mut opening = thinking(ReasoningStart::MayOpen, None).before(form(), &stop);
    assert_eq!(allowed(&mut opening), [TokenId(7), BEGIN]);
    take(&mut opening, &[BEGIN, WORD, END, TokenId(7)]);
    let mut direct = thinking(ReasoningStart::MayOpen, None).before(form(), &stop);
    take(&mut direct, &[TokenId(7)]);
    assert_eq!(allowed(&mut direct), [TokenId(7)]);
}
