//! `xtask model make`: writes a random model of any shape, to compare and time engines without a
//! download.

use std::path::PathBuf;

use bitnet_models::synthetic::{CheckpointWeights, Shape, SyntheticModel};
use bitnet_models::{Architecture, I2sForm};
use bitnet_quantization::{TernaryFormat, tq};
use clap::{Args, ValueEnum};

/// Shape, form and output of the model.
#[derive(Args)]
pub struct Options {
    /// The file or directory to write
    output: PathBuf,
    /// Files: i2-s, i2-s-block64, i2-s-row4, tq1-0, tq2-0, q4-0. Directories: packed, bf16, f32
    #[arg(long, value_enum, default_value_t = Form::I2S)]
    form: Form,
    /// The shape of a published model; the options below override parts of it
    #[arg(long, value_parser = parse_shape)]
    shape: Option<Shape>,
    /// bitnet-b1.58, bitnet or llama
    #[arg(long)]
    architecture: Option<String>,
    /// Hidden size
    #[arg(long, value_name = "N")]
    hidden: Option<usize>,
    /// Number of layers
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Number of query heads
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Number of key/value heads
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Size of a head
    #[arg(long, value_name = "N")]
    head_dim: Option<usize>,
    /// Size of the feed-forward network
    #[arg(long, value_name = "N")]
    ffn: Option<usize>,
    /// Tokens in the vocabulary, at least 512
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Longest context, in tokens
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Base of the rotary embedding's frequencies
    #[arg(long, value_name = "X")]
    rope_theta: Option<f32>,
    /// Give the head its own table instead of the embedding's
    #[arg(long)]
    untied: bool,
    /// Share of dead neurons, about, in percent
    #[arg(long, default_value_t = 0, value_name = "PERCENT", value_parser = clap::value_parser!(u64).range(..100))]
    dead_neurons: u64,
    /// Number of weight files in a directory
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    shards: u16,
    /// Seed of the random weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    I2S,
    I2SBlock64,
    I2SRow4,
    Tq1_0,
    Tq2_0,
    Q4_0,
    Packed,
    Bf16,
    F32,
}

/// Writes the model.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let base = options.shape.clone().unwrap_or_default();
    let architecture = options
        .architecture
        .as_deref()
        .map(Architecture::from_name)
        .transpose()?;
    let shape = Shape {
        architecture: architecture.unwrap_or(base.architecture),
        hidden_size: options.hidden.unwrap_or(base.hidden_size),
        num_layers: options.layers.unwrap_or(base.num_layers),
        heads: options.heads.unwrap_or(base.heads),
        kv_heads: options.kv_heads.unwrap_or(base.kv_heads),
        head_dim: options.head_dim.unwrap_or(base.head_dim),
        ffn_size: options.ffn.unwrap_or(base.ffn_size),
        vocab_size: options.vocab.unwrap_or(base.vocab_size),
        context_length: options.context.unwrap_or(base.context_length),
        rope_theta: options.rope_theta.unwrap_or(base.rope_theta),
        tied: base.tied && !options.untied,
        dead_neurons_percent: options.dead_neurons,
    };
    anyhow::ensure!(
        shape.vocab_size >= 512,
        "the vocabulary has {} tokens, expected at least 512",
        shape.vocab_size
    );
    let model = SyntheticModel {
        shape,
        seed: options.seed,
    };
    let file = |format: TernaryFormat| model.write_gguf(&options.output, &|_, _| format);
    let directory =
        |weights| model.write_checkpoint(&options.output, weights, usize::from(options.shards));
    match options.form {
        Form::I2S => file(TernaryFormat::I2_S(I2sForm::Block128)),
        Form::I2SBlock64 => file(TernaryFormat::I2_S(I2sForm::Block64)),
        Form::I2SRow4 => file(TernaryFormat::I2_S(I2sForm::Row4)),
        Form::Tq1_0 => file(TernaryFormat::TQ(tq::Kind::TQ1_0)),
        Form::Tq2_0 => file(TernaryFormat::TQ(tq::Kind::TQ2_0)),
        Form::Q4_0 => file(TernaryFormat::Q4_0),
        Form::Packed => directory(CheckpointWeights::Packed),
        Form::Bf16 => directory(CheckpointWeights::Bf16),
        Form::F32 => directory(CheckpointWeights::F32),
    }?;
    println!("wrote {}", options.output.display());
    Ok(())
}

fn parse_shape(name: &str) -> Result<Shape, String> {
    Shape::named(name)
        .ok_or_else(|| format!("unknown shape; known are {}", Shape::NAMES.join(", ")))
}
