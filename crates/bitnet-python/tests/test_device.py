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
