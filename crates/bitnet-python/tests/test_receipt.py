"""Receipts: the records that the program makes of the same runs."""

import json

import bitnet

# What differs between two runs, and between processes.
VARIES = {
    "timestamp", "tokens_per_second", "prefill_ms", "decode_ms", "first_token_ms",
    "peak_rss_bytes", "digest", "environment",
}  # fmt: skip


def comparable(receipt):
    kept = {name: value for name, value in receipt.items() if name not in VARIES}
    phases = {"prefill_forward", "decode_forward"}
    counts = receipt["kernel_counts"].items()
    return {**kept, "kernel_counts": {name: count for name, count in counts if name not in phases}}


def test_a_receipt_is_the_programs(program, tmp_path):
    file = tmp_path / "receipt.json"
    arguments = ["Once upon a time", "--seed", 5, "-n", 12, "-t", 2, "--json", "--receipt", file]
    expected_text = program("run", *arguments)["text"]
    expected = json.loads(file.read_text())
    model = bitnet.load(threads=2)
    receipt = model.receipt("Once upon a time", seed=5, max_tokens=12)
    assert receipt.result == expected_text and len(receipt.result.tokens) == 12
    assert comparable(receipt) == comparable(expected)
    assert receipt["compute_path"] == "real" and receipt["deterministic"]
    assert json.loads(receipt.text) == receipt
    assert receipt["environment"]["threads"] == expected["environment"]["threads"] == 2


def test_other_requests_do_not_count_in_a_receipt(model):
    with model.stream("Once", ignore_eos=True, max_tokens=400) as stream:
        next(stream)
        busy = model.receipt("The cat", max_tokens=5, seed=1)
    alone = model.receipt("The cat", max_tokens=5, seed=1)
    assert comparable(busy) == comparable(alone)
    assert model.receipt("The cat", max_tokens=5)["deterministic"] is False
