//! GGUF: a model file, checked completely when opened, then read where it lies.
//!
//! The first step of a model's life: `file → map → TensorView → packed weights`. What `open`
//! accepts is sound: every range lies in the file, no two tensors overlap, every string is UTF-8,
//! every size is the one its type and shape demand. So the rest of the crate indexes without asking
//! again.
//!
//! ```text
//! "GGUF" | version u32 | tensor count u64 | pair count u64
//! pairs:   key string | type u32 | value
//! tensors: name string | rank u32 | dims u64 × rank | type u32 | offset u64 (from the data section)
//! padding to the alignment | data section
//! ```
//! Strings are a u64 length and UTF-8 bytes; everything is little endian.

mod metadata;
mod reader;
mod types;
mod writer;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use metadata::{Array, Metadata, Strings, Value, ValueKind};
pub use types::TensorType;
pub use writer::{CopiedValue, GgufWriter, MetadataValue, TensorInfo};

use crate::error::{Error, Result, shown};
use crate::mmap::{Extent, ModelBytes};
use reader::Reader;
use types::TypeDialect;

const MAGIC: &[u8; 4] = b"GGUF";
/// Tensors and metadata pairs a file can have: some ten times what the largest models have, so that
/// what is kept of each cannot outgrow the file by more than a few megabytes.
const COUNT_MAX: u64 = 65_536;
/// Dimensions a tensor can have.
const RANK_MAX: usize = 4;
/// Bytes of a tensor's name; the writers allow 64.
const NAME_BYTES_MAX: usize = 255;
/// The shortest tensor entry: an empty name's length, rank, one dimension, type, offset.
const ENTRY_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;
const ALIGNMENT_DEFAULT: u32 = 32;
const ALIGNMENT_MAX: u32 = 1 << 20;

/// An open GGUF file. Opening reads the metadata and the tensor list, no tensor data.
pub struct Gguf {
    bytes: Arc<ModelBytes>,
    version: u32,
    alignment: usize,
    metadata: Metadata,
    /// In the order of the file.
    tensors: Vec<Entry>,
    /// Indices into `tensors`, sorted by name.
    by_name: Vec<u32>,
}

/// A tensor's place in the file.
struct Entry {
    name: Range<usize>,
    dtype: TensorType,
    dims: [usize; RANK_MAX],
    rank: usize,
    data: TensorRange,
}

/// Where the bytes of a tensor lie in its file: a tensor remembered beyond a borrow of its
/// [`Gguf`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorRange {
    offset: usize,
    len: usize,
}

/// A tensor in a file. Only an open [`Gguf`] makes one, so its data always has the size that its
/// type and shape demand.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TensorView<'a> {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// How its elements are stored.
    pub dtype: TensorType,
    /// 1 to 4 dimensions, each at least 1, in the order of the file: `dims[0]` is the contiguous
    /// one.
    pub dims: &'a [usize],
    /// Its bytes. No alignment of their address is promised.
    pub data: &'a [u8],
    range: TensorRange,
}

impl TensorView<'_> {
    /// The number of contiguous elements, for a matrix its input columns.
    pub fn cols(&self) -> usize {
        self.dims[0]
    }

    /// The product of the other dimensions, for a matrix its output rows; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// Where its bytes lie.
    pub fn range(&self) -> TensorRange {
        self.range
    }
}

impl Gguf {
    /// Maps and checks a file. Costs some milliseconds for a metadata section of megabytes,
    /// whatever the file's size.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(ModelBytes::map(path)?)
    }

    /// Checks a model that is embedded in the program.
    pub fn from_static(bytes: &'static [u8]) -> Result<Self> {
        Self::parse(ModelBytes::Static(bytes))
    }

    /// Checks a model that was read or made in memory.
    pub fn from_vec(bytes: Vec<u8>) -> Result<Self> {
        Self::parse(ModelBytes::Owned(bytes))
    }

    /// The GGUF version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The file's length in bytes.
    pub fn file_len(&self) -> usize {
        self.bytes.len()
    }

    /// The alignment of the tensor data, in bytes.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// Its keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its tensors in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|entry| self.view(entry))
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let found = self.by_name.binary_search_by_key(&name.as_bytes(), |&i| {
            &self.bytes[self.tensors[i as usize].name.clone()]
        });
        found
            .ok()
            .map(|at| self.view(&self.tensors[self.by_name[at] as usize]))
    }

    /// The tensor of a name that must be there.
    pub fn require_tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.tensor(name)
            .ok_or_else(|| Error::TensorMissing { name: name.into() })
    }

    /// The bytes of a tensor of this file.
    pub fn bytes(&self, range: TensorRange) -> &[u8] {
        &self.bytes[range.offset..range.offset + range.len]
    }

    /// A tensor's bytes, kept beyond a borrow of this file.
    pub fn extent(&self, range: TensorRange) -> Extent {
        Extent::new(&self.bytes, range.offset, range.len)
    }

    /// Tells the system that a tensor will be read once, front to back, soon. Advice: no effect on
    /// what is read.
    pub fn advise_sequential(&self, range: TensorRange) {
        self.bytes.advise_sequential(range.offset, range.len);
    }

    /// Lets the system take back the memory of a tensor that has been repacked. It stays readable,
    /// from the file again.
    pub fn advise_done(&self, range: TensorRange) {
        self.bytes.advise_done(range.offset, range.len);
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> TensorView<'a> {
        TensorView {
            name: std::str::from_utf8(&self.bytes[entry.name.clone()]).unwrap_or_default(), // checked at open
            dtype: entry.dtype,
            dims: &entry.dims[..entry.rank],
            data: self.bytes(entry.data),
            range: entry.data,
        }
    }

    fn parse(bytes: ModelBytes) -> Result<Self> {
        let bytes = Arc::new(bytes);
        let version = read_version(&bytes)?;
        let mut reader = Reader::new(&bytes, MAGIC.len() + 4);
        let num_tensors = read_count(&mut reader, "tensor count")?;
        let num_pairs = read_count(&mut reader, "metadata pair count")?;
        let metadata = Metadata::parse(bytes.clone(), &mut reader, num_pairs)?;
        let alignment = read_alignment(&metadata)?;

        reader.expect_room(
            num_tensors,
            ENTRY_BYTES_MIN,
            &format_args!("its {num_tensors} tensor entries"),
        )?;
        let mut raw = Vec::new();
        for index in 0..num_tensors {
            raw.push(RawEntry::parse(&mut reader, index)?);
        }
        let data_start = reader.offset().next_multiple_of(alignment);
        let dialect = TypeDialect::of(
            &metadata,
            raw.iter().any(|entry| matches!(entry.type_id, 36 | 38)),
        );
        refuse_iq4_nl_4_4(&metadata, &raw, &bytes, data_start, alignment)?;
        let tensors: Vec<Entry> = raw
            .iter()
            .map(|entry| entry.place(&bytes, &dialect, data_start, alignment))
            .collect::<Result<_>>()?;
        drop(raw);
        refuse_overlaps(&bytes, &tensors)?;
        let by_name = sort_by_name(&bytes, &tensors)?;
        Ok(Self {
            bytes,
            version,
            alignment,
            metadata,
            tensors,
            by_name,
        })
    }
}

/// Checks magic, byte order and version.
fn read_version(bytes: &[u8]) -> Result<u32> {
    let magic = &bytes[..bytes.len().min(4)];
    if magic != MAGIC {
        return Err(Error::NotGguf {
            found: format!("\"{}\"", magic.escape_ascii()),
        });
    }
    let version = Reader::new(bytes, MAGIC.len()).u32(&"the version")?;
    match version {
        2 | 3 => Ok(version),
        _ if (1..=0xff).contains(&version.swap_bytes()) => Err(Error::GgufBigEndian {
            version: version.swap_bytes(),
        }),
        _ => Err(Error::GgufVersion { version }),
    }
}

fn read_count(reader: &mut Reader<'_>, culprit: &str) -> Result<u64> {
    let count = reader.u64(&culprit)?;
    if count <= COUNT_MAX {
        return Ok(count);
    }
    let problem = format!("is {count}, at most {COUNT_MAX} are supported");
    Err(Error::GgufMalformed {
        culprit: culprit.into(),
        problem,
    })
}

fn read_alignment(metadata: &Metadata) -> Result<usize> {
    let key = "general.alignment";
    let alignment = metadata.u32(key)?.unwrap_or(ALIGNMENT_DEFAULT);
    if alignment.is_power_of_two() && (8..=ALIGNMENT_MAX).contains(&alignment) {
        return Ok(alignment as usize);
    }
    Err(Error::GgufMalformed {
        culprit: format!("metadata key {key}"),
        problem: format!("is {alignment}, expected a power of two from 8 to {ALIGNMENT_MAX}"),
    })
}

/// A tensor's entry before its type is settled.
struct RawEntry<'a> {
    name: &'a str,
    name_start: usize,
    dims: [usize; RANK_MAX],
    rank: usize,
    type_id: u32,
    offset: u64,
}

impl<'a> RawEntry<'a> {
    fn parse(reader: &mut Reader<'a>, index: u64) -> Result<Self> {
        let name = reader.string(&format_args!("the name of tensor {index}"))?;
        let name_start = reader.offset() - name.len();
        let culprit = format!("tensor {}", shown(name));
        let malformed = |problem| Error::GgufMalformed {
            culprit: culprit.clone(),
            problem,
        };
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(malformed(format!(
                "has a name of {} bytes, expected 1 to {NAME_BYTES_MAX}",
                name.len()
            )));
        }
        let rank = reader.u32(&culprit)? as usize;
        if !(1..=RANK_MAX).contains(&rank) {
            return Err(malformed(format!(
                "has {rank} dimensions, expected 1 to {RANK_MAX}"
            )));
        }
        let mut long = [1u64; RANK_MAX];
        for dim in &mut long[..rank] {
            *dim = reader.u64(&culprit)?;
        }
        // isize: other readers count elements in a signed number too, and sizes below stay
        // computable.
        let num_elements = long
            .iter()
            .try_fold(1isize, |n, &dim| n.checked_mul(isize::try_from(dim).ok()?));
        let dims = long.map(|dim| usize::try_from(dim).unwrap_or(0));
        if dims.contains(&0) || num_elements.is_none() {
            return Err(malformed(format!(
                "has impossible shape {:?}",
                &long[..rank]
            )));
        }
        let type_id = reader.u32(&culprit)?;
        let offset = reader.u64(&culprit)?;
        Ok(Self {
            name,
            name_start,
            dims,
            rank,
            type_id,
            offset,
        })
    }

    /// Settles type and size, and checks that the data lies aligned inside the file.
    fn place(
        &self,
        bytes: &[u8],
        dialect: &TypeDialect,
        data_start: usize,
        alignment: usize,
    ) -> Result<Entry> {
        let malformed = |problem| Error::GgufMalformed {
            culprit: format!("tensor {}", shown(self.name)),
            problem,
        };
        let dtype = dialect
            .read(self.type_id)
            .ok_or_else(|| Error::TensorType {
                tensor: shown(self.name),
                found: types::unknown(self.type_id),
                supported: types::supported(),
            })?;
        let shape = &self.dims[..self.rank];
        let rows = self.dims[1..].iter().product();
        let len = dtype.size_bytes(rows, self.dims[0]).map_err(|why| {
            malformed(format!(
                "of type {dtype} has impossible shape {shape:?}: {why}"
            ))
        })?;
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(malformed(format!(
                "has offset {}, not a multiple of the alignment {alignment}",
                self.offset
            )));
        }
        let start = usize::try_from(self.offset)
            .ok()
            .and_then(|offset| data_start.checked_add(offset));
        match start.and_then(|start| Some((start, start.checked_add(len)?))) {
            Some((start, end)) if end <= bytes.len() => Ok(Entry {
                name: self.name_start..self.name_start + self.name.len(),
                dtype,
                dims: self.dims,
                rank: self.rank,
                data: TensorRange { offset: start, len },
            }),
            _ => Err(malformed(format!(
                "{dtype} {shape:?} needs {len} bytes at offset {} of the data section at byte {data_start}, the file has {} bytes",
                self.offset,
                bytes.len()
            ))),
        }
    }
}

/// Says what is really in a file of llama.cpp's that uses id 36 for its former IQ4_NL_4_4: 18 bytes
/// for 32 weights, where I2_S has 8 bytes and 32 at the end.
fn refuse_iq4_nl_4_4(
    metadata: &Metadata,
    raw: &[RawEntry<'_>],
    bytes: &[u8],
    data_start: usize,
    alignment: usize,
) -> Result<()> {
    const IQ4_NL: i128 = 25;
    let file_type = metadata
        .get("general.file_type")
        .and_then(|v| v.as_integer());
    let Some(suspect) = raw.iter().find(|entry| entry.type_id == 36) else {
        return Ok(());
    };
    let gap = raw
        .iter()
        .map(|entry| entry.offset)
        .filter(|&offset| offset > suspect.offset)
        .min();
    let room = match gap {
        Some(next) => next - suspect.offset,
        None => (bytes.len().saturating_sub(data_start) as u64).saturating_sub(suspect.offset),
    };
    let blocks = suspect.dims.iter().product::<usize>() as u64 / 32;
    let is_iq4_nl = blocks
        .checked_mul(18)
        .map(|len| len.next_multiple_of(alignment as u64))
        == Some(room);
    if file_type == Some(IQ4_NL) || (file_type != Some(40) && is_iq4_nl) {
        return Err(Error::TensorType {
            tensor: shown(suspect.name),
            found: "36, which in this file of llama.cpp's is IQ4_NL_4_4 (removed) and not I2_S"
                .into(),
            supported: types::supported(),
        });
    }
    Ok(())
}

fn refuse_overlaps(bytes: &[u8], tensors: &[Entry]) -> Result<()> {
    let mut by_offset: Vec<&Entry> = tensors.iter().collect();
    by_offset.sort_unstable_by_key(|entry| entry.data.offset);
    for two in by_offset.windows(2) {
        let (first, second) = (two[0], two[1]);
        let end = first.data.offset + first.data.len;
        if second.data.offset < end {
            let name = |entry: &Entry| shown(&String::from_utf8_lossy(&bytes[entry.name.clone()]));
            return Err(Error::GgufMalformed {
                culprit: format!("tensor {}", name(second)),
                problem: format!(
                    "begins at byte {}, inside tensor {}, which ends at byte {end}",
                    second.data.offset,
                    name(first)
                ),
            });
        }
    }
    Ok(())
}

fn sort_by_name(bytes: &[u8], tensors: &[Entry]) -> Result<Vec<u32>> {
    let name = |&i: &u32| &bytes[tensors[i as usize].name.clone()];
    let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
    by_name.sort_unstable_by_key(name);
    match by_name
        .windows(2)
        .find(|two| name(&two[0]) == name(&two[1]))
    {
        None => Ok(by_name),
        Some(two) => Err(Error::GgufMalformed {
            culprit: format!("tensor {}", shown(&String::from_utf8_lossy(name(&two[0])))),
            problem: "is there twice".into(),
        }),
    }
}
