//! `xtask make-model`: a random model of any shape, for comparing engines and for timing without a download.

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
    /// bitnet-b1.58, bitnet or llama
    #[arg(long, default_value = "bitnet-b1.58")]
    architecture: String,
    #[arg(long, default_value_t = 256)]
    hidden: usize,
    #[arg(long, default_value_t = 2)]
    layers: usize,
    #[arg(long, default_value_t = 4)]
    heads: usize,
    #[arg(long, default_value_t = 2)]
    kv_heads: usize,
    #[arg(long, default_value_t = 64)]
    head_dim: usize,
    #[arg(long, default_value_t = 384)]
    ffn: usize,
    #[arg(long, default_value_t = 512)]
    vocab: usize,
    #[arg(long, default_value_t = 512)]
    context: usize,
    #[arg(long, default_value_t = 10_000.0)]
    rope_theta: f32,
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
    let shape = Shape {
        architecture: Architecture::from_name(&options.architecture)?,
        hidden_size: options.hidden,
        num_layers: options.layers,
        heads: options.heads,
        kv_heads: options.kv_heads,
        head_dim: options.head_dim,
        ffn_size: options.ffn,
        vocab_size: options.vocab,
        context_length: options.context,
        rope_theta: options.rope_theta,
        tied: !options.untied,
        dead_neurons_percent: options.dead_neurons,
    };
    anyhow::ensure!(shape.vocab_size >= 512, "the vocabulary has {} tokens, at least 512 are needed", shape.vocab_size);
    let model = SyntheticModel { shape, seed: options.seed };
    let file = |format: TernaryFormat| model.write_gguf(&options.output, &|_, _| format);
    let directory = |weights| model.write_checkpoint(&options.output, weights, usize::from(options.shards));
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
