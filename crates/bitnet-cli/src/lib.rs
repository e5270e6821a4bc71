//! The `bitnet` program: reads the arguments, then calls one function for each command.
//!
//! A library, so that the package for Python has the same program inside.

#![forbid(unsafe_code)]

/// `eprintln!` that ignores errors of standard error; the standard macro panics.
macro_rules! eprintln {
    ($($message:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($message)*);
    }};
}

mod args;
mod bars;
#[cfg(feature = "server")]
mod batch;
mod bench;
#[cfg(feature = "server")]
mod bench_server;
mod built_in;
mod cache;
mod chat;
mod convert;
mod devices;
mod embed;
#[cfg(feature = "hub")]
mod hub;
mod inspect;
mod interrupt;
#[cfg(feature = "server")]
mod log;
mod logits;
mod perplexity;
mod program;
mod receipt;
mod report;
mod run;
#[cfg(feature = "server")]
mod serve;
#[cfg(feature = "server")]
mod served_models;
mod session;
#[cfg(feature = "server")]
mod settings;
mod tokenize;
mod tune;
mod tuning_file;
#[cfg(feature = "server")]
mod values;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::CommandFactory;

use args::{Arguments, Command};

pub use program::Program;

/// The story-teller inside the program: its name and its GGUF file. `None` if the program was built
/// without it.
#[must_use]
pub fn built_in_model() -> Option<(&'static str, &'static [u8])> {
    Some((built_in::NAME, built_in::model()?))
}

/// Runs the program and returns its exit code.
///
/// # Panics
/// If a program has run in this process before.
pub fn execute(program: Program) -> u8 {
    program.start();
    report_missing_memory();
    match arguments().and_then(dispatch) {
        Ok(()) => 0,
        Err(error) if is_broken_pipe(&error) => 0,
        Err(error) => {
            print_error(report::one_line(&format!("{error:#}")));
            exit_code(&error)
        }
    }
}

/// Reports a panic for lack of memory as one line with exit code 1, like other errors, because a
/// backtrace would need memory itself. `serve` has its own hook.
fn report_missing_memory() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("no memory for ") {
            eprintln!("error: {message}");
            std::process::exit(1);
        }
        default(panic);
    }));
}

/// Prints an error on standard error, and gives up after a second if no reader takes it.
fn print_error(message: String) {
    let (done, is_done) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let label = match std::io::stderr().is_terminal() {
            true => "\x1b[1;31merror\x1b[0m",
            false => "error",
        };
        eprintln!("{label}: {message}");
        // `print_error` may have stopped waiting.
        let _ = done.send(());
    });
    let _ = is_done.recv_timeout(Duration::from_secs(1));
}

#[cfg(feature = "server")]
fn arguments() -> anyhow::Result<Arguments> {
    settings::parse()
}

#[cfg(not(feature = "server"))]
fn arguments() -> anyhow::Result<Arguments> {
    let arguments = &program::running().arguments;
    Ok(clap::Parser::parse_from(arguments))
}

fn dispatch(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Run(arguments) => run::run(arguments),
        Command::Chat(arguments) => chat::chat(arguments),
        Command::Inspect(arguments) => inspect::inspect(&arguments),
        Command::Convert(arguments) => convert::convert(&arguments),
        Command::Quantize(arguments) => convert::quantize(&arguments),
        #[cfg(feature = "hub")]
        Command::Pull(arguments) => hub::pull(&arguments),
        #[cfg(feature = "hub")]
        Command::List(arguments) => hub::list(&arguments),
        #[cfg(feature = "hub")]
        Command::Rm(arguments) => hub::remove(&arguments),
        Command::Cache(arguments) => cache::cache(&arguments),
        Command::Tokenize(arguments) => tokenize::tokenize(&arguments),
        Command::Logits(arguments) => logits::logits(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Devices(arguments) => devices::devices(&arguments),
        Command::Tune(arguments) => tune::tune(&arguments),
        Command::Perplexity(arguments) => perplexity::perplexity(&arguments),
        Command::Embed(arguments) => embed::embed(&arguments),
        #[cfg(feature = "server")]
        Command::Batch(arguments) => batch::batch(*arguments),
        #[cfg(feature = "server")]
        Command::Serve(arguments) => serve::serve(*arguments),
        #[cfg(feature = "server")]
        Command::FormHelper(arguments) => serve::form_helper(&arguments),
        #[cfg(feature = "server")]
        Command::BenchServer(arguments) => bench_server::bench_server(&arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "bitnet", &mut script);
            Ok(std::io::stdout().write_all(&script)?)
        }
        Command::Man { command } => {
            let page = match command {
                None => Arguments::command(),
                Some(name) => Arguments::command()
                    .get_subcommands()
                    .find(|command| command.get_name() == name)
                    .cloned()
                    .ok_or_else(|| args::WrongUsage(format!("there is no command {name:?}")))?,
            };
            let mut text = Vec::new();
            clap_mangen::Man::new(page).render(&mut text)?;
            Ok(std::io::stdout().write_all(&text)?)
        }
    }
}

/// 2 for wrong usage, 3 for a run whose receipt does not verify, 1 for other errors.
fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(bitnet_models::Error::Interrupted) => interrupt::EXIT_CODE,
        #[cfg(feature = "hub")]
        _ if matches!(error.downcast_ref(), Some(bitnet_hub::Error::Interrupted)) => {
            interrupt::EXIT_CODE
        }
        _ if error.is::<args::WrongUsage>() || report::is_wrong_parameter(error) => 2,
        _ if error.is::<bitnet_receipts::Refusal>() => 3,
        _ => 1,
    }
}

/// Whether the reader of the output has closed it, as `head` does. This is not a failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
