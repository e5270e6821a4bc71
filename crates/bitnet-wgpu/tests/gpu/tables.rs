//! Embeddings and heads in every type, and matrices and tables that are cut at rows.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bitnet_files::gguf::{Gguf, GgufWriter, MetadataValue, TensorInfo, TensorType};
use bitnet_kernels::Pool;
use bitnet_models::convert::{ConvertOptions, Input, TableType, to_gguf};
use bitnet_models::{Backend, KvType, LanguageModel, LoadOptions};
use bitnet_wgpu::{DeviceLimits, OpenGpu};

use crate::{adapter, assert_same_bits, cpu, exact_gpu, gpu, load, logits, root};

const TOKENS: [u32; 5] = [1, 77, 300, 511, 9];

fn golden() -> std::path::PathBuf {
    root().join("tests/data/golden/strict-b158/model-i2_s.gguf")
}

/// The logits of a file on the device equal the CPU's.
fn assert_equals_cpu(path: &Path) {
    let Some(gpu) = exact_gpu() else { return };
    let cpu = cpu();
    let found = logits(&load(path, &gpu), &gpu, &TOKENS, KvType::F16, 5);
    let expected = logits(&load(path, &cpu), &cpu, &TOKENS, KvType::F16, 5);
    assert_eq!(gpu.failure(), None);
    assert_same_bits(&path.display().to_string(), &found, &expected);
}

#[test]
fn tables_of_every_type_that_is_written_give_the_cpus_logits() {
    let folder = tempfile::tempdir().expect("a folder");
    let gguf = Arc::new(Gguf::open(&golden()).expect("the golden file opens"));
    for tables in [
        TableType::F16,
        TableType::BF16,
        TableType::F32,
        TableType::Q8_0,
        TableType::Q6_K,
    ] {
        let path = folder.path().join(format!("{tables:?}.gguf"));
        let options = ConvertOptions {
            tables: Some(tables),
            ..ConvertOptions::default()
        };
        let input = Input::Gguf {
            gguf: &gguf,
            options: &LoadOptions::default(),
            quantize: false,
        };
        let mut progress = |_: bitnet_models::convert::Progress<'_>| ControlFlow::Continue(());
        to_gguf(input, &path, &options, &[], &Pool::new(1), &mut progress).expect("it converts");
        assert_equals_cpu(&path);
    }
}

/// The golden model with an embedding, which is its head, too, of this type and these bytes.
fn with_table(path: &Path, dtype: TensorType, bytes: &[u8]) {
    let gguf = Gguf::open(&golden()).expect("the golden file opens");
    let name = "token_embd.weight";
    let pairs = gguf
        .metadata()
        .iter()
        .map(|(key, value)| (key.to_owned(), MetadataValue::from(value)));
    let pairs: Vec<(String, MetadataValue)> = pairs.collect();
    let infos = gguf.tensors().map(|tensor| TensorInfo {
        name: tensor.name.to_owned(),
        dims: tensor.dims.to_vec(),
        dtype: if tensor.name == name {
            dtype
        } else {
            tensor.dtype
        },
    });
    let mut writer = GgufWriter::create(path, &pairs, infos.collect()).expect("a new file");
    for tensor in gguf.tensors() {
        writer.begin_tensor().expect("room");
        let data = if tensor.name == name {
            bytes
        } else {
            tensor.data
        };
        writer.write(data).expect("room");
    }
    writer.finish().expect("room");
}

/// Bytes without a pattern, with a scale of `half` at the beginning of each block.
fn blocks(count: usize, block_bytes: usize, half: u16) -> Vec<u8> {
    let mut state = 12345u32;
    let mut bytes = Vec::new();
    for _ in 0..count {
        bytes.extend(half.to_le_bytes());
        bytes.extend((2..block_bytes).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        }));
    }
    bytes
}

#[test]
fn a_table_of_q4_0_gives_the_cpus_logits() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("q4_0.gguf");
    with_table(&path, TensorType::Q4_0, &blocks(512 * 256 / 32, 18, 0x211f));
    assert_equals_cpu(&path);
}

#[test]
fn a_table_of_a_type_that_the_device_lacks_is_refused_by_name() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("q4_1.gguf");
    with_table(&path, TensorType::Q4_1, &blocks(512 * 256 / 32, 20, 0x211f));
    let gguf = Arc::new(Gguf::open(&path).expect("the file opens"));
    let error = LanguageModel::from_gguf(&gguf, &LoadOptions::default(), &gpu).err();
    let error = error.expect("a type that is not supported").to_string();
    assert!(error.contains("type Q4_1 is not supported"), "{error}");
}

#[test]
fn tables_and_matrices_that_a_binding_cannot_reach_are_cut_at_rows() {
    let Some(adapter) = adapter() else { return };
    let cpu = cpu();
    let limits = DeviceLimits {
        binding_bytes: Some(20_000),
        ..DeviceLimits::default()
    };
    let open = OpenGpu::new(adapter, limits).expect("an able adapter opens");
    let gpu = open.start(1);
    if !adapter.is_software() {
        eprintln!("skipped: {adapter:?} may round otherwise than the CPU");
        return;
    }
    let found = logits(&load(&golden(), &gpu), &gpu, &TOKENS, KvType::F16, 2);
    let expected = logits(&load(&golden(), &cpu), &cpu, &TOKENS, KvType::F16, 2);
    assert_eq!(gpu.failure(), None);
    assert_same_bits("cut at rows", &found, &expected);
}
