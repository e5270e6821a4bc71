//! A chat template in Jinja: rendering ends within the limits, and the rendered text becomes
//! tokens.
//!
//! An input is the template and the contents of the messages, separated by NUL; user and assistant
//! take turns.
#![no_main]

use std::sync::LazyLock;

use bitnet_tokenizers::{ChatMessage, ChatTemplate, RenderOptions, Tokenizer, TokenizerSpec};
use libfuzzer_sys::fuzz_target;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let bytes = (0..=255).map(|byte| (format!("<0x{byte:02X}>"), 6));
    let control = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"].map(|text| (text.to_owned(), 3));
    let (tokens, token_types) = bytes
        .chain(control)
        .map(|(text, kind)| (text.into(), kind))
        .unzip();
    let spec = TokenizerSpec {
        model: "llama".into(),
        tokens,
        token_types,
        bos: Some(256),
        eos: Some(257),
        ..TokenizerSpec::default()
    };
    Tokenizer::from_spec(&spec).expect("the tokenizer is sound")
});

fuzz_target!(|input: &str| {
    let mut parts = input.split('\0');
    let Ok(template) = ChatTemplate::from_jinja(parts.next().unwrap_or_default(), &TOKENIZER) else { return };
    let message = |(turn, content)| ChatMessage::new(["user", "assistant"][turn % 2], content);
    let messages: Vec<_> = parts.enumerate().map(message).collect();
    let options = RenderOptions { now: Some(1_700_000_000), ..RenderOptions::default() };
    if let Ok(chat) = template.render(&messages, options) {
        assert!(chat.guards().iter().all(|guard| chat.text().get(guard.clone()).is_some()));
        drop(TOKENIZER.encode_chat(&chat));
    }
});
