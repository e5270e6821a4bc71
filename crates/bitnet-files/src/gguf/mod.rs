//! GGUF: a model file, checked completely when opened, then read in place.
//!
//! The first step of loading: `file → map → TensorView → packed weights`. A file that opens is
//! valid: every range lies in the file, no two tensors overlap, every string is UTF-8, and every
//! size follows from its type and shape. Later code indexes without further checks.
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
mod split;
mod types;
mod writer;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use metadata::{Array, Metadata, Strings, Value, ValueKind};
pub use types::TensorType;
pub use writer::{CopiedValue, GgufWriter, MetadataValue, TensorInfo};

use crate::checksum::Checksum;
use crate::error::{Error, Result, shown};
use crate::mmap::{Extent, FileStamp, ModelBytes};
use reader::Reader;
use split::Split;
use types::TypeDialect;

const MAGIC: &[u8; 4] = b"GGUF";
/// Maximum number of tensors and of metadata pairs: about ten times that of the largest models. It
/// bounds the memory of the index.
const COUNT_MAX: u64 = 65_536;
/// Maximum number of dimensions.
const RANK_MAX: usize = 4;
/// Maximum length of a tensor's name in bytes; writers allow 64.
const NAME_BYTES_MAX: usize = 255;
/// The shortest tensor entry: an empty name's length, rank, one dimension, type, offset.
const ENTRY_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;
const ALIGNMENT_DEFAULT: u32 = 32;
const ALIGNMENT_MAX: u32 = 1 << 20;

/// An open GGUF file. Opening reads the metadata and the tensor list, no tensor data.
pub struct Gguf {
    /// The file, or the parts of a split model in order. The metadata is that of the first.
    files: Vec<Arc<ModelBytes>>,
    version: u32,
    alignment: usize,
    metadata: Metadata,
    /// In the order of the file.
    tensors: Vec<Entry>,
    /// Indices into `tensors`, sorted by name.
    by_name: Vec<u32>,
}

/// A tensor's type, shape and place in the file.
struct Entry {
    /// A range of the file that also holds `data`.
    name: Range<usize>,
    dtype: TensorType,
    dims: [usize; RANK_MAX],
    rank: usize,
    data: TensorRange,
}

/// Where the bytes of a tensor are in its file. Outlives a borrow of the [`Gguf`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorRange {
    /// The index of the file; 0 unless the model is split.
    file: usize,
    offset: usize,
    len: usize,
}

/// A tensor in a file. Only an open [`Gguf`] makes one, so the size of its data always fits its
/// type and shape.
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
    /// Its bytes, at any alignment.
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
    /// independent of the file's size.
    ///
    /// For a split model, `path` is the first part, `NAME-00001-of-0000N.gguf`; the other parts are
    /// opened from the same folder.
    pub fn open(path: &Path) -> Result<Self> {
        let first = Self::parse(ModelBytes::map(path)?)?;
        match Split::of(&first)? {
            None => Ok(first),
            Some(split) => split::join(first, path, split),
        }
    }

    /// Checks a model that is embedded in the program.
    pub fn from_static(bytes: &'static [u8]) -> Result<Self> {
        Self::parse(ModelBytes::Static(bytes))
    }

    /// Checks a model that was read or made in memory; for a split model, one part.
    pub fn from_vec(bytes: Vec<u8>) -> Result<Self> {
        Self::parse(ModelBytes::Owned(bytes))
    }

    /// The GGUF version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The length of the file in bytes, or of all parts of a split model.
    pub fn file_len(&self) -> usize {
        self.files.iter().map(|file| file.len()).sum()
    }

    /// What identifies the files: for each its stamp and a hash of the bytes before its tensors,
    /// which are not read. `None` if the model is in no file.
    pub fn identity(&self) -> Option<Vec<(FileStamp, u64)>> {
        let of_file = |(index, file): (usize, &Arc<ModelBytes>)| {
            let tensors = self.tensors.iter().map(|entry| entry.data);
            let of_file = tensors.filter(|range| range.file == index);
            let head = of_file.map(|range| range.offset).min();
            let head = &file[..head.unwrap_or(file.len())];
            Some((file.stamp()?.clone(), Checksum::of(head)))
        };
        self.files.iter().enumerate().map(of_file).collect()
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
            self.tensors[i as usize].name(&self.files)
        });
        found
            .ok()
            .map(|at| self.view(&self.tensors[self.by_name[at] as usize]))
    }

    /// The tensor of a name, or an error if there is none.
    pub fn require_tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.tensor(name)
            .ok_or_else(|| Error::TensorMissing { name: name.into() })
    }

    /// The bytes of a tensor of this file.
    pub fn bytes(&self, range: TensorRange) -> &[u8] {
        &self.files[range.file][range.offset..range.offset + range.len]
    }

    /// A tensor's bytes, which remain valid without this `Gguf`.
    pub fn extent(&self, range: TensorRange) -> Extent {
        Extent::new(&self.files[range.file], range.offset, range.len)
    }

    /// Advises the system that a tensor will soon be read once, front to back.
    pub fn advise_sequential(&self, range: TensorRange) {
        self.files[range.file].advise_sequential(range.offset, range.len);
    }

    /// Lets the system release the memory of a tensor. It stays readable: the bytes come from the
    /// file again.
    pub fn advise_done(&self, range: TensorRange) {
        self.files[range.file].advise_done(range.offset, range.len);
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> TensorView<'a> {
        TensorView {
            name: std::str::from_utf8(entry.name(&self.files)).unwrap_or_default(), // checked at open
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
        let layout = DataLayout {
            dialect,
            data_start,
            alignment,
            file_len: bytes.len(),
            offsets: sorted_offsets(&raw),
        };
        let tensors: Vec<Entry> = raw
            .iter()
            .map(|entry| entry.place(&layout))
            .collect::<Result<_>>()?;
        drop(raw);
        refuse_overlaps(&bytes, &tensors)?;
        let files = vec![bytes];
        let by_name = sort_by_name(&files, &tensors)?;
        Ok(Self {
            files,
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

/// A tensor's entry before its type is known.
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
        // The limit is isize, not usize: other readers count elements in a signed number, and sizes
        // below stay computable.
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

    /// Finds type and size, and checks that the data lies aligned inside the file.
    fn place(&self, layout: &DataLayout) -> Result<Entry> {
        let malformed = |problem| Error::GgufMalformed {
            culprit: format!("tensor {}", shown(self.name)),
            problem,
        };
        let (data_start, alignment) = (layout.data_start, layout.alignment);
        let dtype = self.settle_type(layout)?;
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
            Some((start, end)) if end <= layout.file_len => Ok(Entry {
                name: self.name_start..self.name_start + self.name.len(),
                dtype,
                dims: self.dims,
                rank: self.rank,
                data: TensorRange {
                    file: 0,
                    offset: start,
                    len,
                },
            }),
            _ => Err(malformed(format!(
                "{dtype} {shape:?} needs {len} bytes at offset {} of the data section at byte {data_start}, the file has {} bytes",
                self.offset, layout.file_len
            ))),
        }
    }

    /// The type that the id means in this file. If the id has several meanings, or other programs
    /// use it for another type, this is the type whose size fits the room up to the next tensor.
    fn settle_type(&self, layout: &DataLayout) -> Result<TensorType> {
        let candidates = layout.dialect.candidates(self.type_id);
        let [.., last] = candidates[..] else {
            return Err(Error::TensorType {
                tensor: shown(self.name),
                found: types::unknown(self.type_id),
                supported: types::supported(),
            });
        };
        if !types::is_contested(self.type_id) {
            return Ok(last);
        }
        let (rows, cols) = (self.dims[1..].iter().product(), self.dims[0]);
        let room = layout.room_at(self.offset);
        let fits = |dtype: &TensorType| {
            let size = dtype.size_bytes(rows, cols);
            size.is_ok_and(|size| {
                let left = room.checked_sub(size as u64);
                left.is_some_and(|left| left < layout.alignment.max(32) as u64)
            })
        };
        candidates.iter().copied().find(fits).ok_or_else(|| {
            let size = |dtype: &TensorType| match dtype.size_bytes(rows, cols) {
                Ok(size) => format!("{dtype} {size}"),
                Err(why) => format!("{dtype} none ({why})"),
            };
            Error::TensorSizes {
                tensor: shown(self.name),
                id: self.type_id,
                shape: self.dims[..self.rank].to_vec(),
                room,
                sizes: candidates.iter().map(size).collect::<Vec<_>>().join(", "),
            }
        })
    }
}

/// The facts that decide the types and places of tensors.
struct DataLayout {
    dialect: TypeDialect,
    data_start: usize,
    alignment: usize,
    file_len: usize,
    /// Of all tensors, ascending.
    offsets: Vec<u64>,
}

impl DataLayout {
    /// Bytes from an offset to the next tensor, or to the end of the file.
    fn room_at(&self, offset: u64) -> u64 {
        let after = self.offsets.partition_point(|other| *other <= offset);
        let end = match self.offsets.get(after) {
            Some(next) => *next,
            None => self.file_len.saturating_sub(self.data_start) as u64,
        };
        end.saturating_sub(offset)
    }
}

fn sorted_offsets(raw: &[RawEntry<'_>]) -> Vec<u64> {
    let mut offsets: Vec<u64> = raw.iter().map(|entry| entry.offset).collect();
    offsets.sort_unstable();
    offsets
}

/// Refuses files of llama.cpp that use id 36 for its former type IQ4_NL_4_4: it has 18 bytes for 32
/// weights, where I2_S has 8 bytes and 32 more at the end.
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

impl Entry {
    fn name<'a>(&self, files: &'a [Arc<ModelBytes>]) -> &'a [u8] {
        &files[self.data.file][self.name.clone()]
    }
}

fn sort_by_name(files: &[Arc<ModelBytes>], tensors: &[Entry]) -> Result<Vec<u32>> {
    let name = |&i: &u32| tensors[i as usize].name(files);
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
