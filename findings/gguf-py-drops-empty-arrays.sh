#!/usr/bin/env bash
# Expected: a GGUF array of no elements has an element type and a length of 0, and the Python package
# `gguf` writes it and reads it so.
# Seen: `add_array` leaves out the whole key and says nothing; `add_key_value` with the element type
# raises an error when the file is written; and the reader reads such an array without its element
# type. So a byte-level tokenizer without merges, 256 tokens for 256 bytes,
# gets a file without `tokenizer.ggml.merges`, which llama.cpp refuses ("cannot find tokenizer
# merges").
# We depend on it in: crates/bitnet-tokenizers/src/spec.rs, which needs no merges if each token is
# one byte.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import struct

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

print("gguf", importlib.metadata.version("gguf"))


def written(add):
    """The keys of a file; the error if it cannot be written."""
    writer = GGUFWriter("file.gguf", "llama")
    add(writer)
    writer.add_tensor("t.weight", np.zeros(32, np.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except ValueError as error:
        return str(error)
    finally:
        writer.close()
    return sorted(key for key in GGUFReader("file.gguf").fields if key.startswith("tokenizer."))


def merges(writer):
    writer.add_tokenizer_model("gpt2")
    writer.add_token_merges([])


def string(text):
    return struct.pack("<Q", len(text)) + text


seen = [written(merges)]
print("keys after add_token_merges([]):", seen[-1])
key, types = "tokenizer.ggml.merges", (GGUFValueType.ARRAY, GGUFValueType.STRING)
seen.append(written(lambda writer: writer.add_key_value(key, [], types[0], sub_type=types[1])))
print("after add_key_value:", seen[-1])
# A file of two keys: the architecture, and an array of 0 strings.
file = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
file += string(b"general.architecture") + struct.pack("<I", 8) + string(b"llama")
file += string(key.encode()) + struct.pack("<IIQ", 9, 8, 0)
open("empty.gguf", "wb").write(file)
field = GGUFReader("empty.gguf").fields[key]
seen.append(([kind.name for kind in field.types], field.contents()))
print("types and values of an empty array of strings:", *seen[-1])
expected = [["tokenizer.ggml.model"], "Invalid GGUF metadata array. Empty array", (["ARRAY"], [])]
raise SystemExit(0 if seen == expected else 1)
PYTHON
