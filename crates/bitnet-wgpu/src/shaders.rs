//! [`Shader`]: the programs of the device, and the WGSL files that each is made of.
//!
//! A file has one kernel with its shapes and its trick in its head. Variants (formats of a table,
//! bits of a code) are a few constants or a short file put before the kernel.

use bitnet_models::KvType;

/// A program of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shader {
    RmsNorm,
    NormHeads,
    Quantize,
    QuantizeRuns,
    /// For this number of rows of activations; with subgroups if true.
    TernaryGemv(u32, bool),
    TernaryGemm,
    /// For codes of this many bits.
    GroupGemv(u32),
    GroupGemm(u32),
    Embed(RowFormat),
    Head(RowFormat),
    Rotate,
    /// `f32` if true, `f16` otherwise.
    StoreKv(bool),
    Attention(bool),
    GateUp,
    Columns,
    Scale,
    Gather,
    /// For blocks of at most this many values.
    Hadamard(u32),
    Convolve,
    /// With decays in f64 if true, f32 otherwise.
    DeltaRule(bool),
    CopyState,
    /// Of the pairs of segments if true, of logits otherwise.
    TopK(bool),
    ProbeRead,
    ProbeInt8,
}

/// How the rows of a table are stored on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RowFormat {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q6K,
    /// Codes of this many bits with a scale for each group.
    Group(u32),
}

/// The bits that a shader uses to tell the types of a cache apart.
pub(crate) fn is_f32(kv_type: KvType) -> bool {
    kv_type == KvType::F32
}

impl Shader {
    /// Its name in errors and traces.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Its WGSL.
    pub fn source(self) -> String {
        let (constants, files) = match self {
            Self::RmsNorm => (
                String::new(),
                vec![MATH, include_str!("wgsl/rms_norm.wgsl")],
            ),
            Self::NormHeads => (
                String::new(),
                vec![MATH, include_str!("wgsl/norm_heads.wgsl")],
            ),
            Self::Quantize => (
                String::new(),
                vec![MATH, include_str!("wgsl/quantize.wgsl")],
            ),
            Self::QuantizeRuns => (String::new(), vec![include_str!("wgsl/quantize_runs.wgsl")]),
            Self::TernaryGemv(rows, has_subgroups) => {
                let main = ternary_rows(has_subgroups);
                let files = vec![include_str!("wgsl/ternary_gemv.wgsl"), main];
                (format!("const T: u32 = {rows}u;\n"), files)
            }
            Self::TernaryGemm => (String::new(), vec![include_str!("wgsl/ternary_gemm.wgsl")]),
            Self::GroupGemv(bits) => (codes(bits), vec![include_str!("wgsl/group_gemv.wgsl")]),
            Self::GroupGemm(bits) => (codes(bits), vec![include_str!("wgsl/group_gemm.wgsl")]),
            Self::Embed(format) => format.with(include_str!("wgsl/embed.wgsl")),
            Self::Head(format) => format.with(include_str!("wgsl/head.wgsl")),
            Self::Rotate => (String::new(), vec![include_str!("wgsl/rotate.wgsl")]),
            Self::StoreKv(is_f32) => {
                let files = vec![include_str!("wgsl/store_kv.wgsl"), stored_kv(is_f32)];
                (String::new(), files)
            }
            Self::Attention(is_f32) => {
                let load = match is_f32 {
                    true => include_str!("wgsl/cache_f32.wgsl"),
                    false => include_str!("wgsl/cache_f16.wgsl"),
                };
                let files = vec![MATH, include_str!("wgsl/attention.wgsl"), load];
                (String::new(), files)
            }
            Self::GateUp => (String::new(), vec![MATH, include_str!("wgsl/gate_up.wgsl")]),
            Self::Columns => (String::new(), vec![MATH, include_str!("wgsl/columns.wgsl")]),
            Self::Scale => (String::new(), vec![include_str!("wgsl/scale.wgsl")]),
            Self::Gather => (String::new(), vec![include_str!("wgsl/gather.wgsl")]),
            Self::Hadamard(block_max) => (
                format!("const BLOCK_MAX: u32 = {block_max}u;\n"),
                vec![include_str!("wgsl/hadamard.wgsl")],
            ),
            Self::Convolve => (
                String::new(),
                vec![MATH, include_str!("wgsl/convolve.wgsl")],
            ),
            Self::DeltaRule(has_f64) => {
                let decay = match has_f64 {
                    true => include_str!("wgsl/decay_f64.wgsl"),
                    false => include_str!("wgsl/decay_f32.wgsl"),
                };
                let files = vec![MATH, include_str!("wgsl/delta_rule.wgsl"), decay];
                (String::new(), files)
            }
            Self::CopyState => (String::new(), vec![include_str!("wgsl/copy_state.wgsl")]),
            Self::TopK(of_pairs) => {
                let files = vec![include_str!("wgsl/top_k.wgsl"), top_values(of_pairs)];
                (String::new(), files)
            }
            Self::ProbeRead => (String::new(), vec![include_str!("wgsl/probe_read.wgsl")]),
            Self::ProbeInt8 => (String::new(), vec![include_str!("wgsl/probe_int8.wgsl")]),
        };
        constants + &files.join("\n")
    }
}

/// Functions that several kernels share.
const MATH: &str = include_str!("wgsl/math.wgsl");

/// How the threads of a ternary product share rows.
fn ternary_rows(has_subgroups: bool) -> &'static str {
    match has_subgroups {
        true => include_str!("wgsl/ternary_rows_subgroups.wgsl"),
        false => include_str!("wgsl/ternary_rows_plain.wgsl"),
    }
}

/// How keys and values are stored.
fn stored_kv(is_f32: bool) -> &'static str {
    match is_f32 {
        true => include_str!("wgsl/store_f32.wgsl"),
        false => include_str!("wgsl/store_f16.wgsl"),
    }
}

/// The values among which the first ones are found.
fn top_values(of_pairs: bool) -> &'static str {
    match of_pairs {
        true => include_str!("wgsl/top_k_pairs.wgsl"),
        false => include_str!("wgsl/top_k_logits.wgsl"),
    }
}

/// The constants of codes of 1 or 2 bits.
fn codes(bits: u32) -> String {
    let (mask, factor) = if bits == 1 {
        ("0x01010101u", 2)
    } else {
        ("0x03030303u", 1)
    };
    format!(
        "const BITS: u32 = {bits}u;\nconst MASK: u32 = {mask};\nconst FACTOR: i32 = {factor};\n"
    )
}

impl RowFormat {
    /// A kernel with the function that reads an element of this format.
    fn with(self, kernel: &'static str) -> (String, Vec<&'static str>) {
        let bytes = include_str!("wgsl/bytes.wgsl");
        let (constants, element) = match self {
            Self::F32 => (String::new(), include_str!("wgsl/format_f32.wgsl")),
            Self::F16 => (String::new(), include_str!("wgsl/format_f16.wgsl")),
            Self::Bf16 => (String::new(), include_str!("wgsl/format_bf16.wgsl")),
            Self::Q8_0 => (String::new(), include_str!("wgsl/format_q8_0.wgsl")),
            Self::Q4_0 => (String::new(), include_str!("wgsl/format_q4_0.wgsl")),
            Self::Q6K => (String::new(), include_str!("wgsl/format_q6_k.wgsl")),
            Self::Group(bits) => (codes(bits), include_str!("wgsl/format_group.wgsl")),
        };
        (constants, vec![kernel, bytes, element])
    }
}
