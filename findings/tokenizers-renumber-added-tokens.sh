#!/usr/bin/env bash
# Expected: an added token has the id that tokenizer.json gives it, as a token of the vocabulary has.
# Seen: `tokenizers` ignores these ids. A token that the vocabulary does not contain gets the number
# of tokens so far, in the order of the list: ids with gaps close up, a list in another order is
# numbered in that order, and where the vocabulary itself has a gap, an added token gets the id of another
# token. Python shows no warning, and transformers gives the same ids.
# We depend on it in: crates/bitnet-tokenizers/src/json/definition.rs, which takes the ids of the
# file. Files that these libraries write have ids without gaps, which both read alike.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$dir/venv/bin/python" - <<'PYTHON'
import json

import tokenizers
from tokenizers import Tokenizer

print("tokenizers", tokenizers.__version__)


def read(vocabulary, added):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return Tokenizer.from_str(json.dumps({
        "version": "1.0",
        "added_tokens": [{"id": id, "content": text, **flags} for text, id in added.items()],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }))


seen = {}
for what, vocabulary, added in (
    ("no gaps", {"[UNK]": 0, "a": 1}, {"<x>": 2, "<y>": 3}),
    ("gaps", {"[UNK]": 0, "a": 1}, {"<x>": 5, "<y>": 9}),
    ("another order", {"[UNK]": 0, "a": 1}, {"<y>": 3, "<x>": 2}),
    ("a gap in the vocabulary", {"[UNK]": 0, "a": 1, "b": 4}, {"<x>": 2, "<y>": 3}),
):
    tokenizer = read(vocabulary, added)
    seen[what] = tokenizer.encode("a <x> <y> b").ids
    found = {text: tokenizer.token_to_id(text) for text in added}
    print(f"{what}: the file says {added}, the library {found}; 'a <x> <y> b' is {seen[what]}")
expected = {
    "no gaps": [1, 2, 3, 0],
    "gaps": [1, 2, 3, 0],
    "another order": [1, 3, 2, 0],
    "a gap in the vocabulary": [1, 3, 4, 4],
}
raise SystemExit(0 if seen == expected else 1)
PYTHON
