//! [`BatchFile`]: a batch that a program answers, from one file to another.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use bitnet_inference::Priority;
use futures_util::{StreamExt, stream};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::oneshot;

use crate::batch::lines::{Line, LineError, LineName, LineRules, Lines};
use crate::batch::output::{Answer, Output, progress};
use crate::error::{Error, Result};
use crate::http::router;
use crate::options::ServeOptions;
use crate::requests::{LocalClient, LocalResponse, respond_on_any_device};
use crate::serve::{engine_lost, new_app, start_models};
use crate::served::ModelSpec;
use crate::threads::runtime;
use crate::watch;

/// Any request of the API, of any size.
const RULES: LineRules = LineRules {
    endpoint: None,
    line_bytes: usize::MAX,
};

/// What happened to the requests of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchCounts {
    /// Requests that were answered.
    pub answered: usize,
    /// Requests that got an error.
    pub refused: usize,
    /// Lines that are no requests.
    pub invalid: usize,
}

/// A file of requests, and the file with the answers so far.
pub struct BatchFile {
    input: PathBuf,
    output: Output,
    num_lines: usize,
    num_done: usize,
}

impl BatchFile {
    /// Opens both files, and cuts off an answer that was not written to its end.
    ///
    /// # Errors
    /// If a file cannot be opened, the input has no requests, another process writes the output, or
    /// the output has something else than answers to these requests.
    pub fn open(input: &Path, output: &Path) -> Result<Self> {
        let num_lines = Lines::open(input, RULES)?.count()?;
        let mut out = Output::open(output)?;
        let progress = progress(Lines::open(input, RULES)?, [&out])?;
        let [answered] = progress.answered;
        if progress.other.is_some() {
            return Err(Error::OtherBatch {
                line: answered.num_lines + 1,
                output: output.to_owned(),
                input: input.to_owned(),
            });
        }
        out.cut(answered.bytes)?;
        Ok(Self {
            input: input.to_owned(),
            output: out,
            num_lines,
            num_done: answered.num_lines,
        })
    }

    /// Number of requests.
    #[must_use]
    pub fn num_lines(&self) -> usize {
        self.num_lines
    }

    /// Number of requests that the output answers already.
    #[must_use]
    pub fn num_done(&self) -> usize {
        self.num_done
    }

    /// Loads models as [`serve`](crate::serve()) does, and answers the remaining requests, at most
    /// `at_once` at a time. Calls `written` for each line of the output. When this returns, the
    /// output is on the disk.
    ///
    /// # Errors
    /// If the only model cannot be loaded, its engine's thread ends, or a file cannot be read or
    /// written.
    ///
    /// # Panics
    /// If there is no model.
    pub fn answer(
        mut self,
        options: ServeOptions,
        models: Vec<ModelSpec>,
        at_once: usize,
        mut written: impl FnMut(),
    ) -> Result<BatchCounts> {
        let mut lines = Lines::open(&self.input, RULES)?;
        lines.skip(self.num_done)?;
        let mut counts = BatchCounts::default();
        let take = |name: &LineName, answered: &Answered| -> Result<()> {
            match answered {
                Ok(response) if (200..300).contains(&response.status) => counts.answered += 1,
                Ok(_) => counts.refused += 1,
                Err(_) => counts.invalid += 1,
            }
            self.output.write(&Answer::new(name, answered).line())?;
            written();
            Ok(())
        };
        let runtime = runtime().map_err(Error::Threads)?;
        let ended = runtime.block_on(answer(options, models, lines, at_once, take));
        // The remaining tasks are abandoned.
        runtime.shutdown_background();
        ended?;
        self.output.sync()?;
        Ok(counts)
    }
}

/// The response to a line, or the reason why it is no request.
type Answered = std::result::Result<LocalResponse, LineError>;

async fn answer(
    options: ServeOptions,
    models: Vec<ModelSpec>,
    lines: Lines,
    at_once: usize,
    mut take: impl FnMut(&LineName, &Answered) -> Result<()>,
) -> Result<()> {
    let (app, mut engine_ended) = new_app(options, models)?;
    let (ready, is_ready) = oneshot::channel();
    let ready = Mutex::new(Some(ready));
    let tell = move |_| {
        let ready = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The receiver waits for it.
        let _ = ready.map(|ready| ready.send(()));
    };
    start_models(&app, Arc::new(tell));
    watch::start(&app).map_err(Error::Threads)?;
    tokio::select! {
        ended = &mut engine_ended => return Err(engine_lost(ended)),
        _ = is_ready => {}
    }
    let service = TowerToHyperService::new(router(app));
    let client = LocalClient {
        owner: None,
        priority: Priority::Interactive,
    };
    let mut answers = stream::iter(lines.results())
        .map(|line| answer_line(&service, line, &client))
        .buffered(at_once);
    loop {
        let answered = tokio::select! {
            ended = &mut engine_ended => return Err(engine_lost(ended)),
            answered = answers.next() => answered,
        };
        let Some(answered) = answered else {
            return Ok(());
        };
        let (name, answered) = answered?;
        take(&name, &answered)?;
    }
}

async fn answer_line<S>(
    service: &S,
    line: Result<Line>,
    client: &LocalClient,
) -> Result<(LineName, Answered)>
where
    S: Service<Request<Body>, Response = Response, Error = Infallible>,
{
    let Line { name, request, .. } = line?;
    let answered = match request {
        Ok(request) => Ok(respond_on_any_device(service, request, client.clone()).await),
        Err(error) => Err(error),
    };
    Ok((name, answered))
}
