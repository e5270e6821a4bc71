#!/usr/bin/env bash
# Expected: byte tokens that end in the middle of a character decode to the whole characters and one
# U+FFFD or more for the rest, as in `sentencepiece` and in the decoder `ByteLevel`.
# Seen: in the decoder `ByteFallback` one invalid byte makes every byte of the run of byte tokens a
# U+FFFD. A line break is such a token in Llama's vocabulary, <0x0A>: if max_tokens cuts the
# character behind it, transformers shows no line break, but U+FFFD.
# We depend on it in: crates/bitnet-tokenizers/src/detokenizer.rs, which keeps the whole characters: a
# stream has sent them before the invalid byte comes.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3 sentencepiece==0.2.3
"$dir/venv/bin/python" - <<'PYTHON'
import io

import sentencepiece
import tokenizers
from tokenizers import decoders, pre_tokenizers

print("tokenizers", tokenizers.__version__, "sentencepiece", sentencepiece.__version__)
model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the quick brown fox", "jumps over the lazy dog"] * 10),
    model_writer=model, vocab_size=300, model_type="bpe", byte_fallback=True,
    hard_vocab_limit=False, minloglevel=2,
)
processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
fallback = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
# The character that byte-level vocabularies write for a byte, learnt from bytes of whole characters.
byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
written = {}
for character in "A\nB日":
    text = byte_level.pre_tokenize_str(character)[0][0]
    written |= dict(zip(character.encode(), text))

seen = []
for data in (b"A\n", b"A\n" + "日".encode(), b"A\n" + "日".encode()[:2], "日".encode()[:1] + b"B"):
    pieces = [f"<0x{byte:02X}>" for byte in data]
    found = (
        fallback.decode(pieces),
        processor.decode_pieces(pieces),
        decoders.ByteLevel().decode([written[byte] for byte in data]),
    )
    seen.append(found)
    print(data, *(f"{name}: {ascii(text)}" for name, text in zip(("ByteFallback", "sentencepiece", "ByteLevel"), found)))
lost = "\ufffd"
expected = [
    ("A\n", "A\n", "A\n"),
    ("A\n日", "A\n日", "A\n日"),
    (lost * 4, "A\n" + lost * 2, "A\n" + lost),
    (lost * 2, lost + "B", lost + "B"),
]
raise SystemExit(0 if seen == expected else 1)
PYTHON
