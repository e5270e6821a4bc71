//! Several models with real engines: a failure of one engine does not reach the others.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use bitnet_inference::{
    Constraint, Device, EngineOptions, Failure, MakeConstraint, ModelSource, OpenModel, Owner,
    Piece, Reply, ReplySink, Request, SamplingParams, TokenSet,
};
use bitnet_models::LoadOptions;
use bitnet_tokenizers::TokenId;

use super::*;
use crate::served::Conversation;

/// How often a model was loaded, and how often its engine was remade.
#[derive(Default)]
struct Made {
    loaded: AtomicUsize,
    remade: AtomicUsize,
}

impl Made {
    fn counts(&self) -> (usize, usize) {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        (count(&self.loaded), count(&self.remade))
    }
}

/// The engine of a tiny model.
fn load_model(made: &Arc<Made>) -> LoadedModel {
    made.loaded.fetch_add(1, Ordering::Relaxed);
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden/strict-b158/model-i2_s.gguf");
    let source = ModelSource::Path(path.clone());
    let model = OpenModel::open(source, Device::cpu(1), LoadOptions::default()).expect("a model");
    let options = EngineOptions {
        context: 64,
        cache: 256,
        ..EngineOptions::default()
    };
    let (mut remake, made) = (model.remake(options), Arc::clone(made));
    LoadedModel {
        engine: model.engine(options).expect("an engine"),
        remake: Box::new(move || {
            made.remade.fetch_add(1, Ordering::Relaxed);
            remake()
        }),
        tokenizer: None,
        conversation: Conversation::Unavailable("it has no tokenizer".to_owned()),
        sampling: SamplingParams::default(),
        block_size: 32,
        bytes: 0,
        files: vec![path],
    }
}

/// The models `a` and `b`.
fn two_models(stall_timeout: Duration) -> (Arc<Registry>, [Arc<Made>; 2]) {
    let made: [Arc<Made>; 2] = Default::default();
    let spec = |name: &str, made: &Arc<Made>| {
        let made = Arc::clone(made);
        ModelSpec {
            names: vec![name.to_owned()],
            bytes: 0,
            outline: None,
            load: Box::new(move || Ok(load_model(&made))),
            preview: Box::new(|| Err("it is not needed".into())),
        }
    };
    let options = ServeOptions {
        stall_timeout,
        ..ServeOptions::for_tests()
    };
    let specs = vec![spec("a", &made[0]), spec("b", &made[1])];
    (Registry::new(Arc::new(options), specs).0, made)
}

/// Sends all replies to a channel.
struct Channel(mpsc::Sender<Reply>);

impl ReplySink for Channel {
    fn send(&mut self, reply: Reply) {
        // The test may be over.
        let _ = self.0.send(reply);
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// The use of a model, which is loaded if necessary.
async fn lease(registry: &Arc<Registry>, index: usize) -> ModelLease {
    match registry.lease(index, None).await {
        Ok(lease) => lease,
        Err(error) => panic!("{}", error.message()),
    }
}

/// Starts a request for `max_tokens` tokens.
fn start(
    lease: &ModelLease,
    max_tokens: usize,
    constraint: Option<MakeConstraint>,
) -> mpsc::Receiver<Reply> {
    let (sender, replies) = mpsc::channel();
    let request = Request {
        prompt: [256, 3, 5].map(TokenId).into(),
        max_tokens: Some(max_tokens),
        ..Request::default()
    };
    let job = Job {
        request,
        constraint,
        owner: Owner::from(""),
        sink: Box::new(Channel(sender)),
    };
    let sent = lease.send_jobs(std::iter::once(job));
    assert!(sent.is_ok(), "the engine's thread runs");
    replies
}

/// The remaining tokens of an answer, or its failure.
fn rest(replies: &mpsc::Receiver<Reply>) -> Result<Vec<TokenId>, Failure> {
    let mut tokens = Vec::new();
    loop {
        match replies.recv().expect("an end") {
            Reply::Piece(Piece::Token(token)) => tokens.push(token.id),
            Reply::Piece(Piece::End { .. }) => return Ok(tokens),
            Reply::Failed(failure) => return Err(failure),
            Reply::Started { .. } | Reply::Piece(Piece::Prompt { .. }) => {}
        }
    }
}

/// Calls a function before each token and allows all.
struct Before<F>(F);

impl<F: FnMut() + Send> Constraint for Before<F> {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        (self.0)();
        *allowed = TokenSet::new(&[TokenId(7)]);
        Ok(())
    }

    fn accept(&mut self, _: TokenId) -> Result<(), String> {
        Ok(())
    }
}

/// A constraint that calls a clone of `before` before each token.
fn before(before: impl FnMut() + Clone + Send + 'static) -> MakeConstraint {
    Box::new(move || Box::new(Before(before.clone())))
}

/// A constraint with which each token waits for a word, or for the end of the test.
fn waits() -> (mpsc::Sender<()>, MakeConstraint) {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let wait = move || drop(wait.lock().map(|wait| wait.recv()));
    (go, before(wait))
}

#[tokio::test]
async fn a_model_that_a_client_unloads_stays_until_its_stream_has_ended() {
    let (registry, made) = two_models(Duration::from_secs(60));
    let a = lease(&registry, 0).await;
    let (go, waits) = waits();
    let stream = start(&a, 3, Some(waits));
    registry.unload(0);
    assert_eq!(registry.view(0).stage, Stage::Ready);
    for _ in 0..3 {
        go.send(()).expect("the stream goes on");
    }
    assert_eq!(rest(&stream).expect("an answer"), [TokenId(7); 3]);
    drop(a);
    assert_ne!(registry.view(0).stage, Stage::Ready);
    assert_eq!(made[0].counts(), (1, 0));
}

#[tokio::test]
async fn a_panic_in_one_engine_remakes_only_this_engine() {
    let (registry, made) = two_models(Duration::from_secs(60));
    let a = lease(&registry, 0).await;
    let b = lease(&registry, 1).await;
    let expected = rest(&start(&b, 40, None)).expect("an answer");
    assert_eq!(expected.len(), 40);
    // A stream of `b` that goes on until the engine of `a` has panicked.
    let (go, waits) = waits();
    let held = start(&b, 3, Some(waits));
    let beside = start(&a, 40, None);
    let panics = start(
        &a,
        3,
        Some(before(|| panic!("this request is the culprit"))),
    );
    let failure = rest(&panics).expect_err("the request fails");
    assert!(matches!(&failure, Failure::Panicked(message) if message.contains("the culprit")));
    assert_eq!(rest(&beside).expect("it runs again"), expected);
    for _ in 0..3 {
        go.send(()).expect("the stream of the other model goes on");
    }
    assert_eq!(rest(&held).expect("an answer"), [TokenId(7); 3]);
    assert_eq!(rest(&start(&a, 40, None)).expect("an answer"), expected);
    let panics = |index: usize| registry.slots()[index].metrics.engine().stats().panics;
    // The request also panics when it runs again alone.
    assert_eq!([made[0].counts(), made[1].counts()], [(1, 2), (1, 0)]);
    assert_eq!([panics(0), panics(1)], [2, 0]);
    assert_eq!(registry.view(0).stage, Stage::Ready);
}

#[tokio::test]
async fn a_stuck_engine_is_noticed_while_the_other_models_answer() {
    let (registry, _) = two_models(Duration::from_millis(20));
    let a = lease(&registry, 0).await;
    let b = lease(&registry, 1).await;
    let (go, waits) = waits();
    let stuck = start(&a, 1, Some(waits));
    // It is stuck until the test lets it go on.
    while registry.stalled().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(rest(&start(&b, 20, None)).expect("an answer").len(), 20);
    assert!(registry.stalled() > Some(Duration::from_millis(20)));
    go.send(()).expect("the engine waits");
    assert_eq!(rest(&stuck).expect("an answer"), [TokenId(7)]);
    while registry.stalled().is_some() {
        tokio::task::yield_now().await;
    }
}
