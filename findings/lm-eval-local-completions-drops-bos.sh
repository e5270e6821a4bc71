#!/usr/bin/env bash
# Expected: lm-eval's model `local-completions` with a model's own tokenizer sends the tokens that this tokenizer gives to
# a text, as its model `hf` scores them.
# Seen: it encodes texts without special tokens unless `add_bos_token` is set. For a tokenizer that begins each text with
# BOS, it sends another context than `hf` scores, and nothing warns of it: the same model gets other scores.
# We depend on it in: crates/bitnet-python/python/bitnet/lm_eval.py (`add_bos_token`), tests/clients/test_eval.py.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check 'lm-eval[api]==0.4.13' transformers==5.24.0
cd "$dir"
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" - <<'EOF' 2>log | tee seen
import json
import pathlib

import lm_eval
import transformers
from lm_eval.models.openai_completions import LocalCompletionsAPI
from tokenizers import Tokenizer, models, pre_tokenizers, processors

# A tokenizer of two words that begins each text with BOS, token 0.
folder = pathlib.Path("tokenizer")
folder.mkdir()
words = models.WordLevel({"<s>": 0, "[UNK]": 1, "Once": 2, "upon": 3}, unk_token="[UNK]")
tokenizer = Tokenizer(words)
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.add_special_tokens(["<s>"])
tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
tokenizer.save(str(folder / "tokenizer.json"))
config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<s>"}
(folder / "tokenizer_config.json").write_text(json.dumps(config))

print("lm-eval", lm_eval.__version__, "transformers", transformers.__version__)
known = transformers.AutoTokenizer.from_pretrained(folder)
print("the tokenizer:", known("Once upon")["input_ids"])
# Nothing is sent: the address is not used.
options = {"tokenizer_backend": "huggingface", "tokenizer": str(folder)}
model = LocalCompletionsAPI(base_url="http://127.0.0.1:9/v1/completions", model="m", **options)
print("local-completions:", model.tok_encode("Once upon"))
EOF
grep -qx 'the tokenizer: \[0, 2, 3\]' seen && grep -qx 'local-completions: \[2, 3\]' seen
