//! Models in several GGUF files, as llama.cpp's `gguf-split` writes them.
//!
//! The first part has the metadata and perhaps no tensors. Every part has `split.no` (from 0) and
//! `split.count`, and is named `NAME-00001-of-00003.gguf`, counted from 1.

use std::path::{Path, PathBuf};

use super::{Gguf, sort_by_name};
use crate::error::{Error, Result};

/// Parts that a model can have; their names have five digits.
const PARTS_MAX: u32 = 99_999;

/// Which part of a split model a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// From 0.
    no: u32,
    count: u32,
}

impl Split {
    /// Reads it from a file; `None` for a file that is a whole model.
    pub(super) fn of(gguf: &Gguf) -> Result<Option<Self>> {
        let metadata = gguf.metadata();
        let count = metadata.u32("split.count")?.unwrap_or(1);
        if count <= 1 {
            return Ok(None);
        }
        let no = metadata.u32("split.no")?.unwrap_or(0);
        if count > PARTS_MAX || no >= count {
            return Err(Error::GgufMalformed {
                culprit: "metadata key split.count".into(),
                problem: format!(
                    "is {count} and split.no {no}, at most {PARTS_MAX} parts are possible"
                ),
            });
        }
        Ok(Some(Self { no, count }))
    }
}

/// Opens the other parts and appends their tensors to the first part's tensors.
pub(super) fn join(mut model: Gguf, path: &Path, split: Split) -> Result<Gguf> {
    let Split { no, count } = split;
    let wrong = |path: &Path, problem: String| Error::GgufSplit {
        path: path.to_owned(),
        problem,
    };
    if no != 0 {
        let problem = format!("it is part {} of {count}; open the first part", no + 1);
        return Err(wrong(path, problem));
    }
    for no in 1..count {
        let Some(part_path) = part_path(path, no, count) else {
            let problem = format!(
                "it is the first of {count} parts, whose name must end in -00001-of-{count:05}.gguf"
            );
            return Err(wrong(path, problem));
        };
        if !part_path.exists() {
            let problem = format!("it is part {} of {count} and is missing", no + 1);
            return Err(wrong(&part_path, problem));
        }
        let part = Gguf::parse(crate::mmap::ModelBytes::map(&part_path)?)?;
        let found = Split::of(&part)?;
        if found != Some(Split { no, count }) {
            let problem = match found {
                Some(found) => format!(
                    "it says that it is part {} of {}",
                    found.no + 1,
                    found.count
                ),
                None => "it does not say that it is a part".to_owned(),
            };
            return Err(wrong(
                &part_path,
                format!("{problem}, expected {} of {count}", no + 1),
            ));
        }
        model.append(part);
    }
    if let Some(stated) = model.metadata.u64("split.tensors.count")?
        && stated != model.tensors.len() as u64
    {
        let problem = format!(
            "all parts together have {} tensors, split.tensors.count is {stated}",
            model.tensors.len()
        );
        return Err(wrong(path, problem));
    }
    model.by_name = sort_by_name(&model.files, &model.tensors)?;
    Ok(model)
}

impl Gguf {
    /// Appends the tensors of another file. Leaves `by_name` as it is.
    fn append(&mut self, part: Self) {
        let first_file = self.files.len();
        self.files.extend(part.files);
        self.tensors
            .extend(part.tensors.into_iter().map(|mut entry| {
                entry.data.file += first_file;
                entry
            }));
    }
}

/// The path of another part, from the first one's.
fn part_path(first: &Path, no: u32, count: u32) -> Option<PathBuf> {
    let name = first.file_name()?.to_str()?;
    let stem = name.strip_suffix(&format!("-00001-of-{count:05}.gguf"))?;
    Some(first.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", no + 1)))
}
