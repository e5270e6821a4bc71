"""Models on a GPU: the words and numbers of the CPU."""

import numpy
import pytest

import bitnet

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def adapter(program):
    """The name of an adapter, software included."""
    able = [gpu for gpu in program("devices", "--json")["gpus"] if not gpu["missing"]]
    if not able:
        pytest.skip("no adapter that can run the kernels (Debian: mesa-vulkan-drivers)")
    return min(able, key=lambda gpu: not gpu["software"])["name"]


def test_a_named_gpu_gives_the_text_and_the_logits_of_the_cpu(model, adapter):
    on_gpu = bitnet.load(device=adapter)
    assert (on_gpu.info["device"], on_gpu.info["kernels"]) == ("gpu", "wgsl")
    options = {"max_tokens": 8, "temperature": 0.0}
    assert on_gpu.generate(PROMPT, **options) == model.generate(PROMPT, **options)
    tokens = model.tokenize(PROMPT)
    assert numpy.abs(on_gpu.logits(tokens) - model.logits(tokens)).max() < 1e-3


def test_auto_says_why_it_is_the_cpu(program):
    if any(not gpu["software"] for gpu in program("devices", "--json")["gpus"]):
        pytest.skip("this machine has a GPU")
    with pytest.warns(UserWarning, match="the CPU runs the model: no GPU"):
        model = bitnet.load(device="auto")
    assert model.info["device"] == "cpu"
    with pytest.raises(bitnet.RequestError, match='device is "gpu": no GPU with Vulkan'):
        bitnet.load(device="gpu")


def test_a_lost_device_raises_an_exception_from_then_on(model, adapter):
    on_gpu = bitnet.load(device=adapter)
    stream = on_gpu.stream(PROMPT, max_tokens=200, temperature=0.0)
    next(stream)
    on_gpu._engine.lose_device()
    with pytest.raises(bitnet.EngineError, match="the device was lost.*: load the model again"):
        list(stream)
    tokens = model.tokenize(PROMPT)
    uses = [
        lambda: on_gpu.generate(PROMPT),
        lambda: on_gpu.logits(tokens),
        lambda: on_gpu.perplexity(PROMPT),
        lambda: on_gpu.embed([PROMPT], pooling="mean"),
    ]
    for use in uses:
        with pytest.raises(bitnet.EngineError, match="load the model again"):
            use()
    options = {"max_tokens": 8, "temperature": 0.0}
    again = bitnet.load(device=adapter)
    assert again.generate(PROMPT, **options) == model.generate(PROMPT, **options)
