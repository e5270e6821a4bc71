"""lm-eval and guidellm: scores through the server equal the scores of the same model in transformers."""

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


def evaluate(tasks, name, model, arguments, chat):
    """Metrics, and what the model said to each document."""
    answer = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=[name], task_manager=tasks, apply_chat_template=chat, bootstrap_iters=0
    )
    metrics = {key: value for key, value in answer["results"][name].items() if "," in key and "stderr" not in key}
    return metrics, [sample["resps"] for sample in answer["samples"][name]]


def flat(value):
    if isinstance(value, (list, tuple)):
        return [inner for item in value for inner in flat(item)]
    return [value]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_scores_equal_transformers(tasks, model, served, name, chat):
    if chat and name == "stories_rolling":
        pytest.skip("a text is no conversation")
    remote = {"base_url": served + "/v1/completions", "model": "stories", "max_length": 256, "num_concurrent": 2}
    if chat:
        # With its remote tokenizer, lm-eval hands on messages in place of the text of the template.
        remote |= {"tokenizer_backend": "huggingface", "tokenizer": str(model)}
    local = {"pretrained": str(model), "dtype": "float32", "device": "cpu", "max_length": 256, "add_bos_token": False}
    metrics, said = evaluate(tasks, name, "local-completions", remote, chat)
    expected, expected_said = evaluate(tasks, name, "hf", local, chat)
    print(name, chat, metrics, expected)
    assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        assert metrics[key] == value or metrics[key] == pytest.approx(value, rel=1e-4), key
    for ours, theirs in zip(flat(said), flat(expected_said), strict=True):
        is_number = isinstance(theirs, float)
        assert ours == (pytest.approx(theirs, abs=2e-3) if is_number else theirs)


def test_chats_are_evaluated(tasks, served):
    remote = {"base_url": served + "/v1/chat/completions", "model": "stories", "num_concurrent": 1}
    _, said = evaluate(tasks, "stories_generate", "local-chat-completions", remote, True)
    assert len(flat(said)) == len(STORIES) and all(isinstance(text, str) for text in flat(said))


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
