"""Errors: exceptions with the program's texts, and nothing that goes on in silence."""

import re

import pytest

import bitnet


def program_text(message):
    """The text of an error of the program, without `error: `."""
    return message.splitlines()[-1].removeprefix("error: ")


@pytest.mark.parametrize("path", ["no-such-file.gguf", "/no/such/folder/model.gguf"])
def test_a_missing_file_is_a_file_not_found_error(program, path):
    expected = program_text(program("run", "-m", path, "Hi", fails=True))
    with pytest.raises(bitnet.ModelNotFoundError) as caught:
        bitnet.load(path)
    assert str(caught.value) == expected
    assert isinstance(caught.value, (FileNotFoundError, bitnet.Error))


def test_a_model_that_is_not_pulled_is_a_file_not_found_error(program, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    expected = program_text(program("run", "-m", "2b4t", "Hi", fails=True))
    with pytest.raises(bitnet.ModelNotFoundError) as caught:
        bitnet.load("2b4t")
    assert str(caught.value) == expected and "bitnet pull" in expected


def test_a_damaged_file_is_a_value_error(program, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(60))
    expected = program_text(program("run", "-m", file, "Hi", fails=True))
    with pytest.raises(bitnet.ModelError) as caught:
        bitnet.load(file)
    assert str(caught.value) == expected
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"temperature": -1.0}, ["--temp", "-1"]),
        ({"top_p": 0.0}, ["--top-p", "0"]),
        ({"min_p": 2.0}, ["--min-p", "2"]),
        ({"stop": [""]}, ["--stop", ""]),
        ({"logit_bias": {10_000_000: 1.0}}, ["--logit-bias", "10000000+1"]),
        ({"max_tokens": 1_000_000}, ["-n", "1000000"]),
    ],
)
def test_an_invalid_request_has_the_programs_text(model, program, options, arguments):
    expected = program_text(program("run", "Hi", *arguments, fails=True))
    for run in (model.generate, lambda *args, **options: list(model.stream(*args, **options))):
        with pytest.raises(bitnet.RequestError) as caught:
            run("Hi", **options)
        assert str(caught.value) == expected
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate("Hi", max_tokens=-3), "max_tokens is -3, but must be a whole number"),
        (lambda m: m.generate("Hi", seed="x"), "seed is 'x', but must be a whole number"),
        (lambda m: m.generate([1, -2]), "token 1 is -2, but must be a whole number"),
        (lambda m: m.generate([10_000_000]), "prompt token 0 is 10000000, but the vocabulary ends"),
        (lambda m: m.logits([]), "the prompt is empty"),
        (lambda m: m.logits([10_000_000]), "prompt token 0 is 10000000"),
        (lambda m: m.logits([1] * 100_000), "100000 prompt tokens .* do not fit"),
        (lambda m: m.detokenize([10_000_000]), "token 10000000 does not exist"),
        (lambda m: m.perplexity("Hi there", context=1), "context is 1, but must be 2 or more"),
        (lambda m: m.perplexity("Hi", context=100_000), "100000 prompt tokens .* do not fit"),
        (lambda m: m.chat([]), "'messages' is empty"),
        (lambda m: m.chat([{"content": "Hi"}]), r"required parameter: 'messages\[0\].role'"),
        (lambda m: bitnet.load(device="tpu"), 'device is "tpu": no GPU whose name contains "tpu"'),
        (lambda m: bitnet.load(threads=0), "threads is 0, but must be from 1 to 1024"),
        (lambda m: bitnet.load(kv_type="f8"), 'kv_type is "f8", but must be "f16" or "f32"'),
        (lambda m: bitnet.load(draft=17), "draft is 17, but must be from 0 to 16"),
        (lambda m: bitnet.load(parallel=0), "parallel is 0, but must be 1 or more"),
        (lambda m: bitnet.load(i2_s_form="block1"), "i2_s_form: .*block1"),
    ],
)
def test_an_invalid_argument_is_named(model, call, message):
    with pytest.raises(bitnet.RequestError, match=message):
        call(model)


def test_a_cache_too_small_for_the_context_is_refused():
    with pytest.raises(bitnet.Error, match=r"kv_memory holds \d+ positions, but the context has"):
        bitnet.load(kv_memory=1)


def test_a_context_that_no_memory_holds_is_refused():
    with pytest.raises((bitnet.Error, MemoryError)):
        bitnet.load(ctx_size=10**15)


def test_an_unknown_chat_template_is_refused():
    with pytest.raises(bitnet.Error, match="neither a file nor one of .*llama3"):
        bitnet.load(chat_template="no-such-template")


def test_an_unknown_keyword_is_a_type_error(model):
    for call in (model.generate, model.stream, model.chat):
        with pytest.raises(TypeError, match=re.escape("unexpected keyword argument 'max_token'")):
            call("Hi", max_token=3)
    with pytest.raises(TypeError, match="tools needs messages as the prompt"):
        model.stream("Hi", tools=[])


def test_a_model_without_a_tokenizer_takes_tokens_only():
    from conftest import ROOT

    golden = bitnet.load(ROOT / "tests/data/golden/strict-b158/hf-packed")
    result = golden.generate([1, 2, 3], max_tokens=4, seed=0)
    assert len(result.tokens) == 4 and result == ""
    with pytest.raises(bitnet.RequestError, match="has no tokenizer"):
        golden.generate("Hi")
