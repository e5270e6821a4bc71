//! The command line: commands, options and their help.

use std::path::{Path, PathBuf};
#[cfg(feature = "server")]
use std::time::Duration;

use bitnet_inference::{DRAFT_MAX, DeviceName, Pooling, SamplingParams, parse_logit_bias};
use bitnet_kernels::{KernelSet, Packing};
use bitnet_models::{
    FfnSparsity, HeadMode, InputRounding, KvType, LoadOptions, SamplingDefaults, Tl1Tile, Tl2Tile,
};
use bitnet_tokenizers::TokenId;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// An invalid argument: exit code 2.
#[derive(Debug)]
pub struct WrongUsage(pub String);

impl std::fmt::Display for WrongUsage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsage {}

/// Run ternary language models (BitNet b1.58) on CPUs and GPUs
#[derive(Parser)]
#[command(
    name = "bitnet",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Continue a prompt
    Run(RunArguments),
    /// Chat with a model
    Chat(ChatArguments),
    /// Show what a model file contains, and warn about problems
    Inspect(InspectArguments),
    /// Convert a model to a GGUF file or a Hugging Face directory
    Convert(ConvertArguments),
    /// Round the weights of a GGUF file to -1, 0 and 1 (absmean, as BitNet b1.58 does)
    Quantize(QuantizeArguments),
    /// Download a model from the Hugging Face Hub into the cache that its own tools use
    #[cfg(feature = "hub")]
    Pull(PullArguments),
    /// List the models in the cache of the Hugging Face Hub
    #[cfg(feature = "hub")]
    List(ListArguments),
    /// Remove a model from the cache of the Hugging Face Hub
    #[cfg(feature = "hub")]
    Rm(RemoveArguments),
    /// List or remove packed weights, which make the second start of a model quick
    Cache(CacheArguments),
    /// Show the token ids of a text
    Tokenize(TokenizeArguments),
    /// Write the logits of every position to a .npy file
    Logits(LogitsArguments),
    /// Measure prefill and decode speed
    Bench(BenchArguments),
    /// List the devices that can run a model
    Devices(DevicesArguments),
    /// Find the fastest ternary kernel for each matrix of a model, and remember it for this machine
    Tune(TuneArguments),
    /// Measure how well a model predicts a text
    Perplexity(PerplexityArguments),
    /// Turn texts into vectors
    Embed(EmbedArguments),
    /// Serve a model over HTTP with OpenAI's API
    #[cfg(feature = "server")]
    #[command(after_long_help = SERVE_HELP)]
    Serve(Box<ServeArguments>),
    /// Answer a file of requests in OpenAI's batch format
    #[cfg(feature = "server")]
    Batch(Box<BatchArguments>),
    /// Measure the latency of a server under load
    #[cfg(feature = "server")]
    BenchServer(BenchServerArguments),
    /// Compile schemas and grammars for `serve`, which starts this command itself
    #[cfg(feature = "server")]
    #[command(hide = true)]
    FormHelper(FormHelperArguments),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man {
        /// The command; all commands if not given
        command: Option<String>,
    },
}

#[derive(Args)]
pub struct RunArguments {
    /// Text to continue; read from standard input if not given
    #[arg(conflicts_with_all = ["prompt_option", "file", "prompt_tokens"])]
    pub prompt: Option<String>,
    /// Text to continue (the option of llama.cpp)
    #[arg(short = 'p', long = "prompt", value_name = "PROMPT", conflicts_with_all = ["file", "prompt_tokens"])]
    pub prompt_option: Option<String>,
    /// Read the text from a file; - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt_tokens")]
    pub file: Option<PathBuf>,
    /// Token ids to continue; no BOS is added
    #[arg(long, value_name = "ID,ID,…", value_delimiter = ',')]
    pub prompt_tokens: Option<Vec<TokenId>>,
    /// Put the text into the model's chat template as the message of a user
    #[arg(long, conflicts_with = "prompt_tokens")]
    pub chat: bool,
    /// Do not add the BOS token
    #[arg(long)]
    pub no_bos: bool,
    /// Read control tokens such as <|eot_id|> in the prompt as tokens
    #[arg(long)]
    pub parse_special: bool,
    /// Print the generated text only, without the prompt
    #[arg(long)]
    pub no_display_prompt: bool,
    #[command(flatten)]
    pub generation: GenerationArguments,
    #[command(flatten)]
    pub sampling: SamplingArguments,
    #[command(flatten)]
    pub model: ModelArguments,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Write a receipt of the run (docs/receipts.md)
    #[arg(long, value_name = "FILE")]
    pub receipt: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    On,
    Off,
}

#[derive(Args)]
pub struct ChatArguments {
    /// System message at the start of the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Use this chat template instead of the model's: a built-in one or a file in Jinja
    #[arg(long, value_name = "NAME|FILE")]
    pub chat_template: Option<String>,
    /// Whether the model thinks before it answers, for templates that read enable_thinking; the
    /// template decides if not given. A terminal shows thinking dimmed; elsewhere only the answer
    /// is printed
    #[arg(long, value_enum, value_name = "on|off")]
    pub thinking: Option<OnOff>,
    /// Maximum number of tokens of thinking; then the model has to answer
    #[arg(long, value_name = "N")]
    pub thinking_budget: Option<usize>,
    #[command(flatten)]
    pub generation: GenerationArguments,
    #[command(flatten)]
    pub sampling: SamplingArguments,
    #[command(flatten)]
    pub model: ModelArguments,
    /// Print one JSON object for each answer
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct InspectArguments {
    /// Model: a GGUF file, a Hugging Face directory or the name of a pulled model
    #[arg(value_name = "MODEL", required_unless_present = "model_option")]
    pub model: Option<PathBuf>,
    /// Model: a GGUF file, a Hugging Face directory or the name of a pulled model
    #[arg(short, long = "model", value_name = "MODEL", conflicts_with = "model")]
    pub model_option: Option<PathBuf>,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct ConvertArguments {
    /// GGUF file, or directory with config.json and safetensors files
    #[arg(value_name = "MODEL")]
    pub source: PathBuf,
    /// Format of the projections
    #[arg(long = "type", value_enum, default_value_t = OutputType::I2S)]
    pub weights: OutputType,
    #[command(flatten)]
    pub output: OutputArguments,
    #[command(flatten)]
    pub reading: ReadingArguments,
}

#[derive(Args)]
pub struct QuantizeArguments {
    /// GGUF file or Hugging Face directory with F32, F16 or BF16 weights
    #[arg(value_name = "MODEL")]
    pub source: PathBuf,
    /// Format of the projections
    #[arg(long = "type", value_enum, default_value_t = OutputType::I2S)]
    pub weights: OutputType,
    #[command(flatten)]
    pub output: OutputArguments,
}

#[derive(Args)]
pub struct OutputArguments {
    /// File to write, or directory with --type safetensors and --type mlx
    #[arg(short, long, value_name = "FILE.gguf")]
    pub output: PathBuf,
    /// Format of embedding and head; if not given, that of the source GGUF file, or else f16. bf16
    /// is exact for checkpoints in bf16
    #[arg(long, value_enum)]
    pub tables: Option<TableTypeArgument>,
    /// Round the scales of a directory to bf16, as mlx-lm needs them; otherwise scales stay f32 if
    /// bf16 would lose digits
    #[arg(long)]
    pub bf16_scales: bool,
    /// Name of the model in the file
    #[arg(long)]
    pub name: Option<String>,
    /// Replace an existing file or model directory of that name
    #[arg(long)]
    pub force: bool,
    /// Number of threads; the physical cores that this process may use if not given
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputType {
    /// 2 bits per weight, one scale per tensor: Microsoft's format
    #[value(name = "i2_s")]
    I2S,
    /// 1.69 bits per weight: llama.cpp's format
    #[value(name = "tq1_0")]
    Tq1_0,
    /// 2.06 bits per weight: llama.cpp's format
    #[value(name = "tq2_0")]
    Tq2_0,
    /// Signs, 1.125 bits per weight, a scale for each 128 columns: llama.cpp's format
    #[value(name = "q1_0")]
    Q1_0,
    /// 2.25 bits per weight, a scale for each 64 columns: llama.cpp's format
    #[value(name = "q2_0")]
    Q2_0,
    /// 2.125 bits per weight, a scale for each 128 columns: Prism's format
    #[value(name = "pq2_0")]
    Pq2_0,
    /// 1.75 bits per weight, a scale for each 128 columns: Prism's format
    #[value(name = "ptq1_0")]
    Ptq1_0,
    /// 2 bits per weight, in tiles for table lookup on ARM
    Tl1,
    /// 1.67 bits per weight, in tiles for table lookup on x86
    Tl2,
    /// Ternary weights as 16-bit floats
    F16,
    /// Ternary weights as 16-bit floats with the exponent of 32-bit floats
    Bf16,
    /// Ternary weights as 32-bit floats, with exact scales
    F32,
    /// A Hugging Face directory instead of a GGUF file: 2 bits per weight, scales apart
    Safetensors,
    /// A directory of MLX instead: 1 or 2 bits per weight, a scale and an offset for each 64 or
    /// 128 columns
    Mlx,
}

impl OutputType {
    /// How a directory holds the projections.
    pub fn directory(self) -> bitnet_models::convert::DirectoryForm {
        use bitnet_models::convert::DirectoryForm;
        match self {
            Self::Mlx => DirectoryForm::Mlx,
            _ => DirectoryForm::Packed,
        }
    }

    /// The type of the projections in a GGUF file; `None` for a directory.
    pub fn weights(self) -> Option<bitnet_models::convert::WeightType> {
        use bitnet_models::convert::WeightType;
        Some(match self {
            Self::I2S => WeightType::I2_S,
            Self::Tq1_0 => WeightType::TQ1_0,
            Self::Tq2_0 => WeightType::TQ2_0,
            Self::Q1_0 => WeightType::Q1_0,
            Self::Q2_0 => WeightType::Q2_0,
            Self::Pq2_0 => WeightType::PQ2_0,
            Self::Ptq1_0 => WeightType::PTQ1_0,
            Self::Tl1 => WeightType::TL1,
            Self::Tl2 => WeightType::TL2,
            Self::F16 => WeightType::F16,
            Self::Bf16 => WeightType::BF16,
            Self::F32 => WeightType::F32,
            Self::Safetensors | Self::Mlx => return None,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TableTypeArgument {
    F16,
    Bf16,
    F32,
    /// 8.5 bits per value
    #[value(name = "q8_0")]
    Q8_0,
    /// 6.6 bits per value
    #[value(name = "q6_k")]
    Q6K,
}

impl From<TableTypeArgument> for bitnet_models::convert::TableType {
    fn from(argument: TableTypeArgument) -> Self {
        match argument {
            TableTypeArgument::F16 => Self::F16,
            TableTypeArgument::Bf16 => Self::BF16,
            TableTypeArgument::F32 => Self::F32,
            TableTypeArgument::Q8_0 => Self::Q8_0,
            TableTypeArgument::Q6K => Self::Q6_K,
        }
    }
}

/// The help of `pull` and `rm` about names.
#[cfg(feature = "hub")]
fn names_help() -> String {
    let short = bitnet_hub::SHORT_NAMES
        .iter()
        .map(|(short, long)| format!("  {short:13} {long}\n"));
    format!(
        "NAME is ORG/REPO, ORG/REPO:FILE or ORG/REPO@REVISION:FILE on the Hub, or one of\n{}\n\
         Other commands take the name of a pulled model as model: bitnet chat -m 2b4t\n\
         HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE work as in Hugging Face's tools.",
        short.collect::<String>()
    )
}

#[cfg(feature = "hub")]
#[derive(Args)]
#[command(after_help = names_help())]
pub struct PullArguments {
    /// Models to download
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// Print a JSON object for each model
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "hub")]
#[derive(Args)]
pub struct ListArguments {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "hub")]
#[derive(Args)]
#[command(after_help = names_help())]
pub struct RemoveArguments {
    /// Models to remove: a file, or all files of a repository or of one of its revisions
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// Print a JSON object for each model
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct TokenizeArguments {
    /// Text; read from standard input if not given
    pub text: Option<String>,
    /// GGUF file, directory with tokenizer.json, or a tokenizer.json; the built-in story-teller if
    /// not given
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Do not add the BOS token
    #[arg(long)]
    pub no_bos: bool,
    /// Read control tokens such as <|eot_id|> in the text as tokens
    #[arg(long)]
    pub parse_special: bool,
    /// Print one JSON object: {"tokens":[…],"pieces":[…]}
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct LogitsArguments {
    /// Token ids; no BOS is added
    #[arg(long, value_name = "ID,ID,…", value_delimiter = ',', required = true)]
    pub tokens: Vec<TokenId>,
    /// File to write: f32, [tokens, vocab]
    #[arg(short, long, value_name = "FILE.npy")]
    pub output: PathBuf,
    #[command(flatten)]
    pub model: ModelArguments,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct BenchArguments {
    /// Length of the prompt in tokens
    #[arg(short, long, value_name = "N", default_value_t = 128)]
    pub prompt: usize,
    /// Tokens to generate; 0 to measure prefill only
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    pub predict: usize,
    /// Number of rounds, after a warm-up round
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    pub repetitions: usize,
    /// Context lengths to measure decoding at; the prompt's if not given
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub context: Vec<usize>,
    /// Also decode batches of N sequences, each after its own prompt
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub batch: Vec<usize>,
    #[command(flatten)]
    pub model: ModelArguments,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write a receipt of the round with the median time (docs/receipts.md)
    #[arg(long, value_name = "FILE")]
    pub receipt: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "\
Takes some seconds and, for a 2B model, about 200 MB of memory. The result holds for this CPU, instruction set, number of \
threads and version of the program. It is stored in $XDG_CACHE_HOME/bitnet/tuning.json (~/.cache if not set), and \
--packing auto follows it. The command times decoding, one token at a time: prompts, many tokens at a time, are \
fastest with i2s.")]
pub struct TuneArguments {
    /// Model: a GGUF file or a Hugging Face directory; the built-in story-teller if not given
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Number of threads; the physical cores that this process may use if not given
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Instruction set; the best one of this CPU if not given
    #[arg(long, value_name = "NAME", value_parser = parse_kernels)]
    pub kernels: Option<&'static KernelSet>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct PerplexityArguments {
    /// File with the text
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// The text has documents separated by lines <|endoftext|>: evaluate each one alone, and count
    /// all its tokens
    #[arg(long)]
    pub documents: bool,
    /// Length in tokens of a chunk, or of a window over a long document
    #[arg(long = "ctx", value_name = "N", default_value_t = 512, value_parser = parse_window)]
    pub context: usize,
    /// Evaluate windows that are N/2 tokens longer and N tokens apart, and count the last N tokens
    /// of each (llama.cpp's --ppl-stride)
    #[arg(long, value_name = "N", value_parser = parse_window, conflicts_with = "documents")]
    pub stride: Option<usize>,
    #[command(flatten)]
    pub model: ModelArguments,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "\
Prints a line with the numbers of each vector. A model gives embeddings if its file says how it pools; for others, such as \
chat models, name a way with --pooling.")]
pub struct EmbedArguments {
    /// Texts; if none is given, each line of --file is a text
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,
    /// Read one text per line from a file; - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "texts")]
    pub file: Option<PathBuf>,
    /// How the hidden states of a text become one vector: the last token's, the mean of all, or the
    /// first token's (cls); as the model's file says if not given
    #[arg(long, value_name = "last|mean|cls", value_parser = parse_pooling)]
    pub pooling: Option<Pooling>,
    /// Keep this many numbers of each vector, the first ones
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub dimensions: Option<usize>,
    /// Print the vectors as they are; without this option, they are scaled to length 1
    #[arg(long)]
    pub raw: bool,
    #[command(flatten)]
    pub model: ModelArguments,
    /// Print one JSON object in the form of OpenAI's API
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "server")]
const SERVE_HELP: &str = "\
Every option can also be set by an environment variable (BITNET_SERVE_PORT=80) or in a TOML file (port = 80) that
--config or BITNET_SERVE_CONFIG names. The command line overrides the environment, which overrides the file.

On SIGTERM or SIGINT the server finishes running requests and takes no new ones; a second signal stops it at once.";

#[cfg(feature = "server")]
#[derive(Args)]
pub struct ServeArguments {
    /// Whether prompts take whole chunks beside answers: no client reads an answer as it grows.
    #[arg(skip)]
    pub whole_chunks: bool,
    /// Address to listen on; 0.0.0.0 or :: for all addresses of the machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 for any free port
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub port: u16,
    /// Accept only requests with a key from this file: lines of `sha256 name`; the server reads the
    /// file again when it changes
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Accept only requests with this key, or with one of the key file; may be given more than
    /// once. Other users of the machine can see it on the command line, but not in BITNET_API_KEY
    #[arg(
        long,
        value_name = "KEY",
        env = "BITNET_API_KEY",
        hide_env_values = true
    )]
    pub api_key: Vec<String>,
    /// Maximum number of generating requests of each API key a minute (of each address without
    /// keys); further ones get 429 with Retry-After
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub key_requests: Option<usize>,
    /// Maximum number of tokens of each API key a minute, prompts and answers together
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub key_tokens: Option<usize>,
    /// Maximum number of answers of each API key that wait or run at once
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub key_concurrency: Option<usize>,
    /// Speak HTTPS with this certificate in PEM, followed by the certificates of its authorities; the server
    /// reads both files again when they change
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Keep the stored responses of /v1/responses, and the files and batches of /v1/files and
    /// /v1/batches, in this folder, so that a restart loses none; without it, responses are in
    /// memory, and there are no files and batches
    #[arg(long, value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,
    /// Maximum size of a file that a client uploads, such as 200M
    #[arg(long, value_name = "BYTES", default_value = "200M", value_parser = crate::values::parse_bytes)]
    pub file_bytes: usize,
    /// Maximum size of all files together, those with the answers of batches included
    #[arg(long, value_name = "BYTES", default_value = "4G", value_parser = crate::values::parse_bytes)]
    pub files_bytes: usize,
    /// Allow browsers to use the server from pages of this origin, or * for any; may be given more
    /// than once
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<String>,
    /// Accept requests whose Host header has this name, or * for any; may be given more than once.
    /// IP addresses and localhost are always accepted. If not given, any name is accepted, except
    /// on a loopback address without keys
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub allowed_host: Vec<String>,
    /// Memory of all loaded models together, such as 8G: weights, key/value caches and states. To
    /// load another model, the server unloads those that were not used for the longest time. If
    /// not given, a server of several models uses the memory that is free when it starts
    #[arg(long, value_name = "BYTES", value_parser = crate::values::parse_bytes)]
    pub models_memory: Option<usize>,
    /// How long a model stays loaded after its last use: seconds, or a time such as 5m or 1h30m; 0
    /// to unload it at once, -1 for ever. If not given, models are unloaded only to make room
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = crate::values::parse_keep_alive)]
    pub keep_alive: Option<crate::values::KeepAlive>,
    /// Name of the model; may be given more than once. Responses have the first name. Several
    /// models take one name each, in their order
    #[arg(
        long,
        value_name = "NAME",
        visible_alias = "alias",
        value_delimiter = ','
    )]
    pub model_name: Vec<String>,
    /// Use this chat template instead of the model's: a built-in one or a file in Jinja
    #[arg(long, value_name = "NAME|FILE")]
    pub chat_template: Option<String>,
    /// Ignore unknown and unsupported fields of requests, and accept any model name
    #[arg(long)]
    pub lenient: bool,
    /// How the hidden states of a text become its embedding: the last token's, the mean of all, or
    /// the first token's (cls); as the model's file says if not given
    #[arg(long, value_name = "last|mean|cls", value_parser = parse_pooling)]
    pub pooling: Option<Pooling>,
    /// Maximum number of queued requests; further ones get 429 with Retry-After
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = parse_count)]
    pub queue_requests: usize,
    /// Maximum number of prompt tokens of all queued requests
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = parse_count)]
    pub queue_tokens: usize,
    /// Maximum number of requests that run at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_count)]
    pub running: usize,
    /// Memory for the key/value cache, such as 2G; if not given, 1G or more if the context needs it
    #[arg(long, value_name = "BYTES", value_parser = crate::values::parse_bytes)]
    pub kv_memory: Option<usize>,
    /// Memory for the states of models with recurrent layers, such as 2G: of running requests, and
    /// saved for requests with the same beginning; if not given, 1G, or enough for 8 states
    #[arg(long, value_name = "BYTES", value_parser = crate::values::parse_bytes)]
    pub state_memory: Option<usize>,
    /// Which requests share cached prompts: all, or only those with the API key of the same owner
    #[arg(long, value_enum, default_value_t = CacheSalt::None)]
    pub cache_salt: CacheSalt,
    /// Maximum number of answers to one request: prompts × n
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_count)]
    pub choices: usize,
    /// Maximum size of a request body in bytes
    #[arg(long, value_name = "BYTES", default_value = "2M", value_parser = crate::values::parse_bytes)]
    pub body_bytes: usize,
    /// Maximum size of request headers in bytes
    #[arg(long, value_name = "BYTES", default_value = "16K", value_parser = crate::values::parse_bytes)]
    pub header_bytes: usize,
    /// Seconds until request headers must arrive, and until an idle connection is closed
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = crate::values::parse_seconds)]
    pub header_timeout: Duration,
    /// Seconds until a request body must arrive
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = crate::values::parse_seconds)]
    pub body_timeout: Duration,
    /// Seconds until a connection is closed if the client reads nothing of its answer
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = crate::values::parse_seconds)]
    pub write_timeout: Duration,
    /// Maximum time of an answer in seconds
    #[arg(long, value_name = "SECONDS", default_value = "1800", value_parser = crate::values::parse_seconds)]
    pub request_timeout: Duration,
    /// Seconds that running requests may take to finish after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = crate::values::parse_seconds)]
    pub drain_timeout: Duration,
    /// Seconds without a finished engine step until /livez fails
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = crate::values::parse_seconds)]
    pub stall_timeout: Duration,
    /// Maximum size in bytes of all request bodies that are being read, together
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = crate::values::parse_bytes)]
    pub inflight_bytes: usize,
    /// Maximum number of open connections; 16 further ones are reserved for probes
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = parse_count)]
    pub connections: usize,
    /// Maximum number of open connections of one address; seven eighths of all if not given
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub connections_per_address: Option<usize>,
    /// Maximum time in seconds to compile a schema, a regular expression or a grammar
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = crate::values::parse_seconds)]
    pub form_timeout: Duration,
    /// Maximum memory to compile a schema, a regular expression or a grammar
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = crate::values::parse_bytes)]
    pub form_memory: usize,
    /// Maximum stack to compile a schema, a regular expression or a grammar
    #[arg(long, value_name = "BYTES", default_value = "4M", hide = true, value_parser = crate::values::parse_form_stack)]
    pub form_stack: usize,
    /// Format of the log on standard error; auto is text on a terminal and JSON elsewhere
    #[arg(long, value_enum, default_value_t = LogFormat::Auto)]
    pub log_format: LogFormat,
    /// Lowest level of logged events: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::level_filters::LevelFilter,
    /// Read settings from a TOML file, by the names of the options without leading dashes
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the settings, print each with its origin, and exit
    #[arg(long)]
    pub check_config: bool,
    #[command(flatten)]
    pub sampling: SamplingArguments,
    #[command(flatten)]
    pub model: ModelArguments,
}

#[cfg(feature = "server")]
#[derive(Args)]
#[command(after_help = "\
Each line of the input is an object with custom_id, method (\"POST\"), url (such as /v1/chat/completions, /v1/completions or
/v1/embeddings) and body, the request. Each line of the output is the answer to the line at the same place. If the command is
interrupted or killed, the same command continues after the last whole line of the output.")]
pub struct BatchArguments {
    /// File with the requests
    #[arg(value_name = "IN.jsonl")]
    pub input: PathBuf,
    /// File for the answers; if it exists, the command continues where it ends
    #[arg(short, long, value_name = "OUT.jsonl")]
    pub output: PathBuf,
    /// Maximum number of requests that run at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_count)]
    pub running: usize,
    /// Memory for the key/value cache, such as 2G; if not given, 1G or more if the context needs it
    #[arg(long, value_name = "BYTES", value_parser = crate::values::parse_bytes)]
    pub kv_memory: Option<usize>,
    /// Memory for the states of models with recurrent layers, such as 2G
    #[arg(long, value_name = "BYTES", value_parser = crate::values::parse_bytes)]
    pub state_memory: Option<usize>,
    /// Use this chat template instead of the model's: a built-in one or a file in Jinja
    #[arg(long, value_name = "NAME|FILE")]
    pub chat_template: Option<String>,
    /// Ignore unknown and unsupported fields of requests, and accept any model name
    #[arg(long)]
    pub lenient: bool,
    /// How the hidden states of a text become its embedding; as the model's file says if not given
    #[arg(long, value_name = "last|mean|cls", value_parser = parse_pooling)]
    pub pooling: Option<Pooling>,
    #[command(flatten)]
    pub sampling: SamplingArguments,
    #[command(flatten)]
    pub model: ModelArguments,
    /// Print the counts as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The limits of a process that compiles forms.
#[cfg(feature = "server")]
#[derive(Args)]
pub struct FormHelperArguments {
    /// Bytes of stack
    #[arg(long)]
    pub stack: usize,
    /// Bytes of memory
    #[arg(long)]
    pub memory: usize,
}

#[cfg(feature = "server")]
#[derive(Args)]
pub struct BenchServerArguments {
    /// URL of the server: `http://host[:port]`
    pub url: String,
    /// Endpoint to send requests to
    #[arg(long, value_enum, default_value_t = EndpointArgument::Completions)]
    pub endpoint: EndpointArgument,
    /// Name of the model, for servers that need one
    #[arg(short, long, value_name = "NAME")]
    pub model: Option<String>,
    /// API key, for servers that need one
    #[arg(
        long,
        value_name = "KEY",
        env = "OPENAI_API_KEY",
        hide_env_values = true
    )]
    pub api_key: Option<String>,
    /// Number of clients; each sends its next request after the answer to the last one
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = parse_count, conflicts_with = "rate")]
    pub concurrency: usize,
    /// Requests per second, sent without waiting for earlier answers
    #[arg(short, long, value_name = "R", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Number of requests
    #[arg(short = 'n', long, value_name = "N", default_value_t = 16, value_parser = parse_count)]
    pub requests: usize,
    /// Number of warm-up requests before the measured ones
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warmup: usize,
    /// Length of a prompt in words, which are about as many tokens
    #[arg(short, long, value_name = "N", default_value_t = 128, value_parser = parse_count)]
    pub prompt_words: usize,
    /// Number of words at the beginning that all prompts share
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub shared_words: usize,
    /// Send token ids instead of words, for an exact number of tokens; completions only
    #[arg(long)]
    pub token_ids: bool,
    /// Length of an answer in tokens
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_count)]
    pub max_tokens: usize,
    /// Let the model end its answers: do not send the field ignore_eos, which some servers lack
    #[arg(long)]
    pub keep_eos: bool,
    /// Temperature
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temp: f64,
    /// Seed of the prompts
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Maximum time of an answer in seconds
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = crate::values::parse_seconds)]
    pub timeout: Duration,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "server")]
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EndpointArgument {
    Chat,
    Completions,
}

#[cfg(feature = "server")]
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheSalt {
    /// All requests share the cache
    None,
    /// Each owner of an API key has a separate cache
    Key,
}

#[cfg(feature = "server")]
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Auto,
    Text,
    Json,
}

#[derive(Args)]
pub struct GenerationArguments {
    /// Maximum number of tokens to generate; -1 for as many as the context has room for
    #[arg(short = 'n', long = "predict", value_name = "N", default_value_t = -1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(-1..))]
    pub predict: i64,
    /// End the answer before this text; may be given more than once
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Continue after the model's end-of-text tokens
    #[arg(long)]
    pub ignore_eos: bool,
}

#[derive(Args, Clone)]
pub struct SamplingArguments {
    /// Temperature; 0 to always choose the most probable token; the model's, else 0.8, if not given
    #[arg(
        long,
        visible_alias = "temperature",
        value_name = "T",
        allow_negative_numbers = true
    )]
    pub temp: Option<f32>,
    /// Choose among the K most probable tokens; 0 for all; the model's, else 40, if not given
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Choose among the most probable tokens whose probabilities add up to P; 1 for all; the
    /// model's, else 0.95, if not given
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Choose among tokens with at least this share of the highest probability; 0 for all; the
    /// model's, else 0.05, if not given
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Choose among the tokens closest to the expected surprise whose probabilities add up to P; 1
    /// for all
    #[arg(
        long,
        visible_alias = "typical",
        value_name = "P",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    pub typical_p: f32,
    /// Penalty factor for tokens that have occurred: lowers their logits; 1 for no penalty; the
    /// model's, else 1, if not given
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// Subtract this from the logits of tokens that have occurred
    #[arg(
        long,
        value_name = "F",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub presence_penalty: f32,
    /// Subtract this from the logits of tokens for each time they have occurred
    #[arg(
        long,
        value_name = "F",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub frequency_penalty: f32,
    /// Number of last tokens that the penalties apply to; the model's, else 64, if not given
    #[arg(long, value_name = "N")]
    pub repeat_last_n: Option<usize>,
    /// Add BIAS to the logit of a token, as in 15043+1 or 15043-inf; may be given more than once
    #[arg(long, value_name = "ID±BIAS", value_parser = parse_bias, allow_hyphen_values = true)]
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed: the same request with the same seed gives the same text; random if not given
    #[arg(short, long, value_name = "N", env = "BITNET_SEED")]
    pub seed: Option<u64>,
    /// Use seed 0 if no seed is given
    #[arg(long, env = "BITNET_DETERMINISTIC", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub deterministic: bool,
}

impl SamplingArguments {
    /// Whether the user has chosen the seed.
    pub fn is_deterministic(&self) -> bool {
        self.seed.is_some() || self.deterministic
    }

    /// The parameters: from the arguments, else from the model's recommendation, else the defaults.
    /// Draws a seed if the user has not chosen one.
    pub fn params(&self, model: &SamplingDefaults) -> SamplingParams {
        let default = SamplingParams::recommended(model);
        let random = || {
            use std::hash::BuildHasher;
            // The standard library seeds its hash maps from the system's randomness. 53 bits
            // survive JSON readers.
            std::hash::RandomState::new().hash_one(std::process::id()) >> 11
        };
        SamplingParams {
            temperature: self.temp.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            typical_p: self.typical_p,
            repetition_penalty: self.repeat_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_window: self.repeat_last_n.unwrap_or(default.penalty_window),
            logit_bias: self.logit_bias.clone(),
            seed: self
                .seed
                .unwrap_or_else(|| if self.deterministic { 0 } else { random() }),
        }
    }
}

#[derive(Args)]
pub struct DevicesArguments {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Clone)]
pub struct ModelArguments {
    /// Model: a GGUF file, a Hugging Face directory or the name of a pulled model; the built-in
    /// story-teller if not given. serve takes several, and folders of models
    #[arg(short, long = "model", value_name = "MODEL")]
    pub models: Vec<PathBuf>,
    /// Number of threads; the physical cores that this process may use if not given. bench takes
    /// several, separated by commas
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Vec<u16>,
    /// Where the model runs: the CPU, a GPU, a GPU if there is one (auto), or the GPU whose name
    /// contains NAME, as `bitnet devices` lists them
    #[arg(long, value_name = "auto|cpu|gpu|NAME", default_value = "cpu", value_parser = parse_device)]
    pub device: DeviceName,
    /// Maximum memory of a GPU to use, in MiB; as much as its driver gives if not given
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub device_memory: Option<u64>,
    /// Context length in tokens; 0 for the model's own; the model's, but at most 4096, if not given
    #[arg(short, long = "ctx-size", value_name = "N")]
    pub ctx_size: Option<usize>,
    /// Element type of the key/value cache
    #[arg(long, value_enum, default_value_t = KvTypeArgument::F16)]
    pub kv_type: KvTypeArgument,
    /// Maximum number of tokens in one pass through the model
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = parse_chunk)]
    pub prefill_chunk: usize,
    /// Draft up to N tokens from earlier text, and check them in one step; auto drafts only where
    /// that saves time, as earlier guesses and the measured time of steps show. The text is the same
    #[arg(long, value_name = "N|auto", default_value = "0", value_parser = parse_draft)]
    pub draft: Draft,
    /// Instruction set; the best one of this CPU if not given
    #[arg(long, value_name = "NAME", value_parser = parse_kernels)]
    pub kernels: Option<&'static KernelSet>,
    /// How ternary weights lie in memory, which decides how products are computed: 2 or 1.67 bits
    /// each, multiplied (i2s: the better of the two for the kernels in use), or as tl1 or tl2,
    /// looked up in tables (not with group scales). auto is the fastest packing for each matrix that `bitnet tune` found on
    /// this machine, or i2s if it has not run. The text is the same
    #[arg(long, value_enum, default_value_t = PackingArgument::Auto)]
    pub packing: PackingArgument,
    /// An older name of --packing, for scripts; tl1 and tl2 come before the value of --packing
    #[arg(long, value_enum, hide = true)]
    pub ternary_kernel: Option<TernaryKernelArgument>,
    /// How to compute logits: full computes all exactly; screened estimates them from an 8-bit copy
    /// of the head, and computes only those exactly that can matter. The text is the same
    #[arg(long, value_name = "full|screened|auto", default_value = "auto", value_parser = parse_head)]
    pub head: HeadMode,
    /// Skip weights of feed-forward networks whose inputs are zero when decoding, and read the
    /// others from copies: on for all layers, auto for layers where it is faster. The text is the
    /// same
    #[arg(long, value_name = "on|off|auto", default_value = "auto", value_parser = parse_ffn_sparsity)]
    pub ffn_sparsity: FfnSparsity,
    /// How to round inputs of weights with group scales: to int8 in runs of 32, 64 or 128, or not
    /// at all (f32, a slow reference)
    #[arg(long, value_name = "int8-32|int8-64|int8-128|f32", default_value = "int8-32", value_parser = parse_group_inputs)]
    pub group_inputs: InputRounding,
    /// Memory for speed: fast keeps copies of weights that make decoding faster, low keeps none
    #[arg(long, value_enum, default_value_t = MemoryArgument::Fast)]
    pub memory: MemoryArgument,
    #[command(flatten)]
    pub weight_cache: WeightCacheArguments,
    #[command(flatten)]
    pub reading: ReadingArguments,
}

impl ModelArguments {
    /// The model of a command that has one; `None` for the built-in one.
    pub fn only_model(&self) -> anyhow::Result<Option<&Path>> {
        match &self.models[..] {
            [] => Ok(None),
            [model] => Ok(Some(model.as_path())),
            models => {
                let message = format!(
                    "-m is given {} times: only serve and batch take several models",
                    models.len()
                );
                Err(WrongUsage(message).into())
            }
        }
    }

    /// How to load the model. `packing` is `None` if the arguments leave it to the machine.
    pub fn load_options(&self) -> LoadOptions {
        let mut options = LoadOptions {
            head: self.head,
            packing: self.packing(),
            ffn_sparsity: self.ffn_sparsity,
            group_inputs: self.group_inputs,
            ..self.reading.load_options()
        };
        if self.memory == MemoryArgument::Low && options.head == HeadMode::Auto {
            options.head = HeadMode::Full;
        }
        if self.memory == MemoryArgument::Low && options.ffn_sparsity == FfnSparsity::Auto {
            options.ffn_sparsity = FfnSparsity::Off;
        }
        options
    }

    fn packing(&self) -> Option<Packing> {
        let packing = match (self.ternary_kernel, self.packing) {
            (Some(TernaryKernelArgument::Tl1), _) => PackingArgument::Tl1,
            (Some(TernaryKernelArgument::Tl2), _) => PackingArgument::Tl2,
            (Some(TernaryKernelArgument::I2s), PackingArgument::Auto) => PackingArgument::I2s,
            (_, packing) => packing,
        };
        match packing {
            PackingArgument::Auto => None,
            PackingArgument::I2s => Some(self.kernels.unwrap_or_else(KernelSet::detect).packing),
            PackingArgument::Two => Some(Packing::Two),
            PackingArgument::FiveThirds => Some(Packing::FiveThirds),
            PackingArgument::Tl1 => Some(Packing::Tl1),
            PackingArgument::Tl2 => Some(Packing::Tl2),
        }
    }
}

#[derive(Args, Clone)]
pub struct WeightCacheArguments {
    /// Folder for packed weights, which the first start of a model writes and later starts map;
    /// if not given, $XDG_CACHE_HOME/bitnet/weights, but none for serve and bench
    /// (docs/weight-cache.md)
    #[arg(long, value_name = "FOLDER", env = "BITNET_WEIGHT_CACHE")]
    pub weight_cache: Option<PathBuf>,
    /// Pack the weights at every start, and keep none
    #[arg(long)]
    pub no_weight_cache: bool,
    /// Maximum size of the folder for packed weights in GiB; the files that were not used for the
    /// longest time are removed
    #[arg(long, value_name = "GIB", default_value_t = 20, value_parser = clap::value_parser!(u64).range(..=1 << 20), env = "BITNET_WEIGHT_CACHE_MAX")]
    pub weight_cache_max: u64,
    /// Smallest size of packed weights that are kept, in MiB: a smaller model starts quickly anyway
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(..=1 << 30), env = "BITNET_WEIGHT_CACHE_MIN")]
    pub weight_cache_min: u64,
}

#[derive(Args)]
pub struct CacheArguments {
    /// What to do
    #[command(subcommand)]
    pub command: CacheCommand,
    /// Folder for packed weights; $XDG_CACHE_HOME/bitnet/weights if not given
    #[arg(
        long,
        value_name = "FOLDER",
        env = "BITNET_WEIGHT_CACHE",
        global = true
    )]
    pub weight_cache: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Copy, Subcommand)]
pub enum CacheCommand {
    /// List the packed weights: their size, the kernels that they are packed for, and their model
    List,
    /// Remove all packed weights
    Clear,
}

#[derive(Args, Clone)]
pub struct ReadingArguments {
    /// Arrangement of the codes in I2_S tensors: block128, block64 (files quantized on ARM) or row4
    #[arg(long, value_name = "FORM", default_value = "block128")]
    pub i2_s_form: bitnet_models::I2sForm,
    /// Tile of the TL1 (BM,BK,bm) or TL2 (BM,BK) tensors of one shape, for files that do not name
    /// it; may be given more than once
    #[arg(long, value_name = "ROWSxCOLS=BM,BK[,bm]", value_parser = parse_tile)]
    pub tl_tile: Vec<TlTile>,
}

impl ReadingArguments {
    /// The load options that files do not contain.
    pub fn load_options(&self) -> LoadOptions {
        let mut options = LoadOptions {
            i2_s_form: self.i2_s_form,
            ..LoadOptions::default()
        };
        for TlTile { shape, tile } in &self.tl_tile {
            match *tile {
                TileSizes::Tl1(tile) => options.tl1_tiles.push((*shape, tile)),
                TileSizes::Tl2(tile) => options.tl2_tiles.push((*shape, tile)),
            }
        }
        options
    }
}

/// The tile of the TL tensors of one shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TlTile {
    /// Rows and columns.
    shape: (usize, usize),
    tile: TileSizes,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum TileSizes {
    Tl1(Tl1Tile),
    Tl2(Tl2Tile),
}

/// `ROWSxCOLS=BM,BK,bm` for TL1, `ROWSxCOLS=BM,BK` for TL2.
fn parse_tile(text: &str) -> Result<TlTile, String> {
    let wrong = || {
        "expected ROWSxCOLS=BM,BK,bm (TL1) or ROWSxCOLS=BM,BK (TL2), such as 2560x6912=160,96"
            .to_owned()
    };
    let number = |text: &str| {
        text.parse::<usize>()
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(wrong)
    };
    let (shape, sizes) = text.split_once('=').ok_or_else(wrong)?;
    let (rows, cols) = shape.split_once('x').ok_or_else(wrong)?;
    let sizes = sizes
        .split(',')
        .map(number)
        .collect::<Result<Vec<_>, _>>()?;
    let tile = match sizes[..] {
        [tile_rows, block_cols, inner_rows] => TileSizes::Tl1(Tl1Tile {
            tile_rows,
            block_cols,
            inner_rows,
        }),
        [tile_rows, block_cols] => TileSizes::Tl2(Tl2Tile {
            tile_rows,
            block_cols,
        }),
        _ => return Err(wrong()),
    };
    Ok(TlTile {
        shape: (number(rows)?, number(cols)?),
        tile,
    })
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MemoryArgument {
    Fast,
    Low,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvTypeArgument {
    F16,
    F32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TernaryKernelArgument {
    Auto,
    I2s,
    Tl1,
    Tl2,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PackingArgument {
    Auto,
    I2s,
    #[value(name = "2")]
    Two,
    #[value(name = "1.67")]
    FiveThirds,
    Tl1,
    Tl2,
}

impl From<KvTypeArgument> for KvType {
    fn from(argument: KvTypeArgument) -> Self {
        match argument {
            KvTypeArgument::F16 => Self::F16,
            KvTypeArgument::F32 => Self::F32,
        }
    }
}

fn parse_device(name: &str) -> Result<DeviceName, String> {
    match name.trim() {
        "" => Err("a name is needed: auto, cpu, gpu or a part of a GPU's name".into()),
        name => Ok(DeviceName::parse(name)),
    }
}

fn parse_kernels(name: &str) -> Result<&'static KernelSet, String> {
    KernelSet::by_name(name).ok_or_else(|| {
        let names: Vec<&str> = KernelSet::available().map(|set| set.name).collect();
        format!("this CPU has {}", names.join(", "))
    })
}

/// How many tokens to guess ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The longest draft.
    pub max: usize,
    /// Whether drafts adapt to how right they are.
    pub adapts: bool,
}

fn parse_draft(text: &str) -> Result<Draft, String> {
    let (max, adapts) = match (text, text.parse()) {
        ("auto", _) => (DRAFT_MAX, true),
        (_, Ok(n)) if n <= DRAFT_MAX => (n, false),
        _ => return Err(format!("0 to {DRAFT_MAX} or auto is allowed")),
    };
    Ok(Draft { max, adapts })
}

fn parse_head(name: &str) -> Result<HeadMode, String> {
    HeadMode::by_name(name).ok_or_else(|| {
        let names = HeadMode::ALL.map(HeadMode::name);
        format!("expected one of {}", names.join(", "))
    })
}

fn parse_group_inputs(name: &str) -> Result<InputRounding, String> {
    let names = InputRounding::ALL.map(InputRounding::name).join(", ");
    InputRounding::by_name(name).ok_or_else(|| format!("expected one of {names}"))
}

fn parse_ffn_sparsity(name: &str) -> Result<FfnSparsity, String> {
    FfnSparsity::by_name(name).ok_or_else(|| {
        let names = FfnSparsity::ALL.map(FfnSparsity::name);
        format!("expected one of {}", names.join(", "))
    })
}

/// A way to pool, by name.
fn parse_pooling(text: &str) -> Result<Pooling, String> {
    Pooling::by_name(text).ok_or_else(|| {
        let names = Pooling::ALL.map(Pooling::name);
        format!("{} are supported", names.join(", "))
    })
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=1 << 30).contains(&n) => Ok(n),
        _ => Err("1 to 1073741824 is allowed".to_owned()),
    }
}

#[cfg(feature = "server")]
fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text
        .parse::<f64>()
        .ok()
        .filter(|rate| *rate > 0.0 && *rate <= 1e6);
    rate.ok_or_else(|| "expected requests per second, more than 0".to_owned())
}

fn parse_chunk(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=65_536).contains(&n) => Ok(n),
        _ => Err("1 to 65536 is allowed".to_owned()),
    }
}

fn parse_window(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (4..=1 << 20).contains(&n) => Ok(n),
        _ => Err("4 to 1048576 is allowed".to_owned()),
    }
}

/// `ID+BIAS` or `ID-BIAS`.
fn parse_bias(text: &str) -> Result<(TokenId, f32), String> {
    parse_logit_bias(text)
        .ok_or_else(|| "expected ID+BIAS or ID-BIAS, such as 15043+1 or 15043-inf".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn tiles_are_read_by_the_number_of_their_sizes() {
        let tl1 = TileSizes::Tl1(Tl1Tile {
            tile_rows: 320,
            block_cols: 128,
            inner_rows: 64,
        });
        assert_eq!(
            parse_tile("3200x3200=320,128,64"),
            Ok(TlTile {
                shape: (3200, 3200),
                tile: tl1
            })
        );
        let tl2 = TileSizes::Tl2(Tl2Tile {
            tile_rows: 160,
            block_cols: 96,
        });
        assert_eq!(
            parse_tile("3200x8640=160,96"),
            Ok(TlTile {
                shape: (3200, 8640),
                tile: tl2
            })
        );
        for wrong in ["", "3200=1,2", "1x1=0,2", "1x1=1", "1x1=1,2,3,4", "axb=1,2"] {
            assert!(parse_tile(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn biases_are_read_with_their_sign() {
        assert_eq!(parse_bias("12-1.5"), Ok((TokenId(12), -1.5)));
        assert_eq!(parse_bias("12+inf"), Ok((TokenId(12), f32::INFINITY)));
        assert!(parse_bias("12").is_err() && parse_bias("+1").is_err());
    }
}
