//! `bitnet chat`: a conversation, line by line.

use std::io::{BufRead, IsTerminal, StdoutLock, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use bitnet_inference::{
    FinishReason, MakeConstraint, ModelSource, Thinking, ThinkingMarks, Timings, Tokenization,
};
use bitnet_tokenizers::{
    ChatMessage, ChatTemplate, PromptBos, ReasoningSplitter, ReasoningTags, RenderOptions,
    SplitText, TokenId,
};
use rustyline::error::ReadlineError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::args::{ChatArguments, OnOff, WrongUsage};
use crate::session::Session;
use crate::{built_in, interrupt, report, session};

const HELP: &str = "\
/help          this list
/clear         forget the conversation
/system TEXT   set the system message; without TEXT show it
/save FILE     write the conversation to a file
/load FILE     continue a saved conversation
/stats         speed of the last answer, and how full the context is
/quit          leave (so does Ctrl-D); Ctrl-C stops an answer";

/// The chat template called `name` or in the file `name`, or the model's own for `None`.
pub fn template(
    tokenization: &Tokenization,
    name: Option<&str>,
) -> anyhow::Result<Arc<ChatTemplate>> {
    if let Some(name) = name {
        return named_template(name, tokenization).map(Arc::new);
    }
    match &tokenization.chat_template {
        Ok(Some(template)) => Ok(Arc::clone(template)),
        Ok(None) => {
            anyhow::bail!(
                "this model has no chat template; name one with --chat-template, or use `bitnet run`"
            )
        }
        Err(error) => anyhow::bail!("the model's chat template cannot be used: {error}"),
    }
}

/// A built-in template, or one in Jinja from a file.
fn named_template(name: &str, tokenization: &Tokenization) -> anyhow::Result<ChatTemplate> {
    let tokenizer = &tokenization.tokenizer;
    if ChatTemplate::names().any(|known| known == name) {
        return Ok(ChatTemplate::by_name(name, tokenizer)?);
    }
    let path = Path::new(name);
    if !path.is_file() {
        let names: Vec<&str> = ChatTemplate::names().collect();
        let message = format!(
            "--chat-template {name}: no such file, and no such template (known: {})",
            names.join(", ")
        );
        return Err(WrongUsage(message).into());
    }
    let source = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    ChatTemplate::from_jinja(&source, tokenizer).with_context(|| name.to_owned())
}

/// A conversation in a file of `/save`: messages as in OpenAI's API.
#[derive(Serialize, Deserialize)]
struct SavedChat {
    messages: Vec<ChatMessage>,
}

struct Chat {
    session: Session,
    /// `None` for the built-in story-teller: it continues each line as a story.
    template: Option<Arc<ChatTemplate>>,
    arguments: ChatArguments,
    system: Option<String>,
    messages: Vec<ChatMessage>,
    timings: Option<Timings>,
    interrupted: Arc<AtomicBool>,
}

/// What an answer continues.
struct Prompt {
    tokens: Vec<TokenId>,
    /// The tags of thinking, if the template has any, and the prompt as text.
    reasoning: Option<(ReasoningTags, String)>,
}

/// Shows an answer as it arrives: thinking dimmed on a terminal and nowhere else.
struct Screen {
    out: StdoutLock<'static>,
    is_terminal: bool,
    /// Nothing is shown until the end.
    is_silent: bool,
    splitter: Option<ReasoningSplitter>,
    reasoning: String,
    content: String,
}

impl Screen {
    fn new(prompt: &Prompt, is_silent: bool) -> Self {
        let reasoning = prompt.reasoning.as_ref();
        Self {
            out: std::io::stdout().lock(),
            is_terminal: std::io::stdout().is_terminal(),
            is_silent,
            splitter: reasoning.map(|(tags, text)| ReasoningSplitter::new(*tags, text)),
            reasoning: String::new(),
            content: String::new(),
        }
    }

    fn show(&mut self, text: &str) -> anyhow::Result<()> {
        let parts = match &mut self.splitter {
            Some(splitter) => splitter.push(text),
            None => vec![SplitText::Content(text.to_owned())],
        };
        self.show_parts(parts)
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        let splitter = self.splitter.as_mut();
        let parts = splitter.map_or_else(Vec::new, ReasoningSplitter::finish);
        self.show_parts(parts)
    }

    fn show_parts(&mut self, parts: Vec<SplitText>) -> anyhow::Result<()> {
        for part in parts {
            match part {
                SplitText::Reasoning(text) => {
                    if self.is_terminal && !self.is_silent {
                        write!(self.out, "\x1b[2m{text}\x1b[0m")?;
                    }
                    self.reasoning += &text;
                }
                SplitText::Content(text) => {
                    let is_first = self.content.is_empty() && !self.reasoning.is_empty();
                    if is_first && self.is_terminal && !self.is_silent {
                        write!(self.out, "\n\n")?;
                    }
                    if !self.is_silent {
                        write!(self.out, "{text}")?;
                    }
                    self.content += &text;
                }
            }
        }
        Ok(self.out.flush()?)
    }
}

/// Chats until the input ends.
pub fn chat(arguments: ChatArguments) -> anyhow::Result<()> {
    let session = session::open_for_chat(&arguments.model)?;
    let is_story_teller = matches!(session.model.source, ModelSource::Embedded { .. })
        && arguments.chat_template.is_none();
    let template = match is_story_teller {
        true => None,
        false => Some(template(
            session.tokenization()?,
            arguments.chat_template.as_deref(),
        )?),
    };
    let interrupted = interrupt::watch()?;
    let system = arguments.system.clone();
    let mut chat = Chat {
        session,
        template,
        arguments,
        system,
        messages: Vec::new(),
        timings: None,
        interrupted,
    };
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        chat.talk()
    } else {
        chat.answer_lines()
    }
}

impl Chat {
    /// Chats on a terminal.
    fn talk(&mut self) -> anyhow::Result<()> {
        match &self.template {
            None => println!("{}", built_in::BANNER),
            Some(template) => {
                let name = self.session.model.info().config.name.clone();
                println!(
                    "{} · {} template",
                    name.unwrap_or_else(|| self.session.model.source.to_string()),
                    template.name()
                );
            }
        }
        println!("/help lists the commands.");
        let mut editor = rustyline::DefaultEditor::new()?;
        let history = history_path();
        if let Some(path) = &history {
            // The first time, there is no file.
            let _ = editor.load_history(path);
        }
        loop {
            match editor.readline("\x1b[1m> \x1b[0m") {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    editor.add_history_entry(line.as_str())?;
                    match self.line(&line) {
                        Ok(true) => break,
                        Ok(false) => {}
                        // An error does not end the conversation.
                        Err(error) => eprintln!("\x1b[31m{error:#}\x1b[0m"),
                    }
                }
                Err(ReadlineError::Interrupted) => println!("(Ctrl-D or /quit to leave)"),
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(path) = &history {
            let saved = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            if let Err(error) = saved
                .map_err(ReadlineError::from)
                .and_then(|()| editor.save_history(path))
            {
                eprintln!(
                    "cannot save the history of lines to {}: {error}",
                    path.display()
                );
            }
        }
        Ok(())
    }

    /// Chats through a pipe: every line is a message or a command, and the first error ends it.
    fn answer_lines(&mut self) -> anyhow::Result<()> {
        for line in std::io::stdin().lock().lines() {
            let line = line.context("cannot read standard input")?;
            if !line.trim().is_empty() && self.line(&line)? {
                break;
            }
        }
        Ok(())
    }

    /// Handles one line. Returns true to leave.
    fn line(&mut self, line: &str) -> anyhow::Result<bool> {
        let Some(command) = line.trim().strip_prefix('/') else {
            self.ask(line)?;
            return Ok(false);
        };
        let (command, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        let rest = rest.trim();
        match command {
            "help" => say(HELP)?,
            "clear" => self.messages.clear(),
            "system" if rest.is_empty() => say(self.system.as_deref().unwrap_or("(nothing)"))?,
            "system" => self.system = Some(rest.to_owned()),
            "save" | "load" if rest.is_empty() => {
                anyhow::bail!("/{command} needs the name of a file")
            }
            "save" => self.save(Path::new(rest))?,
            "load" => self.load(Path::new(rest))?,
            "stats" => self.stats()?,
            "quit" | "exit" => return Ok(true),
            _ => anyhow::bail!("there is no command /{command}; /help lists them"),
        }
        Ok(false)
    }

    /// The messages for the template.
    fn conversation(&self) -> Vec<ChatMessage> {
        let system = self
            .system
            .iter()
            .map(|text| ChatMessage::new("system", text.as_str()));
        system.chain(self.messages.iter().cloned()).collect()
    }

    fn ask(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(ChatMessage::new("user", text));
        let result = self.answer();
        if result.is_err() {
            // A question without an answer is not part of the conversation.
            self.messages.pop();
        }
        result
    }

    /// The prompt: the conversation in the model's template, or the beginning of a story.
    fn prompt(&self) -> anyhow::Result<Prompt> {
        let tokenizer = &self.session.tokenization()?.tokenizer;
        let Some(template) = &self.template else {
            let beginning = self.last_text();
            return Ok(Prompt {
                tokens: tokenizer.encode_prompt(beginning.trim(), PromptBos::AsModel, false)?,
                reasoning: None,
            });
        };
        let mut variables = Map::new();
        if let Some(thinking) = self.arguments.thinking {
            let thinks = Value::Bool(thinking == OnOff::On);
            variables.insert("enable_thinking".to_owned(), thinks);
        }
        let options = RenderOptions {
            variables: Some(&variables),
            ..RenderOptions::default()
        };
        let rendered = template.render(&self.conversation(), options)?;
        let tags = template.reasoning_tags();
        Ok(Prompt {
            tokens: tokenizer.encode_chat(&rendered)?,
            reasoning: tags.map(|tags| (tags, rendered.text().to_owned())),
        })
    }

    fn last_text(&self) -> String {
        let last = self.messages.last();
        last.map_or_else(String::new, ChatMessage::text)
    }

    /// The limit on thinking, if there is one.
    fn thinking_limit(&self, prompt: &Prompt) -> anyhow::Result<Option<MakeConstraint>> {
        let (Some((tags, text)), Some(budget)) =
            (&prompt.reasoning, self.arguments.thinking_budget)
        else {
            return Ok(None);
        };
        let tokenizer = Arc::clone(&self.session.tokenization()?.tokenizer);
        let marks = Arc::new(ThinkingMarks::new(*tags, tokenizer)?);
        let start = tags.start_after(text);
        let vocab_size = self.session.model.info().config.vocab_size;
        Ok(Some(Box::new(move || {
            let marks = Arc::clone(&marks);
            Box::new(Thinking::new(marks, start, vocab_size, Some(budget)))
        })))
    }

    fn answer(&mut self) -> anyhow::Result<()> {
        let prompt = self.prompt()?;
        let request = self.session.request(
            prompt.tokens.clone(),
            &self.arguments.generation,
            &self.arguments.sampling,
        );
        let limit = self.thinking_limit(&prompt)?;
        let seed = request.sampling.seed;
        self.interrupted.store(false, Ordering::SeqCst);
        let interrupted = Arc::clone(&self.interrupted);
        let json = self.arguments.json;
        let mut screen = Screen::new(&prompt, json);
        if self.template.is_none() && !json {
            write!(screen.out, "{}", self.last_text().trim())?;
        }
        let answer = self.session.answer(
            request,
            limit,
            &|| interrupted.load(Ordering::SeqCst),
            |text| screen.show(text),
        )?;
        screen.finish()?;
        let Screen {
            mut out,
            reasoning,
            content,
            ..
        } = screen;
        self.timings = Some(answer.timings);
        if json {
            let mut object = json!({
                "prompt_tokens": prompt.tokens,
                "tokens": answer.tokens,
                "text": content,
                "finish_reason": answer.reason.map_or("interrupted", FinishReason::name),
                "seed": seed,
                "timings": report::timings_json(&answer.timings, self.session.load_time),
            });
            if !reasoning.is_empty() {
                object["reasoning_content"] = reasoning.as_str().into();
            }
            writeln!(out, "{object}")?;
        } else {
            writeln!(out)?;
        }
        let mut message = Map::new();
        message.insert("role".to_owned(), "assistant".into());
        message.insert("content".to_owned(), content.into());
        if !reasoning.is_empty() {
            message.insert("reasoning_content".to_owned(), reasoning.into());
        }
        self.messages.push(ChatMessage::from_fields(message)?);
        Ok(())
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let saved = SavedChat {
            messages: self.conversation(),
        };
        // Do not overwrite a file of the user.
        let file = std::fs::File::create_new(path)
            .with_context(|| format!("cannot save to {}", path.display()))?;
        serde_json::to_writer_pretty(file, &saved)?;
        say(format!(
            "saved {} messages to {}",
            saved.messages.len(),
            path.display()
        ))
    }

    fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot load {}", path.display()))?;
        let saved: SavedChat = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a saved conversation", path.display()))?;
        let mut messages = saved.messages;
        let system = messages
            .first()
            .is_some_and(|message| message.role() == "system")
            .then(|| messages.remove(0).text());
        let num_messages = messages.len();
        self.system = system;
        self.messages = messages;
        say(format!(
            "loaded {num_messages} messages from {}",
            path.display()
        ))
    }

    fn stats(&self) -> anyhow::Result<()> {
        let Some(timings) = &self.timings else {
            return say("no answer yet");
        };
        let used = timings.prompt_tokens + timings.generated_tokens;
        say(format!(
            "{}\ncontext {used} of {} tokens",
            report::timings_line(timings),
            self.session.context
        ))
    }
}

/// Writes a line to standard output; the standard `println!` panics where that is closed.
fn say(line: impl std::fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// The file with the history of lines.
fn history_path() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    Some(
        state
            .filter(|path| path.is_absolute())
            .or_else(home)?
            .join("bitnet/history"),
    )
}
