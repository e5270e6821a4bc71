//! `bitnet logits`: the logits of every position, for comparing with other engines.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use serde_json::json;

use crate::args::LogitsArguments;
use crate::{report, session};

/// Runs the tokens through the model and writes f32 `[tokens, vocab]` as a NumPy file.
pub fn logits(arguments: &LogitsArguments) -> anyhow::Result<()> {
    let mut session = session::open(&arguments.model, Some(arguments.tokens.len()))?;
    let vocab = session.engine.model().config.vocab_size;
    let shape = [arguments.tokens.len(), vocab];
    let path = &arguments.output;
    let start = std::time::Instant::now();
    write_npy(path, shape, |out| {
        session
            .engine
            .evaluate(&arguments.tokens, 0, |_, rows| -> anyhow::Result<()> {
                for value in rows {
                    out.write_all(&value.to_le_bytes())?;
                }
                Ok(())
            })
    })
    .with_context(|| format!("cannot write {}", path.display()))?;
    if arguments.json {
        let object = json!({
            "output": path.display().to_string(),
            "shape": shape,
            "model": report::model_json(&session.source, session.engine.model()),
            "seconds": start.elapsed().as_secs_f64(),
        });
        writeln!(std::io::stdout(), "{object}")?;
    }
    Ok(())
}

/// Writes the header and what `fill` writes under a temporary name, which gets the real one once
/// all is there.
fn write_npy(
    path: &Path,
    shape: [usize; 2],
    fill: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = BufWriter::new(tempfile::NamedTempFile::new_in(directory)?);
    // Magic, version 1.0, length of the header; the header is padded so that the data begins at a
    // multiple of 64.
    let mut header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}",
        shape[0], shape[1]
    );
    let padded = (header.len() + 11).next_multiple_of(64) - 11;
    header.push_str(&" ".repeat(padded - header.len()));
    header.push('\n');
    file.write_all(b"\x93NUMPY\x01\x00")?;
    file.write_all(&u16::try_from(header.len())?.to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    fill(&mut file)?;
    let file = file
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    set_usual_permissions(&file);
    file.persist(path)?;
    Ok(())
}

/// Temporary files are private; an output is readable as any other file is.
fn set_usual_permissions(file: &tempfile::NamedTempFile) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // If the system refuses, the file stays private, which harms nobody.
        let _ = file
            .as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o644));
    }
    #[cfg(not(unix))]
    let _ = file;
}
