//! `bitnet run`: continues a prompt.

use std::io::{ErrorKind, IsTerminal, Read, StdoutLock, Write};
use std::time::Duration;

use anyhow::Context;
use bitnet_inference::{EngineFacts, Finish, FinishReason};
use bitnet_receipts::Receipt;
use bitnet_tokenizers::{ChatMessage, DecodeOptions, PromptBos, RenderOptions, TokenId};
use serde_json::json;

use crate::args::{RunArguments, WrongUsage};
use crate::session::{Answer, Session};
use crate::{receipt, report, session};

/// Continues a prompt. Prints text as soon as it is certain, or one JSON object at the end.
pub fn run(arguments: RunArguments) -> anyhow::Result<()> {
    // Check before the model is loaded, so that the user learns of a missing file at once.
    session::source(arguments.model.only_model()?)?;
    receipt::check_folder(arguments.receipt.as_deref())?;
    let prompt = read_prompt(&arguments)?;
    let session = session::open(&arguments.model, None)?;
    receipt::check_covered(
        arguments.receipt.as_deref(),
        session.model.info(),
        session.model.load_options.group_inputs,
        arguments.model.draft.max,
    )?;
    let prompt = encode(&prompt, &session, &arguments)?;
    let request = session.request(prompt.clone(), &arguments.generation, &arguments.sampling);
    let seed = request.sampling.seed;
    // Check before the prompt is printed; otherwise an error would follow it on the same line.
    let checked = request.clone();
    session
        .driver
        .call(move |engine| engine.check(&checked))??;

    let mut out = std::io::stdout().lock();
    // The reader may close the output, but the receipt still needs the whole run.
    let outlives_reader = arguments.receipt.is_some();
    let show = |out: &mut StdoutLock<'_>, text: &str| show(out, text, outlives_reader);
    if !arguments.json && !arguments.no_display_prompt && !arguments.chat {
        let text = session
            .tokenization()?
            .tokenizer
            .decode(&prompt, DecodeOptions::default());
        show(&mut out, &text)?;
    }
    session.driver.call(|engine| engine.counters().reset())?;
    let answer = session.answer(request.clone(), None, &|| false, |text| {
        if !arguments.json {
            show(&mut out, text)?;
        }
        Ok(())
    })?;
    let Some(reason) = answer.reason else {
        unreachable!("nothing interrupts this command")
    };
    let facts = session.driver.call(|engine| engine.facts())?;
    if arguments.json {
        let object = answer_json(&prompt, &answer, seed, &facts, session.load_time);
        show(&mut out, &format!("{object}\n"))?;
    } else {
        show(&mut out, "\n")?;
        if std::io::stderr().is_terminal() {
            eprintln!(
                "\x1b[2m{}; seed {seed}\x1b[0m",
                report::timings_line(&answer.timings)
            );
        }
    }
    if let Some(path) = &arguments.receipt {
        let finish = Finish {
            reason,
            stop_string: None,
            timings: answer.timings,
            pooled: None,
        };
        let seed_given = arguments.sampling.is_deterministic();
        let provenance = receipt::provenance(&session.model, &arguments.model, seed_given)?;
        let made = Receipt::new(&facts, &request, &answer.tokens, &finish, &provenance)?;
        receipt::write(&made, path)?;
    }
    Ok(())
}

/// Prints text at once. If the command outlives its reader, a closed output is no error.
fn show(out: &mut StdoutLock<'_>, text: &str, outlives_reader: bool) -> std::io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if outlives_reader && error.kind() == ErrorKind::BrokenPipe => Ok(()),
        shown => shown,
    }
}

fn answer_json(
    prompt: &[TokenId],
    answer: &Answer,
    seed: u64,
    facts: &EngineFacts,
    load_time: Duration,
) -> serde_json::Value {
    json!({
        "prompt_tokens": prompt,
        "tokens": answer.tokens,
        "text": answer.text,
        "finish_reason": answer.reason.map(FinishReason::name),
        "seed": seed,
        "packing": facts.model.packing,
        "head": report::head_json(facts),
        "ffn_sparsity": report::ffn_sparsity_json(facts),
        "timings": report::timings_json(&answer.timings, load_time),
    })
}

/// The prompt.
enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

fn read_prompt(arguments: &RunArguments) -> anyhow::Result<Prompt> {
    if let Some(tokens) = &arguments.prompt_tokens {
        return Ok(Prompt::Tokens(tokens.clone()));
    }
    if let Some(text) = arguments
        .prompt
        .as_ref()
        .or(arguments.prompt_option.as_ref())
    {
        return Ok(Prompt::Text(text.clone()));
    }
    let text = match arguments.file.as_deref() {
        Some(path) if path.as_os_str() != "-" => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the prompt from {}", path.display()))?,
        None if std::io::stdin().is_terminal() => {
            return Err(WrongUsage(
                "no prompt: pass it as argument, with -f FILE, or on standard input".to_owned(),
            )
            .into());
        }
        _ => read_stdin("the prompt")?,
    };
    // Editors add a line end that is not part of the text.
    Ok(Prompt::Text(
        text.strip_suffix('\n')
            .map_or(text.as_str(), |text| {
                text.strip_suffix('\r').unwrap_or(text)
            })
            .to_owned(),
    ))
}

/// Reads all of standard input as text.
pub fn read_stdin(what: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {what} from standard input"))?;
    Ok(text)
}

/// The meaning of `--no-bos`.
pub fn prompt_bos(no_bos: bool) -> PromptBos {
    if no_bos {
        PromptBos::Never
    } else {
        PromptBos::AsModel
    }
}

fn encode(
    prompt: &Prompt,
    session: &Session,
    arguments: &RunArguments,
) -> anyhow::Result<Vec<TokenId>> {
    let text = match prompt {
        Prompt::Tokens(tokens) => return Ok(tokens.clone()),
        Prompt::Text(text) => text,
    };
    let tokenization = session.tokenization()?;
    let tokenizer = &tokenization.tokenizer;
    if arguments.chat {
        let template = crate::chat::template(tokenization, None)?;
        let chat = template.render(
            &[ChatMessage::new("user", text.as_str())],
            RenderOptions::default(),
        )?;
        return Ok(tokenizer.encode_chat(&chat)?);
    }
    Ok(tokenizer.encode_prompt(text, prompt_bos(arguments.no_bos), arguments.parse_special)?)
}
