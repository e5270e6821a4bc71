//! The safetensors format: a JSON header, then the tensors' bytes.
//!
//! ```text
//! header length u64 | {"name": {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [begin, end]}, …} | data
//! ```
//! Offsets count from the start of the data; together the tensors cover all of it. The entry
//! `__metadata__` holds texts.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result, shown};

/// Maximum length of a header in bytes; the largest models have some hundred thousand.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Maximum number of dimensions.
const RANK_MAX: usize = 8;

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the format's own names")]
pub enum DType {
    Bool,
    U8,
    I8,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    I64,
    U64,
    F64,
}

/// Type, name, bytes of an element.
const DTYPES: [(DType, &str, usize); 13] = [
    (DType::Bool, "BOOL", 1),
    (DType::U8, "U8", 1),
    (DType::I8, "I8", 1),
    (DType::I16, "I16", 2),
    (DType::U16, "U16", 2),
    (DType::F16, "F16", 2),
    (DType::BF16, "BF16", 2),
    (DType::I32, "I32", 4),
    (DType::U32, "U32", 4),
    (DType::F32, "F32", 4),
    (DType::I64, "I64", 8),
    (DType::U64, "U64", 8),
    (DType::F64, "F64", 8),
];

impl DType {
    /// The name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        DTYPES
            .iter()
            .find(|row| row.0 == self)
            .map_or("", |row| row.1)
    }

    /// Bytes of an element.
    pub fn num_bytes(self) -> usize {
        DTYPES
            .iter()
            .find(|row| row.0 == self)
            .map_or(0, |row| row.2)
    }
}

/// A tensor of a file, checked to lie in it.
pub(super) struct Entry {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// From the start of the file.
    pub offset: usize,
    pub len: usize,
}

/// The tensors of a file, in the order of their bytes. path: for messages.
pub(super) fn parse(file: &[u8], path: &Path) -> Result<Vec<Entry>> {
    let wrong = |culprit: &str, problem| Error::Safetensors {
        path: path.to_owned(),
        culprit: culprit.into(),
        problem,
    };
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(wrong(
            "header",
            format!("needs 8 bytes for its length, the file has {}", file.len()),
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX || length > rest.len() as u64 {
        let problem = format!(
            "has {length} bytes, but {} follow in the file, and the maximum is {HEADER_BYTES_MAX}",
            rest.len()
        );
        return Err(wrong("header", problem));
    }
    let (header, data) = rest.split_at(length as usize);
    let header: Header = serde_json::from_slice(header).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })?;
    let data_start = file.len() - data.len();
    let mut entries = Vec::with_capacity(header.0.len());
    for (name, raw) in header.0 {
        entries.push(
            raw.check(name, data_start, data.len())
                .map_err(|(name, problem)| wrong(&name, problem))?,
        );
    }
    entries.sort_unstable_by_key(|a| (a.offset, a.len));
    let mut end = data_start;
    for entry in &entries {
        if entry.offset != end {
            let (found, expected) = (entry.offset - data_start, end - data_start);
            let problem =
                format!("begins at byte {found} of the data, the one before it ends at {expected}");
            return Err(wrong(&culprit(&entry.name), problem));
        }
        end += entry.len;
    }
    if end != file.len() {
        return Err(wrong(
            "data",
            format!("has {} bytes, its tensors {}", data.len(), end - data_start),
        ));
    }
    Ok(entries)
}

fn culprit(name: &str) -> String {
    format!("tensor {}", shown(name))
}

/// The entries in the order of the header, none twice.
struct Header(Vec<(String, RawEntry)>);

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawEntry {
    /// The entry, or its culprit and problem.
    fn check(
        self,
        name: String,
        data_start: usize,
        data_len: usize,
    ) -> std::result::Result<Entry, (String, String)> {
        let (begin, end) = self.data_offsets;
        let Some(&(dtype, _, element_bytes)) = DTYPES.iter().find(|row| row.1 == self.dtype) else {
            let known = DTYPES.map(|row| row.1).join(", ");
            return Err((
                culprit(&name),
                format!("has type {}; known are {known}", shown(&self.dtype)),
            ));
        };
        if self.shape.len() > RANK_MAX {
            return Err((
                culprit(&name),
                format!(
                    "has {} dimensions, at most {RANK_MAX} are supported",
                    self.shape.len()
                ),
            ));
        }
        let bytes = self
            .shape
            .iter()
            .try_fold(element_bytes as u64, |n, dim| n.checked_mul(*dim));
        let fits = begin <= end && end <= data_len as u64 && bytes == Some(end - begin);
        let shape: Option<Vec<usize>> = self
            .shape
            .iter()
            .map(|dim| usize::try_from(*dim).ok())
            .collect();
        match shape {
            Some(shape) if fits => {
                let (offset, len) = (data_start + begin as usize, (end - begin) as usize);
                Ok(Entry {
                    name,
                    dtype,
                    shape,
                    offset,
                    len,
                })
            }
            _ => {
                let needs = bytes.map_or("more than 2^64".into(), |bytes| bytes.to_string());
                let problem = format!(
                    "{} {:?} needs {needs} bytes, it has bytes {begin} to {end} of {data_len}",
                    self.dtype, self.shape
                );
                Err((culprit(&name), problem))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(
                self,
                mut map: M,
            ) -> std::result::Result<Header, M::Error> {
                let mut entries = Vec::new();
                let mut names = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map.next_value()?;
                    if !names.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!(
                            "{} is there twice",
                            culprit(&name)
                        )));
                    }
                    entries.push((name, entry));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
