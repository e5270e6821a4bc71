//! The driver from outside: many threads share an engine, and each gets the same answer as alone.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use bitnet_inference::{
    Constraint, Device, Driver, Engine, EngineOptions, Failure, Job, Loaded, Piece, RemakeEngine,
    Reply, ReplySink, Request, SamplingParams, TokenSet, load,
};
use bitnet_models::LoadOptions;
use bitnet_tokenizers::TokenId;

fn remake() -> RemakeEngine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden/strict-b158/model-i2_s.gguf");
    let Loaded { model, .. } =
        load(&path, &LoadOptions::default(), Device::cpu(1)).expect("the golden model loads");
    let options = EngineOptions::default();
    Box::new(move || Engine::new(Arc::clone(&model), None, Device::cpu(1), options))
}

fn driver() -> Driver {
    let mut remake = remake();
    let engine = remake().expect("an engine");
    Driver::start(engine, remake).expect("a thread")
}

fn request(seed: u64, max_tokens: usize) -> Request {
    Request {
        prompt: (1..6).map(|token| TokenId(token + seed as u32)).collect(),
        sampling: SamplingParams {
            seed,
            ..SamplingParams::default()
        },
        max_tokens: Some(max_tokens),
        ..Request::default()
    }
}

#[test]
fn requests_from_many_threads_get_the_tokens_that_they_get_alone() {
    let mut engine = remake()().expect("an engine");
    let mut alone = |seed| {
        let (tokens, _) = engine.complete(request(seed, 20)).expect("a good request");
        tokens
    };
    let expected: Vec<_> = (0..8).map(&mut alone).collect();
    let driver = driver();
    let threads: Vec<_> = (0..8)
        .map(|seed| {
            let driver = driver.clone();
            std::thread::spawn(move || {
                let stream = driver.stream(request(seed, 20)).expect("a thread");
                stream.wait().expect("an answer").tokens
            })
        })
        .collect();
    let found: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().expect("no panic"))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn cancelling_ends_the_stream_with_the_timings_and_frees_the_cache() {
    let driver = driver();
    let mut stream = driver.stream(request(3, 4000)).expect("a thread");
    let is_token = |piece: &Result<Piece, Failure>| matches!(piece, Ok(Piece::Token(_)));
    assert!(stream.by_ref().any(|piece| is_token(&piece)));
    stream.cancel();
    let failure = stream.wait().expect_err("cancelled");
    let Failure::Cancelled(timings) = failure else {
        panic!("{failure}");
    };
    assert!(
        (1..4000).contains(&timings.generated_tokens),
        "{} tokens",
        timings.generated_tokens
    );
    let free = driver
        .call(|engine| engine.free_blocks())
        .expect("a thread");
    assert_eq!(free.0, free.1);
}

#[test]
fn calls_run_between_the_steps_of_requests() {
    let driver = driver();
    let expected = driver.stream(request(1, 50)).expect("a thread").wait();
    let stream = driver.stream(request(1, 50)).expect("a thread");
    let tokens: Vec<_> = (1..9).map(TokenId).collect();
    let likelihood = driver
        .call(move |engine| engine.likelihood(&tokens, 64))
        .expect("a thread")
        .expect("good tokens");
    assert_eq!(likelihood.tokens, 7);
    assert_eq!(
        stream.wait().expect("an answer").tokens,
        expected.expect("an answer").tokens
    );
}

#[test]
fn a_call_that_panics_panics_in_its_caller_and_spares_the_requests() {
    let driver = driver();
    let expected = driver.stream(request(1, 200)).expect("a thread").wait();
    let mut stream = driver.stream(request(1, 200)).expect("a thread");
    assert!(
        stream
            .by_ref()
            .any(|piece| matches!(piece, Ok(Piece::Token(_))))
    );
    let call = || driver.call::<()>(|_| panic!("a bad call"));
    let panic = catch_unwind(AssertUnwindSafe(call)).expect_err("a panic");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"a bad call"));
    // The first token was taken from the stream above.
    let expected = &expected.expect("an answer").tokens[1..];
    assert_eq!(stream.wait().expect("an answer").tokens, expected);
    assert_eq!(driver.monitor().stats().panics, 1);
}

/// Allows one token only.
struct Only(TokenId);

impl Constraint for Only {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        *allowed = TokenSet::new(&[self.0]);
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        assert_eq!(token, self.0);
        Ok(())
    }
}

#[test]
fn a_constraint_restricts_the_tokens() {
    let make = || Box::new(Only(TokenId(7))) as Box<dyn Constraint>;
    let stream = driver().stream_constrained(request(1, 5), Some(Box::new(make)));
    let tokens = stream.expect("a thread").wait().expect("an answer").tokens;
    assert_eq!(tokens, [TokenId(7); 5]);
}

/// Replies that a task can await, as a sink for an asynchronous program may keep them.
#[derive(Default)]
struct Mailbox {
    replies: VecDeque<Reply>,
    waker: Option<Waker>,
}

struct AsyncSink(Arc<Mutex<Mailbox>>);

impl ReplySink for AsyncSink {
    fn send(&mut self, reply: Reply) {
        let mut mailbox = self.0.lock().expect("no panic");
        mailbox.replies.push_back(reply);
        if let Some(waker) = mailbox.waker.take() {
            waker.wake();
        }
    }

    fn is_closed(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

struct NextReply<'a>(&'a Mutex<Mailbox>);

impl Future for NextReply<'_> {
    type Output = Reply;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        let mut mailbox = self.0.lock().expect("no panic");
        mailbox.waker = Some(context.waker().clone());
        mailbox
            .replies
            .pop_front()
            .map_or(Poll::Pending, Poll::Ready)
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn an_asynchronous_sink_gets_the_same_tokens_as_a_stream() {
    let driver = driver();
    let expected = driver.stream(request(2, 20)).expect("a thread").wait();
    let mailbox = Arc::new(Mutex::new(Mailbox::default()));
    let job = Job {
        request: request(2, 20),
        constraint: None,
        owner: "".into(),
        sink: Box::new(AsyncSink(Arc::clone(&mailbox))),
    };
    driver.submit(job).expect("a thread");
    let tokens = block_on(async {
        let mut tokens = Vec::new();
        loop {
            match NextReply(&mailbox).await {
                Reply::Piece(Piece::Token(token)) => tokens.push(token.id),
                Reply::Piece(Piece::End { .. }) => return tokens,
                Reply::Failed(failure) => panic!("{failure}"),
                Reply::Started { .. } | Reply::Piece(Piece::Prompt { .. }) => {}
            }
        }
    });
    assert_eq!(tokens, expected.expect("an answer").tokens);
}

#[test]
fn a_stream_can_be_polled_with_a_timeout() {
    let mut stream = driver().stream(request(2, 3)).expect("a thread");
    let mut num_tokens = 0;
    loop {
        match stream.poll_timeout(Duration::from_millis(1)) {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(Piece::Token(_)))) => num_tokens += 1,
            Poll::Ready(Some(piece)) => drop(piece.expect("a good request")),
            Poll::Ready(None) => break,
        }
    }
    assert_eq!(num_tokens, 3);
}
