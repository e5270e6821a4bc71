//! `bitnet batch`: answers a file of requests in OpenAI's batch format.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;
use bitnet_server::{BatchCounts, BatchFile};
use clap::{Args as _, FromArgMatches as _};
use serde_json::json;

use crate::args::{BatchArguments, ServeArguments, WrongUsage};
use crate::{bars, report, serve, served_models};

/// Requests whose answers wait for earlier ones, for each request that runs: answers are written in
/// order.
const AHEAD: usize = 2;

/// Answers the requests that have no answer yet.
pub fn batch(arguments: BatchArguments) -> anyhow::Result<()> {
    let (input, output) = (&arguments.input, &arguments.output);
    ensure!(
        !is_same_file(input, output),
        WrongUsage(format!("{} is the input and the output", output.display()))
    );
    let file = BatchFile::open(input, output)?;
    let num_done = file.num_done();
    let counts = match num_done < file.num_lines() {
        true => answer(&arguments, file)?,
        false => BatchCounts::default(),
    };
    tell(&arguments, &counts, num_done)
}

fn answer(arguments: &BatchArguments, file: BatchFile) -> anyhow::Result<BatchCounts> {
    let served = serve_arguments(arguments)?;
    let mut options = serve::options(&served)?;
    options.limits.queue_requests = usize::MAX >> 1;
    options.limits.queue_tokens = usize::MAX >> 1;
    let at_once = served.running.saturating_mul(AHEAD);
    let bar = bars::bar(file.num_lines(), "requests");
    bar.set_position(file.num_done() as u64);
    let models = served_models::models(&Arc::new(served))?;
    let counts = file.answer(options, models, at_once, || bar.inc(1))?;
    bar.finish_and_clear();
    Ok(counts)
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(a).is_some() && real(a) == real(b)
}

fn tell(arguments: &BatchArguments, counts: &BatchCounts, done: usize) -> anyhow::Result<()> {
    let BatchCounts {
        answered,
        refused,
        invalid,
    } = *counts;
    if arguments.json {
        let object = json!({
            "output": arguments.output.display().to_string(),
            "earlier": done,
            "answered": answered,
            "refused": refused,
            "invalid": invalid,
        });
        writeln!(std::io::stdout().lock(), "{object}")?;
        return Ok(());
    }
    let earlier = match done {
        0 => String::new(),
        done => format!(", {done} by an earlier run"),
    };
    let message = format!(
        "{}: {answered} answered, {refused} refused, {invalid} invalid lines{earlier}",
        arguments.output.display()
    );
    eprintln!("{}", report::one_line(&message));
    Ok(())
}

/// The arguments of a server that answers this batch.
fn serve_arguments(arguments: &BatchArguments) -> anyhow::Result<ServeArguments> {
    let command = ServeArguments::augment_args(clap::Command::new("serve"));
    let defaults = command.try_get_matches_from(["serve"])?;
    let mut served = ServeArguments::from_arg_matches(&defaults)?;
    served.model = arguments.model.clone();
    served.sampling = arguments.sampling.clone();
    served.chat_template.clone_from(&arguments.chat_template);
    served.lenient = arguments.lenient;
    served.pooling = arguments.pooling;
    served.running = arguments.running;
    served.whole_chunks = true;
    served.kv_memory = arguments.kv_memory;
    served.state_memory = arguments.state_memory;
    served.body_bytes = usize::MAX >> 1;
    served.inflight_bytes = usize::MAX >> 1;
    served.request_timeout = std::time::Duration::from_secs(u64::from(u32::MAX));
    Ok(served)
}
