//! The keys and values of a GGUF file: checked once at open, then read in place, without copies.
//!
//! A tokenizer's 128 thousand tokens and 280 thousand merges stay in the mapped file; asking for
//! them gives an iterator.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::reader::Reader;
use crate::error::{Error, Result, shown};
use crate::mmap::ModelBytes;

/// The longest key the format allows, in bytes.
const KEY_BYTES_MAX: u64 = 65_535;
/// The shortest pair: an empty key's length, the type, a one-byte value.
const PAIR_BYTES_MIN: u64 = 8 + 4 + 1;

/// The type of a metadata value, with the ids of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// 0
    U8,
    /// 1
    I8,
    /// 2
    U16,
    /// 3
    I16,
    /// 4
    U32,
    /// 5
    I32,
    /// 6
    F32,
    /// 7: one byte, 0 or 1
    Bool,
    /// 8
    Str,
    /// 9
    Array,
    /// 10
    U64,
    /// 11
    I64,
    /// 12
    F64,
}

impl ValueKind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Str,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(id as usize).copied()
    }

    /// The name the format uses: `u32`, `string`, `array`…
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Str => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of one value, or for strings and arrays of the length that precedes them.
    fn size_min(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::Str => 8,
            Self::Array => 12,
        }
    }

    /// The scalar at the start of `bytes`; `None` for strings, arrays and too few bytes.
    fn scalar(self, bytes: &[u8]) -> Option<Value<'static>> {
        Some(match self {
            Self::U8 => Value::U8(*bytes.first()?),
            Self::I8 => Value::I8(i8::from_le_bytes(*bytes.first_chunk()?)),
            Self::U16 => Value::U16(u16::from_le_bytes(*bytes.first_chunk()?)),
            Self::I16 => Value::I16(i16::from_le_bytes(*bytes.first_chunk()?)),
            Self::U32 => Value::U32(u32::from_le_bytes(*bytes.first_chunk()?)),
            Self::I32 => Value::I32(i32::from_le_bytes(*bytes.first_chunk()?)),
            Self::F32 => Value::F32(f32::from_le_bytes(*bytes.first_chunk()?)),
            Self::Bool => Value::Bool(*bytes.first()? != 0),
            Self::U64 => Value::U64(u64::from_le_bytes(*bytes.first_chunk()?)),
            Self::I64 => Value::I64(i64::from_le_bytes(*bytes.first_chunk()?)),
            Self::F64 => Value::F64(f64::from_le_bytes(*bytes.first_chunk()?)),
            Self::Str | Self::Array => return None,
        })
    }
}

/// A metadata value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the variants are the types they hold")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// Its type.
    pub fn kind(&self) -> ValueKind {
        match self {
            Self::U8(_) => ValueKind::U8,
            Self::I8(_) => ValueKind::I8,
            Self::U16(_) => ValueKind::U16,
            Self::I16(_) => ValueKind::I16,
            Self::U32(_) => ValueKind::U32,
            Self::I32(_) => ValueKind::I32,
            Self::F32(_) => ValueKind::F32,
            Self::Bool(_) => ValueKind::Bool,
            Self::Str(_) => ValueKind::Str,
            Self::Array(_) => ValueKind::Array,
            Self::U64(_) => ValueKind::U64,
            Self::I64(_) => ValueKind::I64,
            Self::F64(_) => ValueKind::F64,
        }
    }

    /// The value of any integer type.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The value of a float type, an f64 rounded to f32.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Self::F32(v) => Some(v),
            Self::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// The string.
    pub fn as_str(&self) -> Option<&'a str> {
        if let Self::Str(v) = *self {
            Some(v)
        } else {
            None
        }
    }

    /// The truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(v) = *self {
            Some(v)
        } else {
            None
        }
    }

    /// The array.
    pub fn as_array(&self) -> Option<Array<'a>> {
        if let Self::Array(v) = *self {
            Some(v)
        } else {
            None
        }
    }

    /// Appends the id of its type and the value, as a file has them.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend((self.kind() as u32).to_le_bytes());
        match *self {
            Self::U8(v) => out.push(v),
            Self::I8(v) => out.extend(v.to_le_bytes()),
            Self::U16(v) => out.extend(v.to_le_bytes()),
            Self::I16(v) => out.extend(v.to_le_bytes()),
            Self::U32(v) => out.extend(v.to_le_bytes()),
            Self::I32(v) => out.extend(v.to_le_bytes()),
            Self::F32(v) => out.extend(v.to_le_bytes()),
            Self::Bool(v) => out.push(u8::from(v)),
            Self::Str(v) => {
                out.extend((v.len() as u64).to_le_bytes());
                out.extend(v.as_bytes());
            }
            Self::Array(v) => {
                out.extend((v.kind as u32).to_le_bytes());
                out.extend((v.len as u64).to_le_bytes());
                out.extend(v.bytes);
            }
            Self::U64(v) => out.extend(v.to_le_bytes()),
            Self::I64(v) => out.extend(v.to_le_bytes()),
            Self::F64(v) => out.extend(v.to_le_bytes()),
        }
    }
}

/// As `inspect` and error messages show it: strings quoted, escaped and cut, arrays by type and
/// length.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32(v) => write!(f, "{v}"),
            Self::F64(v) => write!(f, "{v}"),
            Self::Bool(v) => write!(f, "{v}"),
            Self::Str(v) => write!(f, "\"{}\"", shown(v)),
            Self::Array(v) => write!(f, "[{}; {}]", v.kind.name(), v.len),
            integer => write!(f, "{}", integer.as_integer().unwrap_or_default()),
        }
    }
}

/// An array of scalars or strings, lying in the file.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    kind: ValueKind,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The type of the elements; never an array.
    pub fn kind(&self) -> ValueKind {
        self.kind
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its strings in order; `None` if the elements are something else.
    pub fn strings(&self) -> Option<Strings<'a>> {
        (self.kind == ValueKind::Str).then_some(Strings {
            bytes: self.bytes,
            left: self.len,
        })
    }

    /// Its values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value<'a>> + Clone + use<'a> {
        let (kind, bytes) = (self.kind, self.bytes);
        let mut strings = Strings {
            bytes,
            left: self.len,
        };
        (0..self.len).map(move |i| match kind {
            ValueKind::Str => Value::Str(strings.next().unwrap_or_default()),
            // The bytes were counted at open, so the default is never taken.
            _ => kind
                .scalar(&bytes[i * kind.size_min()..])
                .unwrap_or(Value::U8(0)),
        })
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array<{}>({})", self.kind.name(), self.len)
    }
}

/// The strings of an array, in order. Cheap to clone and start again.
#[derive(Clone)]
pub struct Strings<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.left = self.left.checked_sub(1)?;
        // Lengths and UTF-8 were checked at open.
        let (len, rest) = self.bytes.split_first_chunk()?;
        let (text, rest) =
            rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        self.bytes = rest;
        Some(std::str::from_utf8(text).unwrap_or_default())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// Where a pair is in the file.
struct Pair {
    key: Range<usize>,
    kind: ValueKind,
    /// The scalar, the string's text, or the array's elements.
    value: Range<usize>,
    /// For an array, the type and number of its elements.
    elements: (ValueKind, usize),
}

/// The metadata of a GGUF file.
///
/// Every typed getter has two forms: `u32(key)` gives `None` for an absent key, `require_u32(key)`
/// an error. In both, a key with another type is an error.
pub struct Metadata {
    bytes: Arc<ModelBytes>,
    /// In the order of the file.
    pairs: Vec<Pair>,
    /// Indices into `pairs`, sorted by key.
    by_key: Vec<u32>,
}

impl Metadata {
    /// Reads and checks `count` pairs.
    pub(super) fn parse(
        bytes: Arc<ModelBytes>,
        reader: &mut Reader<'_>,
        count: u64,
    ) -> Result<Self> {
        reader.expect_room(
            count,
            PAIR_BYTES_MIN,
            &format_args!("its {count} metadata pairs"),
        )?;
        let mut pairs = Vec::new();
        for index in 0..count {
            pairs.push(Pair::parse(reader, index)?);
        }
        let key = |&i: &u32| &bytes[pairs[i as usize].key.clone()];
        let mut by_key: Vec<u32> = (0..pairs.len() as u32).collect();
        by_key.sort_unstable_by_key(key);
        if let Some(two) = by_key.windows(2).find(|two| key(&two[0]) == key(&two[1])) {
            return Err(Error::GgufMalformed {
                culprit: format!(
                    "metadata key {}",
                    shown(&String::from_utf8_lossy(key(&two[0])))
                ),
                problem: "is there twice".into(),
            });
        }
        Ok(Self {
            bytes,
            pairs,
            by_key,
        })
    }

    /// The number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, Value<'_>)> {
        self.pairs
            .iter()
            .map(|pair| (self.text(&pair.key), self.value(pair)))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let found = self.by_key.binary_search_by_key(&key.as_bytes(), |&i| {
            &self.bytes[self.pairs[i as usize].key.clone()]
        });
        found
            .ok()
            .map(|at| self.value(&self.pairs[self.by_key[at] as usize]))
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |v| v.as_str())
    }

    /// A required string.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        required(key, self.str(key)?)
    }

    /// A number of any integer type, 0 to 2³²−1.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer from 0 to 4294967295", |v| {
            v.as_integer()?.try_into().ok()
        })
    }

    /// A required number of any integer type, 0 to 2³²−1.
    pub fn require_u32(&self, key: &str) -> Result<u32> {
        required(key, self.u32(key)?)
    }

    /// A number of any integer type, 0 to 2⁶⁴−1.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer not below 0", |v| {
            v.as_integer()?.try_into().ok()
        })
    }

    /// A number of either float type.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a float", |v| v.as_f32())
    }

    /// A required number of either float type.
    pub fn require_f32(&self, key: &str) -> Result<f32> {
        required(key, self.f32(key)?)
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| v.as_bool())
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<Strings<'_>>> {
        self.typed(key, "an array of strings", |v| v.as_array()?.strings())
    }

    /// A required array of strings.
    pub fn require_strings(&self, key: &str) -> Result<Strings<'_>> {
        required(key, self.strings(key)?)
    }

    /// An array of floats.
    pub fn f32s(&self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = f32> + Clone>> {
        let array = self.typed(key, "an array of floats", |v| {
            v.as_array()
                .filter(|a| matches!(a.kind, ValueKind::F32 | ValueKind::F64))
        })?;
        Ok(array.map(|a| a.iter().map(|v| v.as_f32().unwrap_or_default())))
    }

    /// An array of any integer type, each element within an i32.
    pub fn i32s(&self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = i32> + Clone>> {
        let small = |v: Value<'_>| i32::try_from(v.as_integer()?).ok();
        let array = self.typed(key, "an array of 32-bit integers", |v| {
            v.as_array()
                .filter(|a| a.iter().all(|v| small(v).is_some()))
        })?;
        Ok(array.map(|a| a.iter().map(move |v| small(v).unwrap_or_default())))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &'static str,
        read: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| Error::MetadataType {
            key: key.into(),
            wanted,
            found: match value {
                Value::Array(a) => format!("an array of {} {}", a.len, a.kind.name()),
                scalar => format!("{} {scalar}", scalar.kind().name()),
            },
        })
    }

    fn value(&self, pair: &Pair) -> Value<'_> {
        let (kind, len) = pair.elements;
        match pair.kind {
            ValueKind::Str => Value::Str(self.text(&pair.value)),
            ValueKind::Array => Value::Array(Array {
                kind,
                len,
                bytes: &self.bytes[pair.value.clone()],
            }),
            // The bytes were counted at open, so the default is never taken.
            scalar => scalar
                .scalar(&self.bytes[pair.value.clone()])
                .unwrap_or(Value::U8(0)),
        }
    }

    /// Text that was checked at open.
    fn text(&self, range: &Range<usize>) -> &str {
        std::str::from_utf8(&self.bytes[range.clone()]).unwrap_or_default()
    }
}

fn required<T>(key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::MetadataMissing { key: key.into() })
}

impl Pair {
    fn parse(reader: &mut Reader<'_>, index: u64) -> Result<Self> {
        let key = reader.string(&format_args!("the key of metadata pair {index}"))?;
        let key_end = reader.offset();
        let culprit = format_args!("metadata key {}", Shown(key));
        let malformed = |problem: String| Error::GgufMalformed {
            culprit: culprit.to_string(),
            problem,
        };
        if key.len() as u64 > KEY_BYTES_MAX {
            return Err(malformed(format!(
                "has {} bytes, the format allows {KEY_BYTES_MAX}",
                key.len()
            )));
        }
        let kind_of = |id| {
            ValueKind::from_id(id).ok_or_else(|| malformed(format!("has unknown value type {id}")))
        };
        let kind = kind_of(reader.u32(&culprit)?)?;
        let mut elements = (kind, 0);
        let value = match kind {
            ValueKind::Str => {
                let text = reader.string(&culprit)?;
                reader.offset() - text.len()..reader.offset()
            }
            ValueKind::Array => {
                let element = kind_of(reader.u32(&culprit)?)?;
                if element == ValueKind::Array {
                    return Err(malformed(
                        "is an array of arrays, which is not supported".into(),
                    ));
                }
                let len = reader.u64(&culprit)?;
                reader.expect_room(len, element.size_min() as u64, &culprit)?;
                elements = (element, len as usize);
                let start = reader.offset();
                if element == ValueKind::Str {
                    for i in 0..len {
                        reader.string(&format_args!("element {i} of {culprit}"))?;
                    }
                } else {
                    reader.take(len * element.size_min() as u64, &culprit)?;
                }
                start..reader.offset()
            }
            scalar => {
                let start = reader.offset();
                let bytes = reader.take(scalar.size_min() as u64, &culprit)?;
                if scalar == ValueKind::Bool && bytes[0] > 1 {
                    return Err(malformed(format!("is a bool with value {}", bytes[0])));
                }
                start..reader.offset()
            }
        };
        Ok(Self {
            key: key_end - key.len()..key_end,
            kind,
            value,
            elements,
        })
    }
}

/// [`shown`], computed only when an error is printed.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(self.0))
    }
}
