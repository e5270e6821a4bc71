//! JSON files beside a model's weights.

use std::path::Path;

use crate::error::{Error, Result};

/// The longest JSON file that is read, in bytes; real ones are below a few megabytes.
const JSON_BYTES_MAX: u64 = 16 << 20;

/// Reads a JSON file of bounded size.
pub fn read_json(path: &Path) -> Result<serde_json::Value> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(Error::NotAFile {
            path: path.to_owned(),
        });
    }
    if metadata.len() > JSON_BYTES_MAX {
        let problem = format!(
            "{} bytes of JSON, expected at most {JSON_BYTES_MAX}",
            metadata.len()
        );
        return Err(Error::Directory {
            path: path.to_owned(),
            problem,
        });
    }
    let text = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })
}
