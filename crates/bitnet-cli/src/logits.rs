//! `bitnet logits`: writes the logits of every position, to compare with other engines.

use std::io::{BufWriter, Write};

use anyhow::Context;
use bitnet_files::Output;
use serde_json::json;

use crate::args::LogitsArguments;
use crate::{report, session};

/// Runs the tokens through the model and writes f32 `[tokens, vocab]` as a NumPy file.
pub fn logits(arguments: &LogitsArguments) -> anyhow::Result<()> {
    let session = session::open(&arguments.model, Some(arguments.tokens.len()))?;
    let vocab = session.model.info().config.vocab_size;
    let shape = [arguments.tokens.len(), vocab];
    let path = &arguments.output;
    let start = std::time::Instant::now();
    // Check first, so that an output that cannot be written fails before the run takes time.
    let problem = format!("cannot write {}", path.display());
    let output = Output::replacing(path).with_context(|| problem.clone())?;
    let mut file = BufWriter::new(output.handle()?);
    write_header(&mut file, shape).with_context(|| problem.clone())?;
    let tokens = arguments.tokens.clone();
    session.driver.call(move |engine| -> anyhow::Result<()> {
        engine.evaluate(&tokens, 0, |_, rows| -> anyhow::Result<()> {
            let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
            file.write_all(&bytes).with_context(|| problem.clone())
        })?;
        file.flush().with_context(|| problem.clone())
    })??;
    output.commit()?;
    if arguments.json {
        let object = json!({
            "output": path.display().to_string(),
            "shape": shape,
            "model": report::model_json(&session.model.source, session.model.info()),
            "seconds": start.elapsed().as_secs_f64(),
        });
        writeln!(std::io::stdout(), "{object}")?;
    }
    Ok(())
}

/// Writes the header of a NumPy file: magic, version 1.0, its length, and a text that is padded so
/// that the data begins at a multiple of 64.
fn write_header(out: &mut impl Write, shape: [usize; 2]) -> std::io::Result<()> {
    let mut header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}",
        shape[0], shape[1]
    );
    let padded = (header.len() + 11).next_multiple_of(64) - 11;
    header.push_str(&" ".repeat(padded - header.len()));
    header.push('\n');
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(
        &u16::try_from(header.len())
            .unwrap_or(u16::MAX)
            .to_le_bytes(),
    )?; // some 80 bytes
    out.write_all(header.as_bytes())
}
