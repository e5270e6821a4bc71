"""lm-eval and guidellm: scores through the server equal the scores of the same model in transformers.

Activations are rounded to 8 bits, so a value in the middle of two steps goes up or down by the last bit of a float sum,
whose order differs between libraries. One such value changes later log-likelihoods by up to 0.1 in the built-in model.
So the tests compute in transformers which results are possible if each value close to the middle goes either way, and
compare with these as exactly as floats allow.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import BITNET, ROOT, Server

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval
import torch
import transformers.integrations.bitnet as layers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

# It writes no control tokens, which the built-in model does not have for chats.
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
STORIES = [
    "Once upon a time there was a little girl. She had a red ball.",
    "The dog ran to the park. He was very happy, and he saw a cat!",
    "One day, Tom and Lily went to the beach. They found a big shell.",
]
CHOICES = [
    {"text": "Once upon a time there was a little", "choices": [" girl", " boy", " xylophone", " the"], "label": 0},
    {"text": "The dog was very", "choices": [" happy", " quickly", " Lily and", " of"], "label": 0},
    {"text": "Tom went to the park to", "choices": [" play with his ball", " was", " blue blue"], "label": 0},
    {"text": "Lily was sad because she", "choices": [" lost her toy", " the a", " run runs"], "label": 0},
]
TASKS = {
    "stories_choice": """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "stories_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "stories_generate": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "x"
generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The built-in model as a directory of transformers, with a chat template."""
    folder = tmp_path_factory.mktemp("eval") / "stories"
    source = ROOT / "models/stories/stories.gguf"
    subprocess.run([BITNET, "convert", source, "--type", "safetensors", "--tables", "f32", "-o", folder], check=True)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def served(model):
    with Server("-m", str(model), "--model-name", "stories", "--kv-type", "f32") as server:
        yield server.url


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, text in TASKS.items():
        data = folder / f"{name}.jsonl"
        docs = CHOICES if "choice" in name else [{"text": story} for story in STORIES]
        data.write_text("\n".join(map(json.dumps, docs)))
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(head + text)
    return TaskManager(include_path=str(folder), include_defaults=False)


class Rounding:
    """In place of transformers' rounding of activations: values close to the middle of two steps go up or down at random.

    Every sequence of a batch draws by itself. Without draws, all values go where transformers lets them go.
    """

    # In steps, of which an activation has at most 127. Five operations in f32 lead from the sum of a norm to a step,
    # each wrong by up to 2⁻²⁴ of its result: 127 · 5 · 2⁻²⁴ = 3.8e-5.
    RADIUS = 4e-5
    draws = False
    last = None, None

    @classmethod
    def apply(cls, activation):
        # The projections of queries, keys and values share one rounded input.
        if cls.last[0] is not activation:
            scale = 127 / activation.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            steps = activation * scale
            if cls.draws:
                steps = steps + (2 * torch.rand_like(steps) - 1) * cls.RADIUS
            cls.last = activation, steps.round().clamp(-128, 127) / scale
        return cls.last[1]


class Reference:
    """The model in transformers, and what it may say."""

    DRAWS = 256

    def __init__(self, folder):
        layers.ActQuant = Rounding
        self.log_likelihoods = functools.cache(self.log_likelihoods)
        self.texts = functools.cache(self.texts)
        self.lm = HFLM(
            pretrained=str(folder), dtype="float32", device="cpu", max_length=256, batch_size=1, add_bos_token=False
        )

    def drawn(self, call):
        torch.manual_seed(1)
        Rounding.draws, Rounding.last = True, (None, None)
        try:
            with torch.no_grad():
                return call()
        finally:
            Rounding.draws = False

    def log_likelihoods(self, context, continuation):
        """Of a continuation, in each draw."""
        lm = self.lm
        if context:
            first, rest = lm._encode_pair(context, continuation)
        else:
            first, rest = [lm.prefix_token_id], lm.tok_encode(continuation)
        ids = torch.tensor([(first + rest)[:-1]] * self.DRAWS)
        logits = self.drawn(lambda: lm.model(ids).logits[:, -len(rest) :])
        tokens = torch.tensor(rest)[None, :, None].expand(self.DRAWS, -1, -1)
        return logits.log_softmax(-1).gather(-1, tokens).sum((1, 2)).tolist()

    def texts(self, prompt, until, limit):
        """The continuations of a prompt, in all draws."""
        ids = torch.tensor([self.lm.tok_encode(prompt)] * self.DRAWS)
        more = {"do_sample": False, "max_new_tokens": limit, "attention_mask": torch.ones_like(ids)}
        answers = self.drawn(lambda: self.lm.model.generate(ids, **more))[:, ids.shape[1] :]
        return {text.split(until)[0] for text in self.lm.tokenizer.batch_decode(answers, skip_special_tokens=True)}


@pytest.fixture(scope="module")
def reference(model):
    return Reference(model)


def evaluate(tasks, name, model, arguments, chat):
    """Metrics, and the requests and answers of each document."""
    answer = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=[name], task_manager=tasks, apply_chat_template=chat, bootstrap_iters=0
    )
    metrics = {key: value for key, value in answer["results"][name].items() if "," in key and "stderr" not in key}
    samples = sorted(answer["samples"][name], key=lambda sample: sample["doc_id"])
    said = [
        (tuple(request), response[0])
        for sample in samples
        for request, response in zip(sample["arguments"], sample["resps"], strict=True)
    ]
    return metrics, said


def is_possible(reference, request, answer):
    """Whether an answer is one that the model in transformers gives, too."""
    if isinstance(answer, str):
        prompt, options = request
        [until] = options["until"]
        return answer in reference.texts(prompt, until, options["max_gen_toks"])
    number = answer[0] if isinstance(answer, (list, tuple)) else answer
    context, continuation = request if len(request) == 2 else ("", request[0])
    nearest = min(reference.log_likelihoods(context, continuation), key=lambda other: abs(other - number))
    # Each of up to twenty log-probabilities is off by float error of the logits, 1e-5.
    return abs(nearest - number) <= 2e-4


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_scores_of_the_python_package_equal_the_servers(tasks, model, served, name, chat):
    import bitnet.lm_eval

    if chat and name == "stories_rolling":
        pytest.skip("a text is no conversation")
    remote = {"base_url": served + "/v1/completions", "model": "stories", "max_length": 256}
    if chat:
        # With its remote tokenizer, lm-eval hands on messages in place of the text of the template.
        remote |= {"tokenizer_backend": "huggingface", "tokenizer": str(model)}
    expected, expected_said = evaluate(tasks, name, "local-completions", remote, chat)
    # lm-eval asks servers for tokens without BOS.
    local = bitnet.lm_eval.BitnetLM(model, kv_type="f32", max_length=256, add_bos_token=False)
    metrics, said = evaluate(tasks, name, local, None, chat)
    assert metrics == pytest.approx(expected, rel=1e-6)
    for (request, ours), (other_request, theirs) in zip(said, expected_said, strict=True):
        assert request == other_request
        for one, other in zip(flat(ours), flat(theirs), strict=True):
            assert one == (pytest.approx(other, abs=1e-5) if isinstance(other, float) else other)


def test_texts_begin_with_one_bos_if_asked(model):
    import bitnet.lm_eval

    lm = bitnet.lm_eval.BitnetLM(model, add_bos_token=True)
    bos = lm.prefix_token_id
    text = lm.model.detokenize([bos], show_special=True)
    assert lm.tok_encode("Once") == lm.tok_encode(text + "Once") == [bos, *lm.tok_encode("Once", False)]


def flat(value):
    if isinstance(value, (list, tuple)):
        return [inner for item in value for inner in flat(item)]
    return [value]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_scores_equal_transformers(tasks, model, served, reference, name, chat):
    if chat and name == "stories_rolling":
        pytest.skip("a text is no conversation")
    remote = {"base_url": served + "/v1/completions", "model": "stories", "max_length": 256, "num_concurrent": 2}
    if chat:
        # With its remote tokenizer, lm-eval hands on messages in place of the text of the template.
        remote |= {"tokenizer_backend": "huggingface", "tokenizer": str(model)}
    metrics, said = evaluate(tasks, name, "local-completions", remote, chat)
    expected, expected_said = evaluate(tasks, name, reference.lm, None, chat)
    print(name, chat, metrics, expected, said, expected_said)
    assert [request for request, _ in said] == [request for request, _ in expected_said]
    for (request, ours), (_, theirs) in zip(said, expected_said, strict=True):
        assert is_possible(reference, request, theirs), (request, theirs)
        assert is_possible(reference, request, ours), (request, ours, theirs)
    if name == "stories_rolling":
        # The perplexity is a function of the sum of all log-likelihoods.
        sums = [sum(float(answer) for _, answer in answers) for answers in (said, expected_said)]
        ratio = sums[0] / sums[1]
        expected = {
            key: value * ratio if key.startswith("bits") else value**ratio for key, value in expected.items()
        }
    assert metrics == pytest.approx(expected, rel=1e-9)


def test_chats_are_evaluated(tasks, served):
    remote = {"base_url": served + "/v1/chat/completions", "model": "stories", "num_concurrent": 1}
    _, said = evaluate(tasks, "stories_generate", "local-chat-completions", remote, True)
    assert len(said) == len(STORIES) and all(isinstance(text, str) for _, text in said)


def test_guidellm_measures(model, served, tmp_path):
    report = tmp_path / "report.json"
    program = pathlib.Path(sys.executable).parent / "guidellm"
    command = [program, "run", "--backend", f"kind=openai_http,target={served},model=stories"]
    command += ["--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=3"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={model}", "--disable-console"]
    command += ["--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=8", "--output", f"kind=json,path={report}"]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path)
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["successful"] == 3 and totals["errored"] == 0, totals
