"""Logits and perplexity: the program's numbers, as arrays without a copy."""

import gc
import json

import numpy
import pytest

import bitnet
from conftest import ROOT

GOLDEN = ROOT / "tests/data/golden/strict-b158"


def test_logits_are_the_programs_bit_for_bit(model, program, tmp_path):
    tokens = model.tokenize("Once upon a time there was a little dog.") * 20  # several chunks
    ids, output = ",".join(map(str, tokens)), tmp_path / "logits.npy"
    program("logits", "--tokens", ids, "-o", output, "--json")
    logits = model.logits(tokens)
    assert logits.shape == (len(tokens), model.info["vocab_size"])
    assert logits.dtype == numpy.float32
    assert (logits == numpy.load(output)).all()


def test_logits_are_close_to_transformers():
    golden = bitnet.load(GOLDEN / "model-i2_s.gguf", kv_type="f32")
    tokens = json.loads((GOLDEN / "tokens.json").read_text())["tokens"]
    expected = numpy.load(GOLDEN / "logits.npy")
    logits = golden.logits(tokens)
    assert logits.shape == expected.shape
    assert numpy.abs(logits - expected).max() < 1e-5


def test_logits_lie_where_the_engine_wrote_them_and_outlive_the_model():
    owner = bitnet.load()
    native = owner._engine.logits([1, 2, 3])
    array = numpy.asarray(native)
    assert array.__array_interface__["data"][0] == native.__array_interface__["data"][0]
    assert array.flags.c_contiguous and array.flags.writeable and not array.flags.owndata
    logits = owner.logits([1, 2, 3])
    before = logits.copy()
    del owner, native
    gc.collect()
    assert (logits == before).all()


def test_perplexity_is_the_programs(model, program, tmp_path):
    text = "Once upon a time there was a little dog. The dog was happy. " * 30
    file = tmp_path / "text.txt"
    file.write_text(text)
    for context in (64, 256):
        arguments = ["-f", file, "--documents", "--ctx", context, "--json"]
        expected = program("perplexity", *arguments)["perplexity"]
        # The program trims documents.
        assert model.perplexity(text.strip(), context=context) == expected
    assert 1 < model.perplexity("Once upon a time there was a dog.") < 100


def test_vectors_are_the_programs(program):
    path = ROOT / "tests/data/golden-graphs/qwen3-embedding/model.gguf"
    model = bitnet.load(path, ctx_size=64)
    texts = ["ab", "c", "Once upon a time"]
    arguments = ["-m", path, "--ctx-size", 64, "--json", *texts]
    for options, more in [
        ({}, []),
        ({"pooling": "mean", "normalize": False}, ["--pooling", "mean", "--raw"]),
        ({"dimensions": 8}, ["--dimensions", 8]),
    ]:
        data = program("embed", *arguments, *more)["data"]
        expected = numpy.array([entry["embedding"] for entry in data], numpy.float32)
        vectors = model.embed(texts, **options)
        assert vectors.dtype == numpy.float32 and (vectors == expected).all()
        assert (model.embed(texts[0], **options) == expected[0]).all()
    assert model.embed([]).shape == (0, model.info["hidden_size"])
    with pytest.raises(bitnet.RequestError, match='pooling is "max", but must be one of last'):
        model.embed("a", pooling="max")
    with pytest.raises(bitnet.RequestError, match="dimensions is 0, but must be from 1 to"):
        model.embed("a", dimensions=0)
    with pytest.raises(bitnet.RequestError, match="does not say how it pools"):
        bitnet.load().embed("a")


def test_a_text_without_a_token_to_predict_is_refused(model):
    with pytest.raises(bitnet.RequestError, match="too short"):
        model.perplexity([1])
