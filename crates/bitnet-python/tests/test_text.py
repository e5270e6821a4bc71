"""Texts, tokens, conversations and parameters: the same as the program's."""

import json
import pickle

import pytest

import bitnet


def test_the_text_is_the_programs(model, program):
    expected = program("run", "Once upon a time", "--seed", 7, "-n", 40, "--json")
    result = model.generate("Once upon a time", seed=7, max_tokens=40)
    assert result == expected["text"] and len(result) > 40
    assert result.tokens == expected["tokens"]
    assert result.prompt_tokens == expected["prompt_tokens"]
    assert result.finish_reason == expected["finish_reason"] == "length"
    assert result.seed == 7


def test_every_sampling_parameter_means_what_it_means_in_the_program(model, program):
    program_options = {
        "--temp": 1.3, "--top-k": 25, "--top-p": 0.9, "--min-p": 0.01, "--typical-p": 0.95,
        "--repeat-penalty": 1.2, "--repeat-last-n": 20, "--presence-penalty": 0.3,
        "--frequency-penalty": 0.2, "--logit-bias": "200-5",
    }  # fmt: skip
    arguments = [part for option in program_options.items() for part in option]
    expected = program("run", "The dog", "--seed", 3, "-n", 60, "--json", *arguments)
    result = model.generate(
        "The dog", seed=3, max_tokens=60, temperature=1.3, top_k=25, top_p=0.9, min_p=0.01,
        typical_p=0.95, repeat_penalty=1.2, repeat_last_n=20, presence_penalty=0.3,
        frequency_penalty=0.2, logit_bias={200: -5},
    )  # fmt: skip
    assert result.tokens == expected["tokens"]
    assert result.tokens != model.generate("The dog", seed=3, max_tokens=60).tokens


def test_prompts_together_give_the_texts_that_they_give_alone(model):
    prompts = [f"The {animal}" for animal in ("cat", "dog", "bird", "fish")] * 20
    together = model.generate(prompts, seed=1, max_tokens=12)
    alone = [model.generate(prompt, seed=1, max_tokens=12) for prompt in prompts[:4]]
    assert together == alone * 20
    assert len({result.text for result in alone}) > 1
    assert model.generate([]) == []


def test_tokens_are_a_prompt_like_their_text(model):
    import numpy

    tokens = model.tokenize("Once upon a time")
    text = model.generate("Once upon a time", seed=1, max_tokens=8)
    assert model.generate(tokens, seed=1, max_tokens=8) == text
    assert model.generate(numpy.array(tokens), seed=1, max_tokens=8) == text
    assert model.generate([tokens, tuple(tokens)], seed=1, max_tokens=8) == [text, text]


def test_a_result_is_its_text_everywhere(model):
    result = model.generate("Once", seed=2, max_tokens=10)
    assert f"{result}" == str(result) == result.text == result
    assert type(result.text) is str
    assert json.loads(json.dumps({"text": result})) == {"text": result.text}
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result and copy.tokens == result.tokens and copy.timings == result.timings


def test_timings_count_the_tokens(model):
    timings = model.generate("A prompt of its own to count", seed=2, max_tokens=10).timings
    assert timings.prompt_tokens == len(model.tokenize("A prompt of its own to count"))
    assert timings.generated_tokens == 10
    assert timings.prefill_s > 0 and timings.decode_s > 0 and timings.first_token_s > 0


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(model):
    text = model.generate("Once upon a time", seed=7, max_tokens=40)
    stop = text.text[15:20]
    for stops in (stop, [stop, "never in a story #"]):
        result = model.generate("Once upon a time", seed=7, max_tokens=40, stop=stops)
        assert result == text.text[: text.text.index(stop)]
        assert result.finish_reason == "stop"


def test_answers_are_random_without_a_seed_and_repeat_with_the_seed_drawn(model):
    results = model.generate(["Once"] * 6, max_tokens=30)
    assert len(set(results)) > 1
    assert model.generate("Once", max_tokens=30, seed=results[0].seed) == results[0]


def test_log_probabilities_follow_from_the_logits(model):
    import numpy

    result = model.generate("Once upon", seed=5, max_tokens=6, logprobs=3)
    logits = model.logits(result.prompt_tokens + result.tokens).astype(float)
    logprobs = logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))
    assert len(result.logprobs) == len(result.tokens) == 6
    for index, (token, found) in enumerate(zip(result.tokens, result.logprobs)):
        row = logprobs[len(result.prompt_tokens) - 1 + index]
        assert found.logprob == pytest.approx(row[token], abs=1e-4)
        assert [id for id, _ in found.top] == list(numpy.argsort(-row)[:3])
        assert [value for _, value in found.top] == pytest.approx(-numpy.sort(-row)[:3], abs=1e-4)
    assert model.generate("Once", max_tokens=2, logprobs=0).logprobs[0].top == []
    assert model.generate("Once", max_tokens=2).logprobs is None


def test_log_probabilities_of_a_prompt_follow_from_its_logits(model):
    import numpy

    tokens = model.tokenize("Once upon a time there was a dog. " * 20)  # several chunks
    logits = model.logits(tokens).astype(float)
    logprobs = logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))
    expected = logprobs[numpy.arange(len(tokens) - 1), tokens[1:]]
    options = {"max_tokens": 0, "prompt_logprobs": True, "logprobs": 1}
    result, again = model.generate([tokens, tokens], **options)
    assert result == "" and result.tokens == [] and result.prompt_logprobs[0] is None
    assert [one.logprob for one in result.prompt_logprobs[1:]] == pytest.approx(expected, abs=1e-4)
    best = [one.top[0][0] for one in result.prompt_logprobs[1:]]
    assert best == list(logits.argmax(axis=1)[:-1])
    assert again.prompt_logprobs == result.prompt_logprobs
    assert model.generate("Once", max_tokens=1).prompt_logprobs is None


def test_pieces_make_the_text(model):
    text = model.generate("Once upon a time", seed=7, max_tokens=40)
    stream = model.stream("Once upon a time", seed=7, max_tokens=40)
    pieces = list(stream)
    assert stream.seed == 7
    assert "".join(pieces) == text
    assert [piece.token for piece in pieces] == [*text.tokens, None]
    assert [piece.finish_reason for piece in pieces[-2:]] == [None, "length"]
    assert pieces[-1].timings.generated_tokens == 40
    assert list(stream) == []


def test_the_story_teller_continues_the_last_message(model, program):
    expected = program("chat", "--seed", 4, "-n", 20, "--json", text="Once upon a time\n")
    assert model.chat("Once upon a time", seed=4, max_tokens=20) == expected["text"]
    messages = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Once upon a time"}]
    assert model.chat(messages, seed=4, max_tokens=20) == expected["text"]
    assert "".join(model.stream(messages, seed=4, max_tokens=20)) == expected["text"]


def test_a_conversation_is_written_in_the_template_as_in_the_program(program):
    chat = bitnet.load(chat_template="llama3")
    arguments = ["--chat-template", "llama3", "--system", "Be brief.", "--seed", 4, "-n", 20]
    expected = program("chat", *arguments, "--json", text="Who are you?\n")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who are you?"},
    ]
    result = chat.chat(messages, seed=4, max_tokens=20)
    assert (result.prompt_tokens, result) == (expected["prompt_tokens"], expected["text"])


def test_a_template_gets_tools_and_variables(tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{{ tools[0].function.name }}/{{ mood }}/{{ messages[0].content }}")
    chat = bitnet.load(chat_template=template)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    result = chat.chat("Hi", tools=tools, template_variables={"mood": "calm"}, max_tokens=1)
    assert chat.detokenize(result.prompt_tokens) == "weather/calm/Hi"


def test_tokens_are_the_programs(model, program):
    for text in ("Once upon a time", "", "Ünïcödé 🦀 \n\n x", "<s> </s>"):
        expected = program("tokenize", text, "--json")["tokens"] if text else []
        found = model.tokenize(text)
        assert (found == expected) if text else len(found) <= 1, text
    with_bos = program("tokenize", "Hi", "--json")["tokens"]
    without = program("tokenize", "Hi", "--no-bos", "--json")["tokens"]
    assert model.tokenize("Hi") == with_bos and model.tokenize("Hi", bos=False) == without
    assert model.detokenize(without) == "Hi"


def test_repr_tells_what_the_model_is(model):
    text = repr(model)
    assert text.startswith("<bitnet.Model '") and "layers, context" in text and "threads)>" in text
    assert model.info["vocab_size"] > max(model.tokenize("Once upon a time"))
