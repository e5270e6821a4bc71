//! The tensor types of GGUF: ids, names, and how many bytes a tensor of each has.
//!
//! Some ids mean different things to different writers; [`TypeDialect`] decides that once for each
//! file; for ids with several sizes, the size of each tensor decides.

use std::fmt;

use bitnet_quantization::dense::Dense;
use bitnet_quantization::tq::Kind;
use bitnet_quantization::{GroupFormat, TernaryFormat, i2_s, iq_bn, tl1, tl2};

use super::metadata::Metadata;

/// How the elements of a tensor are stored.
///
/// These are the types with a known size; the loader decides which ones it computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, non_camel_case_types, reason = "the field's own names")]
pub enum TensorType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    TQ1_0,
    TQ2_0,
    /// Signs, a scale for 128 columns.
    Q1_0,
    /// Two bits, a scale for 64 columns.
    Q2_0,
    /// Two bits, a scale for 128 columns, under the id of [`TensorType::Q2_0`]: older files of
    /// Prism.
    Q2_0_G128,
    /// The same with its own id.
    PQ2_0,
    /// Trits, a scale for 128 columns.
    PTQ1_0,
    /// Ternary, two bits per weight, one scale per tensor.
    I2_S,
    /// int8, one scale per tensor.
    I8_S,
    /// Ternary, tiles of pairs for table lookup.
    TL1,
    /// Ternary, tiles of triples for table lookup.
    TL2,
    /// Ternary digits, one scale per row.
    IQ1_BN,
    /// Ternary, two bits per weight, one scale per row.
    IQ2_BN,
}

use TensorType::*;

/// Type, id, name, and for block types the elements and bytes of a block of one row.
const TABLE: [(TensorType, u32, &str, usize, usize); 42] = [
    (F32, 0, "F32", 1, 4),
    (F16, 1, "F16", 1, 2),
    (Q4_0, 2, "Q4_0", 32, 18),
    (Q4_1, 3, "Q4_1", 32, 20),
    (Q5_0, 6, "Q5_0", 32, 22),
    (Q5_1, 7, "Q5_1", 32, 24),
    (Q8_0, 8, "Q8_0", 32, 34),
    (Q2_K, 10, "Q2_K", 256, 84),
    (Q3_K, 11, "Q3_K", 256, 110),
    (Q4_K, 12, "Q4_K", 256, 144),
    (Q5_K, 13, "Q5_K", 256, 176),
    (Q6_K, 14, "Q6_K", 256, 210),
    (Q8_K, 15, "Q8_K", 256, 292),
    (IQ2_XXS, 16, "IQ2_XXS", 256, 66),
    (IQ2_XS, 17, "IQ2_XS", 256, 74),
    (IQ3_XXS, 18, "IQ3_XXS", 256, 98),
    (IQ1_S, 19, "IQ1_S", 256, 50),
    (IQ4_NL, 20, "IQ4_NL", 32, 18),
    (IQ3_S, 21, "IQ3_S", 256, 110),
    (IQ2_S, 22, "IQ2_S", 256, 82),
    (IQ4_XS, 23, "IQ4_XS", 256, 136),
    (I8, 24, "I8", 1, 1),
    (I16, 25, "I16", 1, 2),
    (I32, 26, "I32", 1, 4),
    (I64, 27, "I64", 1, 8),
    (F64, 28, "F64", 1, 8),
    (IQ1_M, 29, "IQ1_M", 256, 56),
    (BF16, 30, "BF16", 1, 2),
    (TQ1_0, 34, "TQ1_0", 256, 54),
    (TQ2_0, 35, "TQ2_0", 256, 66),
    (I2_S, 36, "I2_S", 0, 0),
    (I8_S, 37, "I8_S", 0, 0),
    (TL1, 38, "TL1", 0, 0),
    (TL2, 39, "TL2", 0, 0),
    (MXFP4, 39, "MXFP4", 32, 17),
    (Q1_0, 41, "Q1_0", 128, 18),
    (Q2_0, 42, "Q2_0", 64, 18),
    (Q2_0_G128, 42, "Q2_0 in groups of 128", 128, 34),
    (IQ1_BN, 134, "IQ1_BN", 0, 0),
    (IQ2_BN, 135, "IQ2_BN", 0, 0),
    (PQ2_0, 142, "PQ2_0", 128, 34),
    (PTQ1_0, 143, "PTQ1_0", 128, 28),
];

/// Ids that other engines write, without a known size.
const OTHERS: [(u32, &str); 9] = [
    (4, "Q4_2, long removed"),
    (5, "Q4_3, long removed"),
    (9, "Q8_1"),
    (31, "Q4_0_4_4, removed"),
    (32, "Q4_0_4_8, removed"),
    (33, "Q4_0_8_8, removed"),
    (40, "NVFP4"),
    (136, "Q8_K64 of ik_llama.cpp"),
    (335, "IQ2_BN_R4 of ik_llama.cpp"),
];

impl TensorType {
    /// The usual name, such as `Q6_K`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// The id in a file: the one in Microsoft's files.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// Whether its weights are −1, 0 and 1 times a scale.
    pub fn is_ternary(self) -> bool {
        matches!(self, I2_S | TL1 | TL2 | TQ1_0 | TQ2_0 | IQ1_BN | IQ2_BN)
    }

    /// `general.file_type` of files whose projections have this type. It distinguishes TL2 from
    /// another type with the same id. 0, which means F32, for types that projections never have.
    pub fn file_type(self) -> u32 {
        match self {
            F16 => 1,
            Q4_0 => 2,
            Q8_0 => 7,
            Q6_K => 18,
            BF16 => 32,
            TQ1_0 => 36,
            TQ2_0 => 37,
            Q1_0 => 40,
            Q2_0 => 41,
            PQ2_0 => 141,
            PTQ1_0 => 143,
            TL1 => 38,
            TL2 => 39,
            I2_S => 40,
            _ => 0,
        }
    }

    /// Bytes of a `[rows, cols]` tensor, or why no such tensor can exist.
    pub fn size_bytes(self, rows: usize, cols: usize) -> Result<usize, String> {
        let formats = |size: bitnet_quantization::Result<usize>| size.map_err(|e| e.to_string());
        match self {
            I2_S => formats(i2_s::size_bytes(rows, cols)),
            TL1 => formats(tl1::size_bytes(rows, cols)),
            TL2 => formats(tl2::size_bytes(rows, cols)),
            IQ1_BN => formats(iq_bn::Kind::IQ1_BN.size_bytes(rows, cols)),
            IQ2_BN => formats(iq_bn::Kind::IQ2_BN.size_bytes(rows, cols)),
            // int8 values, then an f32 scale, padded to 32 bytes.
            I8_S => rows
                .checked_mul(cols)
                .and_then(|n| n.checked_add(4)?.checked_next_multiple_of(32))
                .ok_or_else(too_large),
            _ => {
                let (.., block_len, block_bytes) = *self.row();
                if !cols.is_multiple_of(block_len) {
                    return Err(format!(
                        "{} needs a multiple of {block_len} columns, not {cols}",
                        self.name()
                    ));
                }
                rows.checked_mul(cols / block_len)
                    .and_then(|n| n.checked_mul(block_bytes))
                    .ok_or_else(too_large)
            }
        }
    }

    fn row(self) -> &'static (TensorType, u32, &'static str, usize, usize) {
        // Every variant is in the table; a test walks them all.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }
}

impl From<TernaryFormat> for TensorType {
    fn from(format: TernaryFormat) -> Self {
        match format {
            TernaryFormat::I2_S(_) => I2_S,
            TernaryFormat::TL1(_) => TL1,
            TernaryFormat::TL2(_) => TL2,
            TernaryFormat::TQ(Kind::TQ1_0) => TQ1_0,
            TernaryFormat::TQ(Kind::TQ2_0) => TQ2_0,
            TernaryFormat::Q4_0 => Q4_0,
            TernaryFormat::IQ_BN(iq_bn::Kind::IQ1_BN) => IQ1_BN,
            TernaryFormat::IQ_BN(iq_bn::Kind::IQ2_BN) => IQ2_BN,
            TernaryFormat::Group(format) => format.into(),
            // GGUF has no type for it: bytes without a scale.
            TernaryFormat::HfPacked => I8,
        }
    }
}

impl From<Dense> for TensorType {
    fn from(format: Dense) -> Self {
        match format {
            Dense::F32 => F32,
            Dense::F16 => F16,
            Dense::BF16 => BF16,
            Dense::Q8_0 => Q8_0,
            Dense::Q6_K => Q6_K,
            Dense::Q4_0 => Q4_0,
            Dense::Q4_1 => Q4_1,
            Dense::Q5_0 => Q5_0,
            Dense::Q5_1 => Q5_1,
            Dense::Q2_K => Q2_K,
            Dense::Q3_K => Q3_K,
            Dense::Q4_K => Q4_K,
            Dense::Q5_K => Q5_K,
            Dense::IQ4_NL => IQ4_NL,
            Dense::IQ4_XS => IQ4_XS,
            Dense::MXFP4 => MXFP4,
            Dense::Group(format) => format.into(),
        }
    }
}

impl From<GroupFormat> for TensorType {
    fn from(format: GroupFormat) -> Self {
        match format {
            GroupFormat::Q1_0 => Q1_0,
            GroupFormat::Q2_0 => Q2_0,
            GroupFormat::PQ2_0 => PQ2_0,
            GroupFormat::PTQ1_0 => PTQ1_0,
            GroupFormat::TQ(Kind::TQ1_0) => TQ1_0,
            GroupFormat::TQ(Kind::TQ2_0) => TQ2_0,
        }
    }
}

impl TensorType {
    /// The format of values that can be read as floats; `None` if the tensor has one scale for all
    /// values, or this program cannot read them.
    #[must_use]
    pub fn dense(self) -> Option<Dense> {
        Some(match self {
            F32 => Dense::F32,
            F16 => Dense::F16,
            BF16 => Dense::BF16,
            Q8_0 => Dense::Q8_0,
            Q6_K => Dense::Q6_K,
            Q4_0 => Dense::Q4_0,
            Q4_1 => Dense::Q4_1,
            Q5_0 => Dense::Q5_0,
            Q5_1 => Dense::Q5_1,
            Q2_K => Dense::Q2_K,
            Q3_K => Dense::Q3_K,
            Q4_K => Dense::Q4_K,
            Q5_K => Dense::Q5_K,
            IQ4_NL => Dense::IQ4_NL,
            IQ4_XS => Dense::IQ4_XS,
            MXFP4 => Dense::MXFP4,
            other => Dense::Group(other.group()?),
        })
    }

    /// The format of weights with a scale for each group of columns.
    #[must_use]
    pub fn group(self) -> Option<GroupFormat> {
        Some(match self {
            Q1_0 => GroupFormat::Q1_0,
            Q2_0 => GroupFormat::Q2_0,
            Q2_0_G128 | PQ2_0 => GroupFormat::PQ2_0,
            PTQ1_0 => GroupFormat::PTQ1_0,
            TQ1_0 => GroupFormat::TQ(Kind::TQ1_0),
            TQ2_0 => GroupFormat::TQ(Kind::TQ2_0),
            _ => return None,
        })
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn too_large() -> String {
    "its size in bytes does not fit in memory".into()
}

/// What the ambiguous ids mean in one file.
///
/// 39 was TL2 for Microsoft until July 2026 and is MXFP4 in other files; since then TL2 is 42,
/// which llama.cpp uses for Q2_0, and Prism's older files for Q2_0 in groups of 128. 36 is I2_S in
/// Microsoft's files and was IQ4_NL_4_4 for a while in llama.cpp.
pub(super) struct TypeDialect {
    pub(super) tl2_is_39: bool,
}

impl TypeDialect {
    /// Decides it by file type and architecture, and by whether other tensors are Microsoft's.
    pub(super) fn of(metadata: &Metadata, any_36_or_38: bool) -> Self {
        let file_type = metadata
            .get("general.file_type")
            .and_then(|v| v.as_integer());
        let arch = metadata
            .get("general.architecture")
            .and_then(|v| v.as_str())
            .unwrap_or_default();
        Self {
            tl2_is_39: file_type == Some(39)
                || arch.starts_with("bitnet")
                || (arch == "llama" && any_36_or_38),
        }
    }

    /// The types that an id may mean, the most likely first; empty if the id is unknown.
    pub(super) fn candidates(&self, id: u32) -> Vec<TensorType> {
        match id {
            39 if self.tl2_is_39 => vec![TL2],
            39 => vec![MXFP4],
            42 => vec![Q2_0, Q2_0_G128, TL2],
            _ => TABLE
                .iter()
                .filter(|row| row.1 == id)
                .map(|row| row.0)
                .collect(),
        }
    }
}

/// Whether other programs use this id for a type of another size, so that the tensor's size must be
/// checked.
pub(super) fn is_contested(id: u32) -> bool {
    matches!(id, 41 | 42 | 142 | 143)
}

/// `40 (NVFP4)`, or the bare id.
pub(super) fn unknown(id: u32) -> String {
    match OTHERS.iter().find(|other| other.0 == id) {
        Some((_, name)) => format!("{id} ({name})"),
        None => id.to_string(),
    }
}

/// The supported types, for the error about an unknown type.
pub(super) fn supported() -> String {
    let names: Vec<String> = TABLE
        .iter()
        .map(|(_, id, name, ..)| format!("{name} ({id})"))
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_finds_its_own_row() {
        for (dtype, id, name, ..) in TABLE {
            assert_eq!((dtype.id(), dtype.name()), (id, name));
        }
    }

    #[test]
    fn sizes_follow_the_formats() {
        assert_eq!(F16.size_bytes(128_256, 2560), Ok(656_670_720));
        assert_eq!(Q6_K.size_bytes(128_256, 2560), Ok(269_337_600));
        assert_eq!(I2_S.size_bytes(6912, 2560), Ok(6912 * 2560 / 4 + 32));
        assert_eq!(TL2.size_bytes(3200, 8640), Ok(5_794_176));
        assert_eq!(I8_S.size_bytes(3, 5), Ok(32));
        assert!(
            Q8_0.size_bytes(1, 33)
                .unwrap_err()
                .contains("multiple of 32 columns")
        );
        assert!(
            TL2.size_bytes(64, 128)
                .unwrap_err()
                .contains("at least 256 columns")
        );
        assert!(F32.size_bytes(usize::MAX / 2, 4).is_err());
    }
}
