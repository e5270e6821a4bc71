//! [`Engine`]: a loaded model with its running engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use bitnet_inference::{
    DRAFT_MAX, Device, DeviceName, Driver, EngineOptions, Job, Likelihood, OpenModel, Owner,
    Tokenization, perplexity,
};
use bitnet_kernels::default_threads;
use bitnet_models::{I2sForm, KvType, LoadProgress, Pooling};
use bitnet_server::LocalChats;
use bitnet_tokenizers::{DecodeOptions, PromptBos, TokenId};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::answer::{Answer, WholeTuple};
use crate::array::FloatArray;
use crate::embedding::Embedding;
use crate::error;
use crate::load::{Opened, Settings};
use crate::notices::{Notice, Notices, PolledAnswer};
use crate::options::{Chat, Request, Sampling, count, token_ids};
use crate::program::helper_program;
use crate::receipt;
use crate::wait::{interruptible, interruptible_with, lock};

/// Maximum number of threads, as for the program.
const THREADS_MAX: usize = 1024;

/// A loaded model with an engine on a thread of its own.
#[pyclass(frozen, module = "bitnet._native")]
pub(crate) struct Engine {
    model: Arc<OpenModel>,
    options: EngineOptions,
    driver: Driver,
    chats: Arc<LocalChats>,
    /// The process that has the engine's thread.
    process: u32,
    notices: Sender<Notice>,
    /// Until [`Engine::notices`] takes it.
    receiver: Mutex<Option<Receiver<Notice>>>,
    warnings: Vec<String>,
}

/// The device of a name, and why `"auto"` is the CPU if it is.
fn device(name: &str, threads: usize) -> PyResult<(Device, Option<String>)> {
    let found = Device::cpu(threads).named(&DeviceName::parse(name), None);
    found.map_err(|problem| error::argument(format!("device is {name:?}: {problem}")))
}

/// The most requests that run at once, if it is given.
fn running_max(parallel: Option<&Bound<'_, PyAny>>) -> PyResult<Option<usize>> {
    let running_max = count("parallel", parallel)?;
    if running_max == Some(0) {
        let problem = "parallel is 0, but must be 1 or more";
        return Err(error::argument(problem.to_owned()));
    }
    Ok(running_max)
}

/// The number of threads to use.
fn threads(value: Option<&Bound<'_, PyAny>>) -> PyResult<usize> {
    match count::<usize>("threads", value)? {
        None => Ok(default_threads()),
        Some(n) if (1..=THREADS_MAX).contains(&n) => Ok(n),
        Some(n) => Err(error::argument(format!(
            "threads is {n}, but must be from 1 to {THREADS_MAX}"
        ))),
    }
}

fn kv_type(name: &str) -> PyResult<KvType> {
    let known = [KvType::F16, KvType::F32];
    known
        .into_iter()
        .find(|kv| kv.name() == name)
        .ok_or_else(|| {
            error::argument(format!(
                "kv_type is {name:?}, but must be \"f16\" or \"f32\""
            ))
        })
}

fn draft(value: Option<&Bound<'_, PyAny>>) -> PyResult<usize> {
    match count::<usize>("draft", value)?.unwrap_or(0) {
        n if n <= DRAFT_MAX => Ok(n),
        n => Err(error::argument(format!(
            "draft is {n}, but must be from 0 to {DRAFT_MAX}"
        ))),
    }
}

/// Why a computation on the engine's thread ended early.
enum Stopped {
    Cancelled,
    NoMemory(usize),
    Failed(bitnet_inference::Error),
}

impl From<bitnet_inference::Error> for Stopped {
    fn from(error: bitnet_inference::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Stopped> for PyErr {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Cancelled => error::engine("the computation was cancelled"),
            Stopped::NoMemory(bytes) => pyo3::exceptions::PyMemoryError::new_err(format!(
                "the logits take {bytes} bytes, which the system does not have"
            )),
            Stopped::Failed(error) => error::call(error),
        }
    }
}

impl Engine {
    /// The engine's thread. A forked process has none.
    fn driver(&self) -> PyResult<&Driver> {
        let here = std::process::id();
        if here == self.process {
            return Ok(&self.driver);
        }
        Err(error::engine(format!(
            "process {} loaded this model, and process {here} was forked from it without the \
             engine's threads: load the model again after the fork",
            self.process
        )))
    }

    fn tokenization(&self) -> PyResult<&Tokenization> {
        self.model.tokenization.as_ref().ok_or_else(|| {
            error::argument(format!(
                "{} has no tokenizer, so it takes and returns token ids only",
                self.model.source
            ))
        })
    }

    /// The pooling of a name, or as the model's files say for `None`.
    fn pooling(&self, name: Option<&str>) -> PyResult<Pooling> {
        if let Some(name) = name {
            return Pooling::by_name(name).ok_or_else(|| {
                let names = Pooling::ALL.map(Pooling::name).join(", ");
                error::argument(format!("pooling is {name:?}, but must be one of {names}"))
            });
        }
        self.model.info().config.pooling.ok_or_else(|| {
            let source = &self.model.source;
            error::argument(format!(
                "{source} does not say how it pools: give pooling, \"last\", \"mean\" or \"cls\""
            ))
        })
    }

    /// Fails if `tokens` do not fit into the context, though they may fit into the cache.
    fn check_length(&self, tokens: usize) -> PyResult<()> {
        let context = self.options.context;
        if tokens <= context {
            return Ok(());
        }
        Err(error::request(bitnet_inference::Error::ContextLength {
            prompt: tokens,
            generate: 0,
            context,
        }))
    }

    /// Runs `work` between two steps of the engine. `work` ends early once the flag is set.
    fn call<T: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut bitnet_inference::Engine, &AtomicBool) -> T + Send + 'static,
    ) -> PyResult<T> {
        let driver = self.driver()?.clone();
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_cancelled);
        let call = move || driver.call(move |engine| work(engine, &flag));
        let cancel = || is_cancelled.store(true, Ordering::Relaxed);
        interruptible(py, call, cancel)?.map_err(error::call)
    }
}

#[pymethods]
impl Engine {
    /// Loads a model: the built-in one for `None`. `program`: a command that runs the program of
    /// this package. `progress` is called with the numbers of loaded layers and of all.
    #[staticmethod]
    #[pyo3(signature = (source, *, program, device="cpu", threads=None, ctx_size=None, kv_type="f16",
                        kv_memory=None, parallel=None, draft=None, chat_template=None,
                        i2_s_form="block128", progress=None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the keywords of a Python function"
    )]
    fn load(
        py: Python<'_>,
        source: Option<PathBuf>,
        program: Vec<String>,
        device: &str,
        threads: Option<&Bound<'_, PyAny>>,
        ctx_size: Option<&Bound<'_, PyAny>>,
        kv_type: &str,
        kv_memory: Option<&Bound<'_, PyAny>>,
        parallel: Option<&Bound<'_, PyAny>>,
        draft: Option<&Bound<'_, PyAny>>,
        chat_template: Option<String>,
        i2_s_form: &str,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let default = EngineOptions::default();
        let options = EngineOptions {
            kv_type: self::kv_type(kv_type)?,
            running_max: running_max(parallel)?.unwrap_or(default.running_max),
            draft_max: self::draft(draft)?,
            // Many prompts at once matter more here than the pace of one stream beside them.
            mixed_chunk: default.prefill_chunk,
            ..default
        };
        let form = i2_s_form.parse::<I2sForm>();
        let threads = self::threads(threads)?;
        // Looking for drivers takes time in which other threads of Python can run.
        let (device, no_gpu) = py.detach(|| self::device(device, threads))?;
        let layers = LoadProgress::default();
        let settings = Settings {
            source,
            device,
            context: count("ctx_size", ctx_size)?,
            kv_bytes: count("kv_memory", kv_memory)?,
            i2_s_form: form.map_err(|problem| error::argument(format!("i2_s_form: {problem}")))?,
            chat_template,
            options,
            program: helper_program(program)?,
            progress: layers.clone(),
        };
        let show = || match &progress {
            Some(progress) => progress.call1(layers.layers()).map(drop),
            None => Ok(()),
        };
        let opened = interruptible_with(py, move || settings.open(), || {}, show)?;
        let Opened {
            model,
            options,
            driver,
            chats,
            mut warnings,
        } = opened.map_err(error::model)?;
        warnings.extend(no_gpu.map(|reason| format!("the CPU runs the model: {reason}")));
        let (notices, receiver) = mpsc::channel();
        Ok(Self {
            model: Arc::new(model),
            options,
            driver,
            chats: Arc::new(chats),
            process: std::process::id(),
            notices,
            receiver: Mutex::new(Some(receiver)),
            warnings,
        })
    }

    /// What is odd about the model, though it runs.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// Facts about the model and its engine.
    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (info, device) = (self.model.info(), self.model.device);
        let config = &info.config;
        let facts = PyDict::new(py);
        facts.set_item("name", config.name.as_deref())?;
        facts.set_item("source", self.model.source.to_string())?;
        facts.set_item("architecture", &config.architecture_name)?;
        facts.set_item("quantization", &info.quantization)?;
        facts.set_item("num_ternary_weights", info.num_ternary_weights)?;
        facts.set_item("num_layers", config.num_layers)?;
        facts.set_item("hidden_size", config.hidden_size)?;
        facts.set_item("vocab_size", config.vocab_size)?;
        facts.set_item("context_length", self.options.context)?;
        let tokenizer = self.model.tokenizer();
        let (bos, eos) = tokenizer.map_or((None, None), |known| (known.bos(), known.eos()));
        facts.set_item("bos_token", bos.map(|token| token.0))?;
        facts.set_item("eos_token", eos.map(|token| token.0))?;
        facts.set_item("device", device.backend())?;
        facts.set_item("kernels", device.kernel_names())?;
        facts.set_item("threads", device.threads())?;
        Ok(facts)
    }

    /// The tokens of a text. `bos`: whether the text begins with BOS; `None` for as the model's
    /// files ask.
    fn encode(
        &self,
        py: Python<'_>,
        text: &str,
        bos: Option<bool>,
        parse_special: bool,
    ) -> PyResult<Vec<u32>> {
        let tokenizer = &self.tokenization()?.tokenizer;
        let bos = match bos {
            None => PromptBos::AsModel,
            Some(true) => PromptBos::Always,
            Some(false) => PromptBos::Never,
        };
        let tokens = py.detach(|| tokenizer.encode_prompt(text, bos, parse_special));
        Ok(numbers(tokens.map_err(error::request)?))
    }

    /// Reads a conversation: the fields of `/v1/chat/completions` that decide its prompt and the
    /// form of its answers, as JSON. Its form is compiled meanwhile.
    fn read_chat(&self, py: Python<'_>, fields: String) -> PyResult<Chat> {
        let chats = Arc::clone(&self.chats);
        let read = move || chats.read(fields.as_bytes());
        let chat = interruptible(py, read, || {})?.map_err(error::request)?;
        Ok(Chat(Arc::new(chat)))
    }

    /// The text of tokens.
    fn decode(&self, tokens: &Bound<'_, PyAny>, show_special: bool) -> PyResult<String> {
        let tokens = token_ids(tokens)?;
        let tokenizer = &self.tokenization()?.tokenizer;
        let last = tokenizer.vocab_size().saturating_sub(1);
        if let Some(token) = tokens.iter().find(|token| token.0 as usize > last) {
            return Err(error::argument(format!(
                "token {token} does not exist: the vocabulary ends at {last}"
            )));
        }
        let options = DecodeOptions {
            show_special,
            ..DecodeOptions::default()
        };
        Ok(tokenizer.decode(&tokens, options))
    }

    /// A request for an answer to the tokens `prompt`, as `bitnet run` makes it. `chat`: the
    /// conversation that they are.
    #[pyo3(signature = (prompt, *, seed, max_tokens=None, min_tokens=None, temperature=None, top_k=None,
                        top_p=None, min_p=None, typical_p=None, repeat_penalty=None, repeat_last_n=None,
                        presence_penalty=None, frequency_penalty=None, logit_bias=None, stop=Vec::new(),
                        ignore_eos=false, logprobs=None, prompt_logprobs=false, chat=None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the keywords of a Python function"
    )]
    fn request(
        &self,
        prompt: &Bound<'_, PyAny>,
        seed: &Bound<'_, PyAny>,
        max_tokens: Option<&Bound<'_, PyAny>>,
        min_tokens: Option<&Bound<'_, PyAny>>,
        temperature: Option<f32>,
        top_k: Option<&Bound<'_, PyAny>>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        typical_p: Option<f32>,
        repeat_penalty: Option<f32>,
        repeat_last_n: Option<&Bound<'_, PyAny>>,
        presence_penalty: Option<f32>,
        frequency_penalty: Option<f32>,
        logit_bias: Option<BTreeMap<u32, f32>>,
        stop: Vec<String>,
        ignore_eos: bool,
        logprobs: Option<&Bound<'_, PyAny>>,
        prompt_logprobs: bool,
        chat: Option<PyRef<'_, Chat>>,
    ) -> PyResult<Request> {
        let sampling = Sampling {
            temperature,
            top_k: count("top_k", top_k)?,
            top_p,
            min_p,
            typical_p,
            repeat_penalty,
            repeat_last_n: count("repeat_last_n", repeat_last_n)?,
            presence_penalty,
            frequency_penalty,
            logit_bias: logit_bias.unwrap_or_default(),
            seed: count("seed", Some(seed))?.unwrap_or_default(),
        };
        let stop_ids = match self.model.tokenizer() {
            Some(tokenizer) if !ignore_eos => tokenizer.stop_ids(),
            _ => &[],
        };
        let request = bitnet_inference::Request {
            prompt: token_ids(prompt)?,
            sampling: sampling.params(&self.model.sampling),
            max_tokens: count("max_tokens", max_tokens)?,
            min_tokens: count("min_tokens", min_tokens)?.unwrap_or(0),
            stop_ids: stop_ids.to_vec(),
            stop_strings: stop,
            logprobs: count("logprobs", logprobs)?.or(prompt_logprobs.then_some(0)),
            prompt_logprobs,
            ..bitnet_inference::Request::default()
        };
        Ok(Request::new(request, chat.map(|chat| Arc::clone(&chat.0))))
    }

    /// Starts a request.
    fn submit(&self, request: &Request) -> PyResult<Answer> {
        let (driver, constraint) = (self.driver()?, request.constraint());
        let stream = driver.stream_constrained(request.request.clone(), constraint);
        Ok(Answer::new(stream.map_err(error::call)?))
    }

    /// Starts a request whose replies are announced with `id`: all, or only the last if `is_whole`.
    fn submit_polled(&self, request: &Request, id: u64, is_whole: bool) -> PyResult<PolledAnswer> {
        let (answer, sink) = PolledAnswer::new(id, is_whole, self.notices.clone());
        let job = Job {
            request: request.request.clone(),
            constraint: request.constraint(),
            owner: Owner::from(""),
            sink: Box::new(sink),
        };
        self.driver()?.submit(job).map_err(error::call)?;
        Ok(answer)
    }

    /// Runs a request on an engine of its own: the answer, and the receipt of the run as JSON.
    /// `seed_given`: whether the caller chose the seed.
    fn receipt(
        &self,
        py: Python<'_>,
        request: &Request,
        seed_given: bool,
    ) -> PyResult<(WholeTuple, String)> {
        self.driver()?;
        let (model, options) = (Arc::clone(&self.model), self.options);
        let request = request.request.clone();
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_cancelled);
        let is_asked = move || flag.load(Ordering::Relaxed);
        let run = move || receipt::run(&model, options, request, seed_given, is_asked);
        let cancel = || is_cancelled.store(true, Ordering::Relaxed);
        interruptible(py, run, cancel)?.map_err(error::run)
    }

    /// Loses the device, as a driver does that resets it. For tests of what follows.
    fn lose_device(&self) {
        self.model.model.lose_device();
    }

    /// The notices of answers; only the first call gets them.
    fn notices(&self) -> PyResult<Notices> {
        match lock(&self.receiver).take() {
            Some(receiver) => Ok(Notices::new(self.notices.clone(), receiver)),
            None => Err(error::engine("the notices are taken")),
        }
    }

    /// The logits after each token: `[tokens, vocab]`.
    fn logits(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<FloatArray> {
        let tokens = token_ids(tokens)?;
        self.check_length(tokens.len())?;
        let (rows, cols) = (tokens.len(), self.model.info().config.vocab_size);
        let values = self.call(py, move |engine, is_cancelled| {
            let mut values = Vec::new();
            engine.evaluate(&tokens, 0, |_, logits| {
                if is_cancelled.load(Ordering::Relaxed) {
                    return Err(Stopped::Cancelled);
                }
                // The tokens are known to fit into the context now.
                if values.is_empty() && values.try_reserve_exact(rows * cols).is_err() {
                    return Err(Stopped::NoMemory(rows * cols * size_of::<f32>()));
                }
                values.extend_from_slice(logits);
                Ok(())
            })?;
            Ok::<_, Stopped>(values)
        })??;
        Ok(FloatArray::new(values, rows, cols))
    }

    /// The vectors of texts: `[texts, dimensions]`. `pooling`: `last`, `mean` or `cls`; as the
    /// model's files say for `None`.
    fn embed(
        &self,
        py: Python<'_>,
        texts: Vec<String>,
        pooling: Option<&str>,
        dimensions: Option<&Bound<'_, PyAny>>,
        is_normalized: bool,
    ) -> PyResult<FloatArray> {
        let hidden_size = self.model.info().config.hidden_size;
        let dimensions = count("dimensions", dimensions)?.unwrap_or(hidden_size);
        if !(1..=hidden_size).contains(&dimensions) {
            return Err(error::argument(format!(
                "dimensions is {dimensions}, but must be from 1 to {hidden_size}"
            )));
        }
        let embedding = Embedding {
            pooling: self.pooling(pooling)?,
            dimensions,
            is_normalized,
        };
        let tokenizer = self.tokenization()?.tokenizer.clone();
        let (driver, num_texts) = (self.driver()?.clone(), texts.len());
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_cancelled);
        let is_asked = move || flag.load(Ordering::Relaxed);
        let work = move || embedding.vectors(&texts, &tokenizer, &driver, is_asked);
        let cancel = || is_cancelled.store(true, Ordering::Relaxed);
        let values = interruptible(py, work, cancel)??;
        Ok(FloatArray::new(values, num_texts, dimensions))
    }

    /// How well the model predicts the tokens after the first, in windows of `context` tokens: the
    /// number of predicted tokens and the sum of −ln p over them.
    fn likelihood(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        context: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<(usize, f64)> {
        let tokens = token_ids(tokens)?;
        let context = count("context", context)?.unwrap_or(self.options.context);
        if context < 2 {
            return Err(error::argument(format!(
                "context is {context}, but must be 2 or more"
            )));
        }
        self.check_length(context)?;
        let mut total = Likelihood::default();
        for (window, skip) in perplexity::windows(tokens.len(), context) {
            let window = tokens[window].to_vec();
            let part = self.call(py, move |engine, _| {
                engine.likelihood_of_window(&window, skip)
            })?;
            total.add(part.map_err(error::call)?);
        }
        Ok((total.tokens, total.nats))
    }
}

fn numbers(tokens: Vec<TokenId>) -> Vec<u32> {
    tokens.into_iter().map(|token| token.0).collect()
}
