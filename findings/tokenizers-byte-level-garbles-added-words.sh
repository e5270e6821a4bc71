#!/usr/bin/env bash
# Expected: a word that `add_tokens` adds to a byte-level tokenizer decodes to itself, as it encodes:
# added tokens are text, not bytes in the alphabet of the vocabulary.
# Seen: the decoder `ByteLevel` reads added tokens in that alphabet, too. If each character of one is
# in it, as all Latin letters with accents are, the letters become single bytes: "naïve" decodes to
# "na\ufffdve". One character outside the alphabet, such as a space, keeps the whole token right.
# We depend on it in: crates/bitnet-tokenizers/src/vocabulary.rs, which gives added tokens their own
# text, as llama.cpp does. Extended vocabularies therefore decode otherwise than in transformers.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$dir/venv/bin/python" - <<'PYTHON'
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

print("tokenizers", tokenizers.__version__)
vocabulary = {letter: id for id, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
texts = ["naïve", "straße", "<é>", "naïve word", "日本", "plain"]


def decoded():
    encodings = [tokenizer.encode(text) for text in texts]
    return [(len(e), tokenizer.decode(e.ids, skip_special_tokens=False)) for e in encodings]


before = decoded()
tokenizer.add_tokens(texts)
after = decoded()
for text, (long, plain), (short, added) in zip(texts, before, after):
    print(f"{text}: {long} tokens decode to {plain}; added, {short} token to {ascii(added)}")
right = [plain for _, plain in before] == texts and all(short == 1 for short, _ in after)
lost = ["na\ufffdve", "stra\ufffde", "<\ufffd>", "naïve word", "日本", "plain"]
raise SystemExit(0 if right and [added for _, added in after] == lost else 1)
PYTHON
