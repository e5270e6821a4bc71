//! Renders chats given as lines of JSON, to compare with other implementations.
//!
//! A line is an object with `template`, `messages` and, optionally, `tools`, `documents`,
//! `variables`, `add_generation_prompt`, `continue_final_message`, `now`, `bos_token` and
//! `eos_token`. The answer is a line with `text`, or with `error`.

use std::io::{BufRead, Write};

use anyhow::Context;
use bitnet_tokenizers::{ChatMessage, ChatTemplate, RenderOptions, Tokenizer, TokenizerSpec};
use serde_json::{Map, Value, json};

fn main() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?).context("a line is not JSON")?;
        let answer = match render(&request) {
            Ok(text) => json!({ "text": text }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn render(request: &Value) -> anyhow::Result<String> {
    let source = request["template"].as_str().context("no template")?;
    let messages: Vec<ChatMessage> = serde_json::from_value(request["messages"].clone())?;
    let given = |name: &str| request.get(name).filter(|value| !value.is_null());
    let variables: Option<Map<String, Value>> = given("variables")
        .map(|variables| serde_json::from_value(variables.clone()))
        .transpose()?;
    let flag = |name: &str| given(name).and_then(Value::as_bool).unwrap_or(false);
    let options = RenderOptions {
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        tools: given("tools"),
        documents: given("documents"),
        variables: variables.as_ref(),
        now: given("now").and_then(Value::as_i64),
    };
    let template = ChatTemplate::from_jinja(source, &tokenizer(request)?)?;
    Ok(template.render(&messages, options)?.text().to_owned())
}

/// A byte tokenizer with the special tokens that the template receives.
fn tokenizer(request: &Value) -> anyhow::Result<Tokenizer> {
    let bytes = (0..=255).map(|byte| (format!("<0x{byte:02X}>"), 6));
    let special = ["bos_token", "eos_token"].map(|name| request[name].as_str());
    let texts = special.iter().flatten().map(|text| ((*text).to_owned(), 3));
    let (tokens, token_types): (Vec<_>, Vec<_>) = bytes
        .chain(texts)
        .map(|(text, kind)| (text.into(), kind))
        .unzip();
    let index = |text: Option<&str>| text.and_then(|text| tokens.iter().position(|t| *t == text));
    let [bos, eos] = special.map(|text| index(text).map_or(u32::MAX, |index| index as u32));
    Ok(Tokenizer::from_spec(&TokenizerSpec {
        model: "llama".into(),
        tokens,
        token_types,
        bos: Some(bos),
        eos: Some(eos),
        unknown: Some(u32::MAX),
        ..TokenizerSpec::default()
    })?)
}
