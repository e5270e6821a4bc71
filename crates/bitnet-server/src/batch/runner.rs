//! [`start`]: the thread that answers the batches of a server.
//!
//! It sends the requests of a batch to the server's own routes, some at a time and behind the
//! requests of clients, and writes each answer to a file. If the process ends, the next one counts
//! the answers in the files and goes on behind them.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use bitnet_inference::Priority;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, stream};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, interval, sleep, sleep_until};

use crate::api::{DEVICE_FAILED, ENGINE_STOPPED};
use crate::batch::lines::{Line, LineError, LineName, LineRules, Lines};
use crate::batch::output::{Answer, Output, bodies, progress};
use crate::batch::store::{BatchProblem, BatchStatus, BatchStore, Refused, StoredBatch};
use crate::batch::tally::Tally;
use crate::clock::unix_time;
use crate::error::{Result, chain};
use crate::http::router;
use crate::requests::{LocalClient, LocalRequest, LocalResponse, respond_on_any_device};
use crate::state::App;
use crate::text::THREAD_STACK_BYTES;

/// Batches that are answered at once.
const BATCHES_AT_ONCE: usize = 4;
/// Requests of a batch that wait or run at once. Answers are written in order, so some wait for
/// earlier ones.
const REQUESTS_AT_ONCE: usize = 32;
/// Answers between two writes to the disk itself. A machine that loses its power loses at most this number.
const ANSWERS_PER_SYNC: usize = 256;
/// Maximum number of requests of a batch, as in OpenAI's API.
const REQUESTS_MAX: usize = 50_000;
/// Wrong lines that a batch names before it gives up.
const PROBLEMS_MAX: usize = 20;
/// Pause before a request is sent again that found no room.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two looks for files that have expired.
const EXPIRY_PAUSE: Duration = Duration::from_secs(60);

/// Starts the thread. It ends when the server drains; requests that it has not written then are
/// answered after the next start.
pub(crate) fn start(app: &Arc<App>, store: &Arc<BatchStore>) -> std::io::Result<()> {
    let (app, store) = (Arc::clone(app), Arc::clone(store));
    let handle = Handle::current();
    std::thread::Builder::new()
        .name("bitnet-batches".to_owned())
        .stack_size(THREAD_STACK_BYTES)
        // The thread waits for the disk; the threads for HTTP do not.
        .spawn(move || handle.block_on(run(app, store)))?;
    Ok(())
}

async fn run(app: Arc<App>, store: Arc<BatchStore>) {
    let runner = Runner {
        service: TowerToHyperService::new(router(Arc::clone(&app))),
        app: Arc::clone(&app),
        store,
    };
    tokio::select! {
        biased;
        () = app.drains() => {}
        () = runner.run() => {}
    }
}

/// Answers batches.
struct Runner {
    app: Arc<App>,
    service: TowerToHyperService<Router>,
    store: Arc<BatchStore>,
}

/// How the requests of a batch ended.
enum RequestsEnd {
    Answered,
    Cancelled,
    Expired,
    /// There is no more room for answers.
    Full,
}

/// The response to a request, or the reason why there is none.
type Answered = std::result::Result<LocalResponse, LineError>;

impl Runner {
    async fn run(&self) {
        let mut under_way = FuturesUnordered::new();
        let mut expiry = interval(EXPIRY_PAUSE);
        loop {
            while under_way.len() < BATCHES_AT_ONCE
                && let Some((batch, cancel)) = self.store.take_batch()
            {
                under_way.push(self.answer_batch(batch, cancel));
            }
            tokio::select! {
                Some(()) = under_way.next() => {}
                () = self.store.work.notified() => {}
                _ = expiry.tick() => self.store.remove_expired(),
            }
        }
    }

    async fn answer_batch(&self, batch: StoredBatch, cancel: Arc<Notify>) {
        let id = batch.id.clone();
        match self.try_batch(batch, &cancel).await {
            Ok(()) => self.store.give_back(&id),
            // The batch stays as it is, so that a restart goes on with it.
            Err(problem) => {
                let problem = match &problem {
                    Refused::Failed(error) => chain(error),
                    problem => format!("{problem:?}"),
                };
                tracing::error!(batch = id, problem, "a batch cannot go on until a restart");
            }
        }
    }

    async fn try_batch(
        &self,
        mut batch: StoredBatch,
        cancel: &Notify,
    ) -> std::result::Result<(), Refused> {
        if batch.status == BatchStatus::Validating {
            let (total, problems) = self.validate(&batch)?;
            if !problems.is_empty() {
                let status = BatchStatus::Failed;
                let failed = |batch: &mut StoredBatch| batch.errors = problems;
                self.store.advance(&batch.id, status, failed)?;
                return Ok(());
            }
            let begun = |batch: &mut StoredBatch| batch.tally = Tally::new(total);
            batch = self
                .store
                .advance(&batch.id, BatchStatus::InProgress, begun)?;
        }
        let mut run = Run::open(&self.store, &batch, self.rules(&batch))?;
        let end = match batch.status {
            BatchStatus::Cancelling => RequestsEnd::Cancelled,
            BatchStatus::Finalizing => RequestsEnd::Answered,
            _ => self.answer(&batch, &mut run, cancel).await?,
        };
        let mut problem = None;
        let status = match end {
            RequestsEnd::Answered => BatchStatus::Completed,
            RequestsEnd::Cancelled => BatchStatus::Cancelled,
            RequestsEnd::Expired => {
                run.expire(self.rules(&batch))?;
                BatchStatus::Expired
            }
            RequestsEnd::Full => {
                problem = Some(run.full());
                BatchStatus::Failed
            }
        };
        if status == BatchStatus::Completed {
            let finalizing = BatchStatus::Finalizing;
            self.store.advance(&batch.id, finalizing, |_| ())?;
        }
        let bytes = run.close()?;
        let tally = run.tally;
        self.store.end(&batch.id, status, tally, bytes, problem)
    }

    fn rules(&self, batch: &StoredBatch) -> LineRules {
        LineRules {
            endpoint: Some(batch.endpoint.clone()),
            line_bytes: self.app.options.limits.body_bytes,
        }
    }

    /// The number of requests, and what is wrong with the first wrong lines.
    fn validate(&self, batch: &StoredBatch) -> Result<(usize, Vec<BatchProblem>)> {
        let path = self.store.path(&batch.input_file_id);
        let mut lines = Lines::open(&path, self.rules(batch))?;
        let (mut total, mut problems) = (0, Vec::new());
        while problems.len() < PROBLEMS_MAX
            && let Some(line) = lines.next()?
        {
            total += 1;
            let problem = match line.request {
                Err(error) => Some((error.code, error.message)),
                Ok(_) if total > REQUESTS_MAX => {
                    let message = format!("the file has more than {REQUESTS_MAX} requests");
                    Some(("too_many_requests", message))
                }
                Ok(_) => None,
            };
            let is_last = problem.as_ref().is_some_and(|_| total > REQUESTS_MAX);
            problems.extend(problem.map(|(code, message)| BatchProblem {
                code: code.to_owned(),
                message,
                param: None,
                line: Some(line.number),
            }));
            if is_last {
                break;
            }
        }
        if total == 0 {
            problems.push(BatchProblem {
                code: "empty_file".to_owned(),
                message: "the file has no requests".to_owned(),
                param: None,
                line: None,
            });
        }
        Ok((total, problems))
    }

    /// Answers the remaining requests.
    async fn answer(
        &self,
        batch: &StoredBatch,
        run: &mut Run<'_>,
        cancel: &Notify,
    ) -> Result<RequestsEnd> {
        let path = self.store.path(&batch.input_file_id);
        let mut lines = Lines::open(&path, self.rules(batch))?;
        lines.skip(run.num_done())?;
        let client = LocalClient {
            owner: batch.owner.as_deref().map(Into::into),
            priority: Priority::Background,
        };
        let mut answers = stream::iter(lines.results())
            .map(|line| self.answer_line(line, &client))
            .buffered(REQUESTS_AT_ONCE);
        let left = Duration::from_secs(batch.expires_at.saturating_sub(unix_time()));
        let mut expiry = pin!(sleep_until(Instant::now() + left));
        loop {
            let answered = tokio::select! {
                biased;
                () = cancel.notified() => return Ok(RequestsEnd::Cancelled),
                () = &mut expiry => return Ok(RequestsEnd::Expired),
                answered = answers.next() => answered,
            };
            let Some(answered) = answered else {
                return Ok(RequestsEnd::Answered);
            };
            let (name, answered) = answered?;
            if !run.write(&name, &answered)? {
                return Ok(RequestsEnd::Full);
            }
        }
    }

    async fn answer_line(
        &self,
        line: Result<Line>,
        client: &LocalClient,
    ) -> Result<(LineName, Answered)> {
        let Line { name, request, .. } = line?;
        let answered = match request {
            Ok(request) => Ok(self.answer_request(request, client).await),
            Err(error) => Err(error),
        };
        Ok((name, answered))
    }

    /// Answers a request, when there is room for it.
    async fn answer_request(&self, request: LocalRequest, client: &LocalClient) -> LocalResponse {
        loop {
            let response = answer_once(&self.service, request.clone(), client.clone()).await;
            let is_final = response.has_code(DEVICE_FAILED);
            let is_temporary = matches!(response.status, 429 | 503) && !is_final;
            if !is_temporary && !self.is_of_server(&response) {
                return response;
            }
            sleep(RETRY_PAUSE).await;
        }
    }
}

impl Runner {
    /// Whether an error is not about its request: the engine has ended, or a file of the model was
    /// changed.
    fn is_of_server(&self, response: &LocalResponse) -> bool {
        let is_damaged = || self.app.registry.damage().is_some();
        response.status >= 500 && (response.has_code(ENGINE_STOPPED) || is_damaged())
    }
}

/// As [`respond_on_any_device`]; boxed, because the futures of the routes are large.
async fn answer_once<S>(service: &S, request: LocalRequest, client: LocalClient) -> LocalResponse
where
    S: Service<Request<Body>, Response = Response, Error = Infallible>,
{
    Box::pin(respond_on_any_device(service, request, client)).await
}

/// The files of a batch that is being answered.
struct Run<'a> {
    store: &'a BatchStore,
    batch: &'a str,
    input: std::path::PathBuf,
    /// For answers and for errors.
    outputs: [Output; 2],
    bytes: [u64; 2],
    tally: Tally,
    /// Answers since the last write to the disk itself.
    num_unsynced: usize,
}

impl<'a> Run<'a> {
    /// Opens the files, and cuts off what does not belong to the answers so far.
    fn open(store: &'a BatchStore, batch: &'a StoredBatch, rules: LineRules) -> Result<Self> {
        let input = store.path(&batch.input_file_id);
        let [answers_id, errors_id] = &batch.outputs;
        let mut outputs = [
            Output::open(&store.path(answers_id))?,
            Output::open(&store.path(errors_id))?,
        ];
        let lines = Lines::open(&input, rules)?;
        let [answers, errors] = &outputs;
        let answered = progress(lines, [answers, errors])?.answered;
        for (output, answered) in outputs.iter_mut().zip(&answered) {
            output.cut(answered.bytes)?;
        }
        let mut tally = Tally::new(batch.tally.counts.total);
        for body in bodies(&store.path(answers_id))? {
            tally.add(Some(&body?));
        }
        tally.counts.failed = answered[1].num_lines;
        store.set_tally(&batch.id, &tally);
        Ok(Self {
            store,
            batch: &batch.id,
            input,
            outputs,
            bytes: answered.map(|answered| answered.bytes),
            tally,
            num_unsynced: 0,
        })
    }

    fn num_done(&self) -> usize {
        self.tally.counts.completed + self.tally.counts.failed
    }

    /// Writes an answer; false if there is no room for it.
    fn write(&mut self, name: &LineName, answered: &Answered) -> Result<bool> {
        let is_completed = answered
            .as_ref()
            .is_ok_and(|response| (200..300).contains(&response.status));
        let index = usize::from(!is_completed);
        let answer = Answer::new(name, answered);
        let line = answer.line();
        if !self.store.reserve(line.len() as u64) {
            return Ok(false);
        }
        self.outputs[index].write(&line)?;
        self.bytes[index] += line.len() as u64;
        self.tally.add(answer.body().filter(|_| is_completed));
        self.store.answered(is_completed);
        self.store.set_tally(self.batch, &self.tally);
        self.num_unsynced += 1;
        if self.num_unsynced >= ANSWERS_PER_SYNC {
            self.sync()?;
        }
        Ok(true)
    }

    /// Writes an error for each request that has no answer.
    fn expire(&mut self, rules: LineRules) -> Result<()> {
        let mut lines = Lines::open(&self.input, rules)?;
        lines.skip(self.num_done())?;
        let expired = Err(LineError {
            code: "batch_expired",
            message: "This request could not be executed before the completion window expired."
                .to_owned(),
        });
        while let Some(line) = lines.next()?
            && self.write(&line.name, &expired)?
        {}
        Ok(())
    }

    fn full(&self) -> BatchProblem {
        let bytes = self.store.limits().total_bytes;
        BatchProblem {
            code: "storage_limit_exceeded".to_owned(),
            message: format!("the files of this server have {bytes} bytes at most together"),
            param: None,
            line: None,
        }
    }

    fn sync(&mut self) -> Result<()> {
        self.num_unsynced = 0;
        self.outputs.iter().try_for_each(Output::sync)
    }

    /// Returns when all answers are on the disk; removes files without answers. The result is the
    /// bytes of each file.
    fn close(&mut self) -> Result<[u64; 2]> {
        self.sync()?;
        for (output, bytes) in self.outputs.iter().zip(self.bytes) {
            if bytes == 0 {
                output.remove()?;
            }
        }
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::batch::store::NewBatch;
    use crate::options::FileLimits;

    #[test]
    fn a_stored_batch_that_expires_has_an_error_for_each_request_without_answer() {
        let folder = std::env::temp_dir().join(format!("bitnet-expired-{}", std::process::id()));
        let limits = FileLimits {
            file_bytes: 1 << 20,
            total_bytes: 1 << 20,
        };
        let store = Arc::new(BatchStore::open(&folder, limits).expect("a store"));
        let endpoint = "/v1/completions".to_owned();
        let line = |name: &str| serde_json::json!({ "custom_id": name, "method": "POST", "url": endpoint, "body": {} });
        let content: Vec<_> = ["a", "b", "c"].map(|name| line(name).to_string()).into();
        let mut upload = store.upload().expect("room");
        upload.write(content.join("\n").as_bytes()).expect("room");
        let file = upload.finish(None, "x".to_owned(), None).expect("a file");
        let batch = store.create_batch(NewBatch {
            owner: None,
            endpoint: endpoint.clone(),
            input_file_id: file.id.clone(),
            metadata: None,
            output_expires_after: None,
        });
        let batch = batch.expect("a batch");
        let rules = LineRules {
            endpoint: Some(endpoint.clone()),
            line_bytes: 1000,
        };
        let mut run = Run::open(&store, &batch, rules.clone()).expect("files");
        let mut lines = Lines::open(&store.path(&file.id), rules.clone()).expect("a file");
        let first = lines.next().expect("readable").expect("a line");
        let response = LocalResponse {
            status: 200,
            request_id: "req-1".to_owned(),
            body: "{}".into(),
        };
        assert!(run.write(&first.name, &Ok(response)).expect("written"));
        run.expire(rules).expect("written");
        let (bytes, tally) = (run.close().expect("written"), run.tally);
        let ended = store.end(&batch.id, BatchStatus::Expired, tally, bytes, None);
        ended.expect("written");
        let ended = store.batch(&batch.id, None).expect("a batch");
        assert_eq!(
            (ended.status, ended.has_output),
            (BatchStatus::Expired, [true, true])
        );
        let errors = std::fs::read_to_string(store.path(&ended.outputs[1])).expect("a file");
        let errors: Vec<Value> = errors
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let facts = |error: &Value| {
            assert_eq!(error["response"], Value::Null);
            (error["custom_id"].clone(), error["error"]["code"].clone())
        };
        let code = Value::from("batch_expired");
        let expected = ["b", "c"].map(|name| (Value::from(name), code.clone()));
        assert_eq!(errors.iter().map(facts).collect::<Vec<_>>(), expected);
        drop(store);
        std::fs::remove_dir_all(&folder).expect("a folder");
    }
}
