//! `xtask make-model`: a random model of any shape, for comparing engines and for timing without a
//! download.

use std::path::PathBuf;

use bitnet_models::synthetic::{CheckpointWeights, Shape, SyntheticModel};
use bitnet_models::{Architecture, I2sForm};
use bitnet_quantization::{TernaryFormat, tq};
use clap::{Args, ValueEnum};

/// The shape, the form, and where to put it.
#[derive(Args)]
pub struct Options {
    /// The file or directory to write
    output: PathBuf,
    /// Files: i2-s, i2-s-block64, i2-s-row4, tq1-0, tq2-0, q4-0. Directories: packed, bf16, f32
    #[arg(long, value_enum, default_value_t = Form::I2S)]
    form: Form,
    /// The shape of a published model, from which the following options may differ
    #[arg(long, value_parser = parse_shape)]
    shape: Option<Shape>,
    /// bitnet-b1.58, bitnet or llama
    #[arg(long)]
    architecture: Option<String>,
    #[arg(long)]
    hidden: Option<usize>,
    #[arg(long)]
    layers: Option<usize>,
    #[arg(long)]
    heads: Option<usize>,
    #[arg(long)]
    kv_heads: Option<usize>,
    #[arg(long)]
    head_dim: Option<usize>,
    #[arg(long)]
    ffn: Option<usize>,
    #[arg(long)]
    vocab: Option<usize>,
    #[arg(long)]
    context: Option<usize>,
    #[arg(long)]
    rope_theta: Option<f32>,
    /// Give the logits a table of their own
    #[arg(long)]
    untied: bool,
    /// About so many of a hundred neurons are dead
    #[arg(long, default_value_t = 0, value_name = "PERCENT", value_parser = clap::value_parser!(u64).range(..100))]
    dead_neurons: u64,
    /// Files of a directory
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    shards: u16,
    #[arg(long, default_value_t = 0)]
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
        "the vocabulary has {} tokens, at least 512 are needed",
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
    Shape::named(name).ok_or_else(|| {
        format!(
            "no shape of that name; there are {}",
            Shape::NAMES.join(", ")
        )
    })
}
