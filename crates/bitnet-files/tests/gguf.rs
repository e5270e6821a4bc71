//! GGUF files, valid and malformed: a valid file reads as it was written, and a malformed file
//! fails with an error that says where.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bitnet_files::Error;
use bitnet_files::gguf::{Gguf, TensorType, Value};

/// A GGUF file being written: pairs and tensors as raw bytes, so that any part can be wrong.
struct Writer {
    version: u32,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

impl Writer {
    fn new() -> Self {
        Self {
            version: 3,
            pairs: vec![],
            tensors: vec![],
            data: vec![],
        }
    }

    fn pair(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.pairs
            .push([&string(key.as_bytes())[..], &kind.to_le_bytes(), value].concat());
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
        let mut entry = string(name.as_bytes());
        entry.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| entry.extend(dim.to_le_bytes()));
        entry.extend(type_id.to_le_bytes());
        entry.extend(offset.to_le_bytes());
        self.tensors.push(entry);
        self
    }

    fn data(mut self, len: usize) -> Self {
        self.data = (0..len).map(|i| i as u8).collect();
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        out.extend(self.pairs.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    fn open(&self) -> Result<Gguf, Error> {
        Gguf::from_vec(self.bytes())
    }
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

fn array(kind: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

#[track_caller]
fn refused(file: &Writer, expected: &str) {
    let message = file.open().err().expect("it opened").to_string();
    assert!(
        message.contains(expected),
        "{message:?} does not say {expected:?}"
    );
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/golden")
        .join(name)
        .join("model-i2_s.gguf")
}

#[test]
fn values_read_as_they_were_written() {
    let file = Writer::new()
        .pair("a.u8", 0, &[200])
        .pair("a.i8", 1, &[0xff])
        .pair("a.u16", 2, &[1, 2])
        .pair("a.i16", 3, &[0xfe, 0xff])
        .pair("a.u32", 4, &7u32.to_le_bytes())
        .pair("a.i32", 5, &(-9i32).to_le_bytes())
        .pair("a.f32", 6, &1.5f32.to_le_bytes())
        .pair("a.bool", 7, &[1])
        .pair("a.str", 8, &string("Ġhé".as_bytes()))
        .pair(
            "a.strs",
            9,
            &array(8, 2, &[string(b"x"), string(b"")].concat()),
        )
        .pair(
            "a.i32s",
            9,
            &array(5, 2, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        )
        .pair("a.f32s", 9, &array(6, 1, &2.5f32.to_le_bytes()))
        .pair("a.u64", 10, &(1u64 << 40).to_le_bytes())
        .pair("a.i64", 11, &(-3i64).to_le_bytes())
        .pair("a.f64", 12, &0.25f64.to_le_bytes());
    let gguf = file.open().unwrap();
    let m = gguf.metadata();
    assert_eq!(m.len(), 15);
    assert_eq!(m.iter().next(), Some(("a.u8", Value::U8(200))));
    assert_eq!(
        (m.u32("a.u8").unwrap(), m.u32("a.u16").unwrap()),
        (Some(200), Some(513))
    );
    assert_eq!(m.get("a.i8"), Some(Value::I8(-1)));
    assert_eq!(m.get("a.i16").unwrap().as_integer(), Some(-2));
    assert_eq!(m.require_u32("a.u32").unwrap(), 7);
    assert_eq!(m.get("a.i32"), Some(Value::I32(-9)));
    assert_eq!(
        (m.f32("a.f32").unwrap(), m.require_f32("a.f64").unwrap()),
        (Some(1.5), 0.25)
    );
    assert_eq!(m.bool("a.bool").unwrap(), Some(true));
    assert_eq!(m.require_str("a.str").unwrap(), "Ġhé");
    assert_eq!(
        m.strings("a.strs").unwrap().unwrap().collect::<Vec<_>>(),
        ["x", ""]
    );
    assert_eq!(
        m.i32s("a.i32s").unwrap().unwrap().collect::<Vec<_>>(),
        [1, -1]
    );
    assert_eq!(
        m.f32s("a.f32s").unwrap().unwrap().collect::<Vec<_>>(),
        [2.5]
    );
    assert_eq!(m.u64("a.u64").unwrap(), Some(1 << 40));
    assert_eq!(
        m.get("a.strs").unwrap().as_array().unwrap().iter().nth(1),
        Some(Value::Str(""))
    );
    assert_eq!((m.get("absent"), m.str("absent").unwrap()), (None, None));
}

#[test]
fn a_value_of_the_wrong_type_is_reported_with_both_types() {
    let file = Writer::new()
        .pair("n", 5, &(-1i32).to_le_bytes())
        .pair("big", 10, &(1u64 << 40).to_le_bytes())
        .pair("list", 9, &array(8, 1, &string(b"x")));
    let gguf = file.open().unwrap();
    let m = gguf.metadata();
    let says = |e: Error, expected: &str| assert_eq!(e.to_string(), expected);
    says(
        m.u32("n").unwrap_err(),
        "metadata key n is i32 -1, expected an integer from 0 to 4294967295",
    );
    says(
        m.u32("big").unwrap_err(),
        "metadata key big is u64 1099511627776, expected an integer from 0 to 4294967295",
    );
    says(
        m.str("list").unwrap_err(),
        "metadata key list is an array of 1 string, expected a string",
    );
    says(
        m.require_f32("absent").unwrap_err(),
        "metadata key absent is missing",
    );
    says(
        gguf.require_tensor("absent").unwrap_err(),
        "tensor absent is missing",
    );
    assert!(m.i32s("list").is_err() && m.f32s("list").is_err() && m.bool("n").is_err());
}

#[test]
fn tensors_have_the_bytes_that_type_and_shape_demand() {
    let file = Writer::new()
        .pair("general.file_type", 4, &40u32.to_le_bytes())
        .tensor("w", &[128, 2], 36, 32)
        .tensor("n", &[3], 0, 0)
        .data(32 + 96);
    let gguf = file.open().unwrap();
    let w = gguf.require_tensor("w").unwrap();
    assert_eq!(
        (w.dtype, w.dims, w.rows(), w.cols()),
        (TensorType::I2_S, &[128, 2][..], 2, 128)
    );
    assert_eq!((w.data.len(), w.data[0]), (96, 32));
    assert_eq!(gguf.bytes(w.range()), w.data);
    let n = gguf.tensor("n").unwrap();
    assert_eq!(
        (n.data, n.rows()),
        (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11][..], 1)
    );
    assert_eq!(
        gguf.tensors().map(|t| t.name).collect::<Vec<_>>(),
        ["w", "n"]
    );
}

#[test]
fn headers_that_are_not_ours_are_refused_by_name() {
    let refused_bytes = |bytes: &[u8], expected: &str| {
        let message = Gguf::from_vec(bytes.to_vec())
            .err()
            .expect("it opened")
            .to_string();
        assert!(message.contains(expected), "{message}");
    };
    refused_bytes(b"", "begins with \"\"");
    refused_bytes(
        b"PK\x03\x04 and more",
        r#"begins with "PK\x03\x04", expected "GGUF""#,
    );
    refused_bytes(b"GGUF\x00\x00\x00\x03\x00\x00", "big endian (version 3)");
    refused_bytes(
        b"GGUF\x01\x00\x00\x00\x00\x00",
        "version 1 is not supported; versions 2 and 3 are",
    );
    refused_bytes(
        b"GGUF\x03\x00",
        "ends inside the version: 4 bytes needed at byte 4, 2 left",
    );
    let mut huge = b"GGUF\x03\x00\x00\x00".to_vec();
    huge.extend([0xff; 16]);
    refused_bytes(
        &huge,
        "tensor count: is 18446744073709551615, at most 65536 are supported",
    );
    huge[8..16].fill(0);
    refused_bytes(&huge, "metadata pair count: is 18446744073709551615");
    huge[16..24].copy_from_slice(&60_000u64.to_le_bytes());
    refused_bytes(
        &huge,
        "ends inside its 60000 metadata pairs: 780000 bytes needed at byte 24, 0 left",
    );
    assert!(matches!(
        Gguf::open(Path::new("/")),
        Err(Error::NotAFile { .. })
    ));
    assert!(matches!(
        Gguf::open(Path::new("no/such.gguf")),
        Err(Error::Io { .. })
    ));
}

#[test]
fn broken_metadata_is_refused_with_its_key() {
    let one = |kind, value: &[u8]| Writer::new().pair("k", kind, value);
    refused(&one(13, &[0]), "key k: has unknown value type 13");
    refused(&one(7, &[2]), "key k: is a bool with value 2");
    refused(
        &one(8, &string(&[0xff])),
        "key k: is not UTF-8 from its byte 0 on",
    );
    refused(
        &one(8, &u64::MAX.to_le_bytes()),
        "ends inside metadata key k",
    );
    refused(
        &one(9, &array(9, 1, &array(0, 0, &[]))),
        "key k: is an array of arrays",
    );
    refused(
        &one(9, &array(6, 1 << 62, &[])),
        "ends inside metadata key k: 18446744073709551615 bytes needed",
    );
    refused(
        &one(9, &array(8, 5, &string(b"only one, long enough"))),
        "ends inside element 3 of metadata key k",
    );
    refused(&one(4, &[0; 4]).pair("k", 0, &[0]), "key k: is there twice");
    for alignment in [0u32, 4, 48, 1 << 21] {
        let file = Writer::new().pair("general.alignment", 4, &alignment.to_le_bytes());
        refused(&file, "expected a power of two from 8 to 1048576");
    }
}

#[test]
fn broken_tensors_are_refused_with_their_name_and_the_numbers() {
    let one =
        |dims: &[u64], type_id, offset| Writer::new().tensor("t", dims, type_id, offset).data(64);
    refused(
        &one(&[], 0, 0),
        "tensor t: has 0 dimensions, expected 1 to 4",
    );
    refused(&one(&[1; 5], 0, 0), "tensor t: has 5 dimensions");
    refused(&one(&[4, 0], 0, 0), "tensor t: has impossible shape [4, 0]");
    refused(
        &one(&[18_436_137_873_095_478_032, 1_212_696_576], 0, 0),
        "impossible shape [18436137873095478032, 1212696576]",
    );
    refused(&one(&[1 << 40, 1 << 22], 0, 0), "does not fit in memory");
    refused(&one(&[1 << 61], 36, 0), "impossible shape");
    refused(
        &one(&[33], 8, 0),
        "Q8_0 needs a multiple of 32 columns, not 33",
    );
    refused(
        &one(&[4], 0, 8),
        "offset 8, not a multiple of the alignment 32",
    );
    refused(
        &one(&[17], 0, 0),
        "F32 [17] needs 68 bytes at offset 0 of the data section at byte 64, the file has 128 bytes",
    );
    refused(
        &one(&[4], 0, u64::MAX - 31),
        "needs 16 bytes at offset 18446744073709551584",
    );
    refused(
        &one(&[4], 40, 0),
        "tensor t has type 40 (NVFP4), which is not supported; supported are F32 (0), F16 (1)",
    );
    refused(
        &one(&[4], 999, 0),
        "tensor t has type 999, which is not supported",
    );
    refused(&one(&[4], 0, 0).tensor("u", &[1], 0, 0), "inside tensor");
    refused(
        &one(&[4], 0, 0).tensor("t", &[4], 0, 32),
        "tensor t: is there twice",
    );
}

/// The type of a tensor of id 42 when the next tensor begins after `bytes` bytes.
fn dtype_of_id_42(bytes: usize) -> TensorType {
    let next = bytes.next_multiple_of(32);
    let file = Writer::new()
        .tensor("t", &[384, 32], 42, 0)
        .tensor("u", &[1], 0, next as u64)
        .data(next + 4);
    file.open().unwrap().require_tensor("t").unwrap().dtype
}

#[test]
fn ids_of_group_formats_are_accepted_only_if_the_size_fits() {
    for (id, dtype, bytes) in [
        (41, TensorType::Q1_0, 1728),
        (142, TensorType::PQ2_0, 3264),
        (143, TensorType::PTQ1_0, 2688),
    ] {
        let with = |bytes| Writer::new().tensor("t", &[384, 32], id, 0).data(bytes);
        let gguf = with(bytes).open().unwrap();
        let tensor = gguf.require_tensor("t").unwrap();
        assert_eq!((tensor.dtype, tensor.data.len()), (dtype, bytes));
        for other in [bytes - 1, bytes + 32] {
            refused(&with(other), &format!("of that id fit: {dtype} {bytes}"));
        }
    }
    refused(
        &Writer::new().tensor("t", &[384, 32], 42, 0).data(8064),
        "tensor t of shape [384, 32] has type id 42 and 8064 bytes up to the next tensor; of that id fit: \
         Q2_0 3456, Q2_0 in groups of 128 3264, TL2",
    );
    refused(
        &Writer::new().tensor("t", &[96, 2], 41, 0).data(64),
        "Q1_0 none (Q1_0 needs a multiple of 128 columns, not 96)",
    );
}

/// Writes the parts of a model `m`, each with one tensor that is named after its part.
fn write_parts(directory: &Path, count: u32, total: u64) {
    for no in 0..count {
        let mut part = Writer::new()
            .pair("split.no", 2, &(no as u16).to_le_bytes())
            .pair("split.count", 2, &(count as u16).to_le_bytes());
        if no == 0 {
            part = part.pair("split.tensors.count", 5, &(total as u32).to_le_bytes());
        }
        let part = part
            .tensor(&format!("t{no}"), &[4], 0, 0)
            .data(16 + no as usize);
        std::fs::write(part_path(directory, no, count), part.bytes()).unwrap();
    }
}

fn part_path(directory: &Path, no: u32, count: u32) -> PathBuf {
    directory.join(format!("m-{:05}-of-{count:05}.gguf", no + 1))
}

#[test]
fn the_parts_of_a_split_model_are_opened_together() {
    let directory = tempfile::tempdir().unwrap();
    write_parts(directory.path(), 3, 3);
    let gguf = Gguf::open(&part_path(directory.path(), 0, 3)).unwrap();
    let names: Vec<&str> = gguf.tensors().map(|tensor| tensor.name).collect();
    assert_eq!(names, ["t0", "t1", "t2"]);
    for name in names {
        let tensor = gguf.require_tensor(name).unwrap();
        assert_eq!(tensor.data, (0..16).collect::<Vec<u8>>());
        assert_eq!(gguf.bytes(tensor.range()), tensor.data);
        assert_eq!(&*gguf.extent(tensor.range()), tensor.data);
        gguf.advise_done(tensor.range());
    }
}

#[test]
fn parts_that_do_not_fit_together_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |no| part_path(directory.path(), no, 3);
    let error = |no| Gguf::open(&at(no)).err().expect("it opened").to_string();
    write_parts(directory.path(), 3, 4);
    assert!(
        error(0).contains("have 3 tensors, split.tensors.count is 4"),
        "{}",
        error(0)
    );
    assert!(
        error(1).contains("it is part 2 of 3; open the first part"),
        "{}",
        error(1)
    );
    write_parts(directory.path(), 3, 3);
    std::fs::copy(at(2), at(1)).unwrap();
    assert!(
        error(0).contains("it says that it is part 3 of 3, expected 2 of 3"),
        "{}",
        error(0)
    );
    std::fs::remove_file(at(1)).unwrap();
    assert!(error(0).contains("m-00002-of-00003.gguf: it is part 2 of 3 and is missing"));
    let elsewhere = directory.path().join("m.gguf");
    std::fs::rename(at(0), &elsewhere).unwrap();
    let error = Gguf::open(&elsewhere).err().expect("it opened").to_string();
    assert!(
        error.contains("whose name must end in -00001-of-00003.gguf"),
        "{error}"
    );
}

#[test]
fn the_golden_models_with_group_scales_open_with_their_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden-group");
    if !folder.exists() {
        eprintln!("skipped: no golden models with group scales here");
        return;
    }
    for (name, dtype) in [
        ("qwen3-q1_0", TensorType::Q1_0),
        ("qwen3-q2_0", TensorType::Q2_0),
        ("qwen3-q2_0-g128", TensorType::Q2_0_G128),
        ("qwen3-pq2_0", TensorType::PQ2_0),
        ("qwen3-ptq1_0", TensorType::PTQ1_0),
        ("qwen35-q2_0-rot128-tiled", TensorType::Q2_0),
        ("qwen35-ptq1_0-rot128", TensorType::PTQ1_0),
    ] {
        let gguf = Gguf::open(&folder.join(name).join("model.gguf")).unwrap();
        let tensors = gguf
            .tensors()
            .filter(|tensor| tensor.dtype.group().is_some());
        let mut count = 0;
        for tensor in tensors {
            assert_eq!(tensor.dtype, dtype, "{name}: {}", tensor.name);
            let format = dtype.group().unwrap();
            let (rows, cols) = (tensor.rows(), tensor.cols());
            let (mut codes, mut scales) = (
                vec![0; rows * cols],
                vec![0.0; rows * cols / format.group_len()],
            );
            format
                .unpack_rows(tensor.data, rows, cols, 0..rows, &mut codes, &mut scales)
                .unwrap();
            let mut packed = vec![0; tensor.data.len()];
            format
                .pack(&codes, &scales, rows, cols, &mut packed)
                .unwrap();
            assert!(packed == tensor.data, "{name}: {}", tensor.name);
            count += 1;
        }
        assert!(count > 14, "{name}: {count} tensors");
        assert!(
            gguf.require_tensor("token_embd.weight")
                .unwrap()
                .dtype
                .group()
                .is_some()
        );
    }
}

#[test]
fn a_git_lfs_pointer_is_reported_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
    std::fs::write(&path, pointer).unwrap();
    let error = Gguf::open(&path).err().expect("it opened");
    assert!(matches!(error, Error::LfsPointer { .. }), "{error}");
    assert!(
        error
            .to_string()
            .ends_with("`git lfs pull` in its repository downloads it")
    );
}

#[test]
fn the_file_decides_the_meaning_of_ambiguous_type_ids() {
    let dtype = |arch: &str, id: u32| {
        let file = Writer::new().pair("general.architecture", 8, &string(arch.as_bytes()));
        let gguf = file
            .tensor("t", &[384, 32], id, 0)
            .data(16384)
            .open()
            .unwrap();
        gguf.require_tensor("t").unwrap().dtype
    };
    assert_eq!(dtype("bitnet", 39), TensorType::TL2);
    assert_eq!(dtype("llama", 39), TensorType::MXFP4);
    assert_eq!(dtype_of_id_42(3456), TensorType::Q2_0);
    assert_eq!(dtype_of_id_42(3264), TensorType::Q2_0_G128);
    assert_eq!(
        dtype_of_id_42(TensorType::TL2.size_bytes(32, 384).unwrap()),
        TensorType::TL2
    );
    // 18 bytes for 32 weights, not 8 bytes: llama.cpp used the number 36 for another type before.
    let iq4 = Writer::new()
        .tensor("t", &[256, 4], 36, 0)
        .tensor("u", &[256, 4], 36, 576)
        .data(1152);
    refused(&iq4, "IQ4_NL_4_4");
}

#[test]
fn a_golden_file_opens_mapped_and_its_pages_can_be_dropped_and_read_again() {
    let gguf = Gguf::open(&golden("strict-b158")).unwrap();
    assert_eq!(
        (gguf.version(), gguf.alignment(), gguf.file_len()),
        (3, 32, 535_072)
    );
    assert_eq!(
        gguf.metadata().require_str("general.architecture").unwrap(),
        "bitnet-b1.58"
    );
    assert_eq!(
        gguf.metadata()
            .strings("tokenizer.ggml.tokens")
            .unwrap()
            .unwrap()
            .len(),
        512
    );
    assert_eq!(gguf.tensors().len(), 24);
    for tensor in gguf.tensors() {
        gguf.advise_sequential(tensor.range());
        let before = tensor.data.to_vec();
        gguf.advise_done(tensor.range());
        assert!(before == tensor.data, "{}", tensor.name);
        assert_eq!(
            gguf.require_tensor(tensor.name).unwrap().range(),
            tensor.range()
        );
    }
}

/// Opens a file and reads all of it; returns whether it opened.
fn survives(open: impl FnOnce() -> Result<Gguf, Error>) -> bool {
    let start = Instant::now();
    let opened = open().map(|gguf| {
        let m = gguf.metadata();
        let text: usize = m
            .iter()
            .map(|(key, value)| key.len() + value.to_string().len())
            .sum();
        let arrays = m.iter().filter_map(|(_, value)| value.as_array());
        let elements: usize = arrays.map(|array| array.iter().count()).sum();
        let data: usize = gguf
            .tensors()
            .map(|t| t.data.len() + t.rows() * t.cols())
            .sum();
        text + elements + data
    });
    let message = opened
        .as_ref()
        .err()
        .map(Error::to_string)
        .unwrap_or_default();
    assert!(message.len() < 4096 && !message.contains('\n'), "{message}");
    assert!(start.elapsed() < Duration::from_secs(1));
    opened.is_ok()
}

#[test]
fn truncated_files_are_a_clean_error() {
    let bytes: &'static [u8] = std::fs::read(golden("strict-b158")).unwrap().leak();
    // Every length that ends in the header, and every thirteenth that ends in the data section,
    // where all are alike.
    let data_start = 32 * 1024;
    for len in (0..data_start).chain((data_start..bytes.len()).step_by(13)) {
        assert!(
            !survives(|| Gguf::from_static(&bytes[..len])),
            "the first {len} bytes opened"
        );
    }
    assert!(survives(|| Gguf::from_static(bytes)));
}

#[test]
fn mutated_files_open_cleanly_or_fail_cleanly() {
    let bytes = std::fs::read(golden("strict-b158")).unwrap();
    let header_len = bytes
        .windows(18)
        .rposition(|w| w == b"output_norm.weight")
        .unwrap()
        + 40;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let edges = [0u8, 1, 7, 8, 9, 36, 39, 0x7f, 0x80, 0xff];
    let num_opened = (0..8000)
        .filter(|round| {
            let mut mutated = bytes.clone();
            for _ in 0..=random(4) {
                // Half of the changes hit the structure: the first pairs and the list of tensors.
                let at = match round % 4 {
                    0 => random(1024),
                    1 => header_len - 1 - random(2048),
                    _ => random(header_len),
                };
                match random(4) {
                    0 => mutated[at] = edges[random(edges.len())],
                    1 => mutated[at] ^= 1 << random(8),
                    2 => mutated[at..at + 8].fill(edges[random(edges.len())]),
                    _ => mutated[at] = random(256) as u8,
                }
            }
            if random(8) == 0 {
                mutated.truncate(random(bytes.len()));
            }
            survives(|| Gguf::from_vec(mutated))
        })
        .count();
    assert!(
        (100..7900).contains(&num_opened),
        "{num_opened} opened: the mutations hit nothing or everything"
    );
}
