"""The chat page at / in headless Chromium.

Every page of these tests must end without a script error, a violation of the page's policy, or a request to another host.
With SCREENSHOTS=FOLDER the tests save screenshots there.
"""

import hashlib
import html.parser
import itertools
import json
import os
import pathlib
import re
import shutil
import urllib.parse

import pytest
from conftest import PATIENCE, ROOT, WEATHER, Server, wait_until
from markdown_it import MarkdownIt
from playwright.sync_api import expect, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# Nothing that sends requests of its own, and no sandbox, because the tests may run as root.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]
PATIENCE_MS = PATIENCE * 1000
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
CHAT = "**/v1/chat/completions"
# A model that thinks, and its token that opens the thinking.
THINKER, THINK = ROOT / "tests/data/golden-group/qwen35-ptq1_0-rot512-part/model.gguf", "411"


@pytest.fixture(scope="module")
def server():
    with Server("--ctx-size", "8192") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(server, browser):
    """Opens the page in a new window, or in a new tab of `beside`. At the end nothing may have gone wrong in any of them."""
    contexts, wrong = [], []

    def open_page(url=server.url, beside=None, **options):
        if beside is None:
            contexts.append(browser.new_context(**({"viewport": DESK} | options)))
        page = (beside.context if beside else contexts[-1]).new_page()
        page.set_default_timeout(PATIENCE_MS)
        host = urllib.parse.urlsplit(url).netloc

        def requested(request):
            if not request.url.startswith("blob:") and urllib.parse.urlsplit(request.url).netloc != host:
                wrong.append(f"requested {request.url}")

        def logged(message):
            # Chromium logs each response with an error status.
            if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
                wrong.append(message.text)

        page.on("request", requested)
        page.on("console", logged)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def show(page, name):
    if folder := os.environ.get("SCREENSHOTS"):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png")


def button(scope, name):
    return scope.get_by_role("button", name=name, exact=True)


def set_up(page, **values):
    button(page, "Settings").click()
    for name, value in values.items():
        page.locator(f"dialog [name={name}]").fill(str(value))
    button(page, "Done").click()


def say(page, text):
    page.locator("#prompt").fill(text)
    button(page, "Send").click()


def answers(page):
    return page.locator("article.assistant[data-done] .answer")


def expect_answers(page, count):
    expect(answers(page)).to_have_count(count, timeout=PATIENCE_MS)


def chunk(finish_reason=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def stream(*chunks, is_whole=True):
    """A streamed answer as a response that Playwright gives to the page."""
    events = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"] * is_whole
    return {"headers": {"content-type": "text/event-stream"}, "body": "".join(f"data: {event}\n\n" for event in events)}


def respond(page, *responses, url=CHAT):
    """Gives the page these responses, in order, instead of the server's."""

    def fulfil(response):
        return lambda route: route.fulfill(**response)

    for response in reversed(responses):
        page.route(url, fulfil(response), times=1)


def error(status, message, **headers):
    return {"status": status, "headers": headers, "json": {"error": {"message": message}}}


def change(page, **fields):
    """Changes the page's requests for answers on their way."""
    page.route(CHAT, lambda route: route.continue_(post_data=json.dumps(route.request.post_data_json | fields)))


# Answers


def test_an_answer_is_streamed_and_timed(open_page):
    page = open_page()
    expect(page.locator("#model")).to_have_text("stories")
    show(page, "light-empty")
    set_up(page, seed=1, max_tokens=120, temperature=0.8)
    with page.expect_response(CHAT) as response:
        say(page, "Once upon a time")
    assert response.value.header_value("content-type").startswith("text/event-stream")
    expect_answers(page, 1)
    expect(page.locator("article.assistant .note")).to_have_text(
        re.compile(r"^120 tokens · \d+\.\d tokens/s · first after \d+\.\d\d s · cut off at the maximum of tokens$")
    )
    with page.expect_request(CHAT) as request:
        say(page, "The next day")
    expect_answers(page, 2)
    show(page, "light")
    sent = [(message["role"], message["content"]) for message in request.value.post_data_json["messages"]]
    first = answers(page).first.inner_text()
    assert [role for role, _ in sent] == ["user", "assistant", "user"]
    assert sent[1][1].split() == first.split()


def test_a_seed_gives_the_same_answer_and_another_seed_another_one(open_page):
    texts = []
    for seed in (1, 1, 2):
        page = open_page()
        set_up(page, seed=seed, max_tokens=40, temperature=1)
        say(page, "Once upon a time")
        expect_answers(page, 1)
        texts.append(answers(page).inner_text())
    assert texts[0] == texts[1] != texts[2] and texts[0]


@pytest.mark.parametrize("by_keyboard", [False, True])
def test_stop_stops_the_server_too(open_page, server, by_keyboard):
    page = open_page()
    # A story would be over too soon.
    change(page, ignore_eos=True, max_tokens=7000)
    say(page, "Once upon a time")
    expect(page.locator("article.assistant .note")).to_contain_text("tokens/s", timeout=PATIENCE_MS)
    if by_keyboard:
        page.keyboard.press("Escape")
    else:
        button(page, "Stop").click()
    expect(page.locator("article.assistant .note")).to_contain_text("stopped")
    running = 'vllm:num_requests_running{model_name="stories",engine="0"}'
    for _ in itertools.takewhile(lambda _: server.metrics()[running] > 0, range(PATIENCE * 10)):
        page.wait_for_timeout(100)
    assert server.metrics()[running] == 0
    page.unroute(CHAT)
    set_up(page, max_tokens=5)
    say(page, "The dog")
    expect_answers(page, 2)


def test_an_answer_is_regenerated_and_its_versions_stay(open_page):
    page = open_page()
    set_up(page, seed=1, max_tokens=20)
    say(page, "Once upon a time")
    expect_answers(page, 1)
    first = answers(page).inner_text()
    button(page, "Regenerate").click()
    expect(page.locator(".assistant .versions")).to_contain_text("2 of 2", timeout=PATIENCE_MS)
    expect_answers(page, 1)
    assert answers(page).inner_text() == first, "the seed is the same"
    set_up(page, seed=2)
    button(page, "Regenerate").click()
    expect(page.locator(".assistant .versions")).to_contain_text("3 of 3", timeout=PATIENCE_MS)
    expect_answers(page, 1)
    third = answers(page).inner_text()
    assert third != first
    button(page, "Earlier version").click()
    expect(page.locator(".versions")).to_contain_text("2 of 3")
    expect(answers(page)).to_have_text(first, use_inner_text=True)
    button(page, "Later version").click()
    expect(answers(page)).to_have_text(third, use_inner_text=True)


def test_an_earlier_message_is_edited_and_its_versions_stay(open_page):
    page = open_page()
    set_up(page, seed=1, max_tokens=10)
    for count, text in enumerate(["First", "Second"], 1):
        say(page, text)
        expect_answers(page, count)
    button(page.locator("article.user").first, "Edit").click()
    box = page.get_by_role("textbox", name="Edit the message")
    assert box.input_value() == "First"
    box.press("Escape")
    expect(page.locator("article.user .text").first).to_have_text("First")
    button(page.locator("article.user").first, "Edit").click()
    box.fill("Changed")
    with page.expect_request(CHAT) as request:
        box.press("Enter")
    assert request.value.post_data_json["messages"] == [{"role": "user", "content": "Changed"}]
    expect(page.locator("article.user .text")).to_have_text(["Changed"])
    expect_answers(page, 1)
    button(page, "Earlier version").click()
    expect(page.locator("article.user .text")).to_have_text(["First", "Second"])
    expect_answers(page, 2)


def test_thinking_is_folded_and_counted(open_page):
    with Server("-m", str(THINKER), "--ctx-size", "512") as server:
        page = open_page(server.url)
        # The model repeats the tag: three times in its thinking, and then in its answer.
        change(page, logit_bias={THINK: 100}, temperature=0, max_tokens=12, thinking_token_budget=3)
        say(page, "Hi")
        expect_answers(page, 1)
        thought = page.locator("details.thought")
        expect(thought.locator("summary")).to_have_text("Thought, 6 tokens")
        expect(thought.locator("div")).to_be_hidden()
        show(page, "thinking-folded")
        thought.locator("summary").click()
        expect(thought.locator("div")).to_have_text("<think>" * 3)
        expect(answers(page)).to_have_text("<think>" * 4)
        # Without thinking.
        button(page, "Settings").click()
        page.get_by_label("Thinking").select_option("off")
        button(page, "Done").click()
        with page.expect_request(CHAT) as request:
            say(page, "Hi again")
        body = request.value.post_data_json
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        # What the model thought is not sent again.
        assert "reasoning_content" not in body["messages"][1]
        expect_answers(page, 2)
        expect(page.locator("article.assistant").last.locator("details")).to_be_hidden()


def test_tool_calls_are_shown_and_the_reader_writes_their_results(open_page):
    page = open_page()
    set_up(page, tools=json.dumps([WEATHER]), max_tokens=100, seed=1)
    change(page, tool_choice="required")
    with page.expect_request(CHAT) as request:
        say(page, "What is the weather?")
    assert request.value.post_data_json["tools"] == [WEATHER]
    expect(page.locator("article.assistant[data-done]")).to_have_count(1, timeout=PATIENCE_MS)
    call = page.get_by_role("group", name="Call of get_weather")
    expect(call).to_contain_text("Calls the tool get_weather")
    arguments = call.locator("code").inner_text()
    assert sorted(json.loads(arguments)) == ["city", "days"] and arguments.count("\n") == 3, arguments
    show(page, "tool-call")
    page.unroute(CHAT)
    box = page.get_by_role("textbox", name="Result of get_weather")
    box.fill("Rain")
    with page.expect_request(CHAT) as request:
        box.press("Enter")
    question, calling, result = request.value.post_data_json["messages"]
    called = calling["tool_calls"][0]["function"]
    assert called["name"] == "get_weather" and json.loads(called["arguments"]) == json.loads(arguments)
    assert question["role"] == "user"
    assert result == {"role": "tool", "tool_call_id": calling["tool_calls"][0]["id"], "content": "Rain"}
    expect(page.get_by_role("article", name="Result of get_weather")).to_contain_text("Rain")
    expect(page.locator("article.assistant[data-done]")).to_have_count(2, timeout=PATIENCE_MS)


# Errors


def test_an_invalid_setting_is_named_and_the_next_message_is_sent(open_page):
    page = open_page()
    set_up(page, temperature=-1)
    say(page, "Once")
    expect(page.locator(".problem")).to_contain_text("temperature")
    set_up(page, temperature=1, max_tokens=5)
    button(page, "Try again").click()
    expect(page.locator(".problem")).to_be_hidden()
    expect_answers(page, 1)
    expect(page.locator(".versions")).to_have_count(0)


@pytest.mark.parametrize(
    "response, words",
    [
        (error(429, "128 requests are waiting.", **{"Retry-After": "7"}),
         "The server is busy: 128 requests are waiting. Try again in 7 s."),
        (error(503, "The model is being loaded.", **{"Retry-After": "5"}),
         "The server is not ready: The model is being loaded. Try again in 5 s."),
        ({"status": 502, "body": "<html>a proxy</html>"}, "The server answered with status 502."),
        (stream(chunk(content="Once"), {"error": {"message": "The engine failed."}}), "The engine failed."),
        (stream(chunk(content="Once"), is_whole=False), "The connection broke before the answer was complete."),
    ],
)
def test_a_problem_is_shown_in_words_and_the_message_is_not_lost(open_page, response, words):
    page = open_page()
    respond(page, response)
    say(page, "Tell me")
    expect(page.locator(".problem")).to_have_text(words)
    expect(page.locator("#status")).to_have_text(words)
    expect(page.locator("article.user .text")).to_have_text("Tell me")
    if "Once" in response.get("body", ""):
        expect(answers(page)).to_have_text("Once")
    show(page, "problem")
    respond(page, stream(chunk(content="Better."), chunk("stop")))
    button(page, "Try again").click()
    expect(answers(page)).to_have_text("Better.")


def test_a_message_without_an_answer_is_sent_with_the_next_one(open_page):
    page = open_page()
    respond(page, error(503, "The server stops."))
    say(page, "One")
    expect(page.locator(".problem")).to_be_visible()
    respond(page, stream(chunk(content="Yes."), chunk("stop")))
    with page.expect_request(CHAT) as request:
        say(page, "Two")
    assert request.value.post_data_json["messages"] == [{"role": "user", "content": "One\n\nTwo"}]
    expect(answers(page).last).to_have_text("Yes.")


def test_a_missing_server_is_shown_in_words(open_page):
    page = open_page()
    page.route(CHAT, lambda route: route.abort("connectionrefused"), times=1)
    say(page, "Tell me")
    expect(page.locator(".problem")).to_have_text("The server does not answer. Is it running?")


def test_the_page_waits_for_a_model_that_is_loading(open_page, server, browser):
    page = open_page()
    expect(page.locator("#model")).to_have_text("stories")
    respond(page, error(503, "The model is being loaded.", **{"Retry-After": "1"}), url="**/v1/models")
    page.reload()
    expect(page.locator("#model")).to_have_text("The model is loading…")
    expect(page.locator("#model")).to_have_text("stories")


def test_a_key_is_asked_for_and_kept_only_in_the_tab(open_page, tmp_path):
    (tmp_path / "keys").write_text(hashlib.sha256(b"secret").hexdigest() + " alice\n")
    with Server("--api-key-file", str(tmp_path / "keys")) as server:
        page = open_page(server.url)
        expect(page.locator("#key-form")).to_contain_text("This server needs an API key.")
        expect(page.locator("#key")).to_be_focused()
        show(page, "key")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-form")).to_contain_text("The server does not accept this API key.")
        page.locator("#key").fill("secret")
        button(page, "Use key").click()
        expect(page.locator("#key-form")).to_be_hidden()
        expect(page.locator("#model")).to_have_text("stories")
        set_up(page, max_tokens=5)
        say(page, "Once")
        expect_answers(page, 1)
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
        page.reload()
        expect(page.locator("#model")).to_have_text("stories")
        other = open_page(server.url, beside=page)
        expect(other.locator("#key-form")).to_be_visible()
        button(page, "Settings").click()
        button(page, "Forget the API key").click()
        expect(page.locator("#key-form")).to_be_visible()


# Settings


def test_settings_are_sent_and_kept(open_page):
    page = open_page()
    values = {"temperature": 0, "seed": 7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "max_tokens": 3}
    set_up(page, system="Be brief.", **values)
    with page.expect_request(CHAT) as request:
        say(page, "Once")
    body = request.value.post_data_json
    assert {name: body[name] for name in values} == values
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once"}]
    expect_answers(page, 1)
    page.reload()
    button(page, "Settings").click()
    assert page.locator("dialog [name=seed]").input_value() == "7"
    show(page, "settings")
    button(page, "Reset").click()
    button(page, "Done").click()
    with page.expect_request(CHAT) as request:
        say(page, "Once")
    body = request.value.post_data_json
    assert not values.keys() & body.keys() and body["messages"][0]["role"] == "user"


def test_empty_settings_show_what_the_server_chooses(open_page):
    with Server("--temp", "0.25", "--top-k", "17") as server:
        page = open_page(server.url)
        expect(page.locator("[name=temperature]")).to_have_attribute("placeholder", "0.25")
        expect(page.locator("[name=top_k]")).to_have_attribute("placeholder", "17")


def test_tools_that_are_no_list_are_not_taken(open_page):
    page = open_page()
    button(page, "Settings").click()
    page.locator("[name=tools]").fill("{not json")
    button(page, "Done").click()
    expect(page.locator("#settings")).to_be_visible()
    assert page.locator("[name=tools]").evaluate("field => field.validationMessage") == "This is not a list in JSON."
    page.keyboard.press("Escape")
    with page.expect_request(CHAT) as request:
        say(page, "Once")
    assert "tools" not in request.value.post_data_json


def test_a_model_is_chosen_and_the_choice_is_kept(open_page):
    page = open_page()
    expect(page.get_by_label("Model", exact=True)).to_be_hidden()
    models = [{"id": "small", "status": {"value": "loaded"}}, {"id": "large", "status": {"value": "unloaded"}}]
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": models}))
    asked = []
    page.on("request", lambda request: asked.append(request.url.split("/")[-1]))
    with page.expect_response("**/props?model=small"):
        page.reload()
    choice = page.get_by_label("Model", exact=True)
    expect(choice.locator("option")).to_have_text(["small", "large (not loaded)"])
    choice.select_option("large")
    page.reload()
    expect(choice).to_have_value("large")
    respond(page, stream(chunk(content="Hello."), chunk("stop")))
    with page.expect_request(CHAT) as request:
        say(page, "Hi")
    assert request.value.post_data_json["model"] == "large"
    assert "props?model=large" not in asked, "the server would load the model"
    expect(page.locator("article.assistant .note")).to_contain_text("large")
    expect(page.get_by_role("article", name="Answer of large")).to_be_visible()
    show(page, "models")


def brightness(page):
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def test_dark_is_dark_and_can_be_chosen(open_page):
    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    assert brightness(light) > 600 and brightness(dark) < 150
    button(dark, "Light or dark").click()
    assert brightness(dark) > 600
    dark.reload()
    assert brightness(dark) > 600, "the choice is kept"
    button(dark, "Light or dark").click()
    set_up(dark, seed=1, max_tokens=120)
    say(dark, "Once upon a time")
    expect_answers(dark, 1)
    show(dark, "dark")


# Conversations


def titles(page):
    return page.locator("#list a")


def start(page, text, answer="Yes."):
    """Starts a conversation with a message and its answer."""
    page.locator("#new").click()
    respond(page, stream(chunk(content=answer), chunk("stop")))
    say(page, text)
    expect(answers(page)).to_have_text([answer.replace("*", "")])


def test_conversations_are_kept_over_a_reload(open_page):
    page = open_page()
    expect(titles(page)).to_have_count(0)
    start(page, "About dogs", "Dogs **bark**.")
    start(page, "About cats")
    expect(titles(page)).to_have_text(["About cats", "About dogs"])
    expect(page).to_have_title("About cats – BitNet.rs")
    page.reload()
    expect(answers(page)).to_have_text(["Yes."])
    expect(titles(page)).to_have_text(["About cats", "About dogs"])
    titles(page).last.click()
    expect(page.locator("article.user .text")).to_have_text("About dogs")
    expect(answers(page).locator("strong")).to_have_text("bark")
    page.go_back()
    expect(page.locator("article.user .text")).to_have_text("About cats")
    show(page, "conversations")
    # The page without an address of a conversation starts a new one.
    page.goto(page.url.split("#")[0])
    page.reload()
    expect(page.locator("article")).to_have_count(0)
    expect(titles(page)).to_have_count(2)


def test_an_answer_under_way_is_kept_as_far_as_it_is(open_page):
    page = open_page()
    change(page, ignore_eos=True, max_tokens=7000)
    say(page, "Once upon a time")
    expect(page.locator("article.assistant .note")).to_contain_text(re.compile(r"\d{3,} tokens"), timeout=PATIENCE_MS)
    page.reload()
    expect(page.locator(".problem")).to_have_text("The page was closed before the answer was complete.")
    assert len(answers(page).inner_text()) > 20


def test_an_answer_goes_on_while_another_conversation_is_shown(open_page):
    page = open_page()
    change(page, ignore_eos=True, max_tokens=300, seed=1)
    say(page, "Once upon a time")
    expect(button(page, "Stop")).to_be_visible()
    page.locator("#new").click()
    expect(button(page, "Send")).to_be_visible()
    expect(page.locator("article")).to_have_count(0)
    titles(page).click()
    expect_answers(page, 1)
    expect(page.locator("article.assistant .note")).to_contain_text("300 tokens")


def test_a_conversation_is_renamed_exported_and_deleted(open_page):
    page = open_page()
    start(page, "About dogs", "They bark.")
    button(page, "Rename: About dogs").click()
    page.get_by_role("textbox", name="Title").fill("Animals")
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["Animals"])
    expect(button(page, "Rename: Animals")).to_be_focused()
    expect(page).to_have_title("Animals – BitNet.rs")
    with page.expect_download() as download:
        button(page, "Export: Animals").click()
    assert download.value.suggested_filename == "Animals.json"
    exported = json.loads(pathlib.Path(download.value.path()).read_text())
    assert exported["title"] == "Animals"
    assert exported["messages"] == [{"role": "user", "content": "About dogs"}, {"role": "assistant", "content": "They bark."}]
    start(page, "About cats")
    with page.expect_download() as download:
        button(page, "Export all").click()
    exported = json.loads(pathlib.Path(download.value.path()).read_text())
    assert sorted(conversation["title"] for conversation in exported) == ["About cats", "Animals"]
    button(page, "Delete: About cats").click()
    button(page.locator("dialog"), "Cancel").click()
    expect(titles(page)).to_have_count(2)
    button(page, "Delete: About cats").click()
    button(page.locator("dialog"), "Delete").click()
    expect(titles(page)).to_have_text(["Animals"])
    expect(page.locator("article")).to_have_count(0)
    page.reload()
    expect(titles(page)).to_have_text(["Animals"])
    button(page, "Delete all").click()
    button(page.locator("dialog"), "Delete").click()
    expect(titles(page)).to_have_count(0)
    page.reload()
    expect(page.locator("#model")).to_have_text("stories")
    expect(titles(page)).to_have_count(0)


def test_two_tabs_lose_nothing_of_each_other(open_page):
    page = open_page()
    start(page, "About dogs")
    other = open_page(page.url, beside=page)
    expect(answers(other)).to_have_text(["Yes."])
    # A finished answer in one tab appears in the other.
    respond(other, stream(chunk(content="Loudly."), chunk("stop")))
    say(other, "Do they bark?")
    expect(answers(page)).to_have_text(["Yes.", "Loudly."])
    # Both tabs change the conversation at once: one change goes into a copy.
    button(page.locator("article.user").last, "Edit").click()
    respond(other, stream(chunk(content="Mice."), chunk("stop")))
    say(other, "What do cats eat?")
    expect(answers(other)).to_have_text(["Yes.", "Loudly.", "Mice."])
    respond(page, stream(chunk(content="Softly."), chunk("stop")))
    page.get_by_role("textbox", name="Edit the message").fill("Do they sing?")
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["About dogs (copy)", "About dogs"])
    expect(answers(page)).to_have_text(["Yes.", "Softly."])
    other.reload()
    expect(answers(other)).to_have_text(["Yes.", "Loudly.", "Mice."])


# Markdown

SAMPLES = [
    "Plain text with *one*, **two** and ***three*** stars, _under_ and __lines__, snake_case_words and 2 * 3 * 4.",
    "**Note:** ~~old~~ `code` and ``two ` ticks``, an open ` tick and an open **star",
    "*a **b** c* **a *b* c** *a*b*c* **a*b** *a**b*",
    "# One\n## Two ##\n### `code` in it\n#### Four\n##### Five\n###### Six\n####### Seven\n#No space",
    "A line\nand another  \nand a third\\\nand a fourth",
    "Above\n\n---\n\n***\n\n- - -\n\nbelow\n***\nthe end",
    "- one\n- two\n  - nested\n    - deeper\n- three\n\n* other list\n+ and another",
    "1. one\n2. two\n   - nested\n   - again\n3. three\n\n   A second paragraph.\n\n4. four",
    "5) five\n6) six\n\n7. seven",
    "Steps:\n1. first\n2. second\nstill second",
    "- loose\n\n- items\n\n- here",
    "-\n- after an empty item\n- ",
    "1. one\n```sh\necho \"*hi*\" && ls\n```\n2. two",
    "- item\n  ```py\n  def f():\n      return 1\n  ```\n  after",
    "```\nno language\n\n  indented <b>\n```\n~~~ text\n```\n~~~",
    "````md\n```\ninner\n```\n````\ntext",
    "```rust\nfn open() {",
    "    indented code\n\n    goes on\n\nback",
    "> quote\n> goes on\nlazily\n\n> another\n> > nested\n>\n> - list\n> - of it",
    "> ```\n> code\n> ```\nafter",
    "| a | b |\n|---|:-:|\n| 1 | `x` |\n| left \\| right | **bold** |",
    "a | b\n--: | :--\n1 | 2\n\nno table",
    "| not | a table |\n| 1 | 2 |",
    "Text before\n| a |\n|---|\n| 1 |",
    "[link](https://example.org/a_b \"title\") and [**bold** `code`](<https://example.org/x>) and <https://example.org/?a=1&b=2>",
    "[not](closed and [brackets] and [nested [link](https://example.org/)]",
    "[parentheses](https://example.org/a_(b)) end",
    "\\*not emphasis\\* \\# \\[no\\](link) \\\\ &amp; &lt;b&gt; &#42; &unknown;",
    "<b>bold</b> <!-- comment --> <script>alert(1)</script> 1 < 2 & 3 > 2",
    "日本語の**強調**と`コード`。\n\n- 項目",
]
REFERENCE = (
    MarkdownIt("commonmark", {"breaks": True, "html": False})
    .enable(["table", "strikethrough"])
    .disable(["lheading", "html_block", "html_inline", "reference", "image"])
)
# Reads texts with the page's reader: whole, and as texts that grow by `step` characters.
READ = """async ([texts, step]) => {
    const { parse, GrowingText } = await import('/page/markdown.js');
    return texts.map(text => {
        const growing = new GrowingText(), blocks = [];
        for (let end = step; end < text.length + step; end += step) {
            const first = growing.numFinal;
            blocks.splice(first, Infinity, ...growing.update(text.slice(0, end)));
        }
        return [parse(text), blocks];
    });
}"""


class Tree(html.parser.HTMLParser):
    """HTML as the tree that the page's reader makes of its Markdown."""

    def __init__(self, text):
        super().__init__()
        self.root = {"tag": "root", "children": []}
        self.open = [self.root]
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        node = {"tag": {"s": "del"}.get(tag, tag), "children": []}
        if tag == "a":
            node |= {"href": values["href"], "title": values.get("title", "")}
        if tag == "ol":
            node["start"] = int(values.get("start", 1))
        if tag in ("td", "th"):
            node["align"] = values.get("style", "").removeprefix("text-align:")
        if tag == "pre":
            node["language"] = ""
        if tag == "code" and self.open[-1]["tag"] == "pre":
            self.open[-1]["language"] = values.get("class", "").removeprefix("language-")
            return
        self.open[-1]["children"].append(node)
        if tag not in ("br", "hr"):
            self.open.append(node)

    def handle_endtag(self, tag):
        if tag not in ("br", "hr") and not (tag == "code" and self.open[-1]["tag"] == "pre"):
            self.open.pop()

    def handle_data(self, text):
        children = self.open[-1]["children"]
        if self.open[-1]["tag"] == "pre":
            children.append(text.removesuffix("\n"))
        elif text := text.strip("\n"):
            children.append(text)


@pytest.mark.parametrize("step", [1, 2, 7])
def test_markdown_is_read_as_the_reference_reads_it_whole_or_in_pieces(open_page, step):
    page = open_page()
    for sample, (whole, pieces) in zip(SAMPLES, page.evaluate(READ, [SAMPLES, step]), strict=True):
        expected = Tree(REFERENCE.render(sample)).root["children"]
        assert whole == expected, sample
        assert pieces == expected, sample


@pytest.mark.parametrize(
    "text, expected",
    [
        # Two spaces nest below any item.
        ("1. one\n  - two", [{"tag": "ol", "start": 1, "children": [{"tag": "li", "children": [
            "one", {"tag": "ul", "children": [{"tag": "li", "children": ["two"]}]}]}]}]),
        ("- [x] done\n- [ ] open", [{"tag": "ul", "children": [
            {"tag": "li", "isDone": True, "children": ["done"]}, {"tag": "li", "isDone": False, "children": ["open"]}]}]),
        ("See https://example.org/a_(b). End", [{"tag": "p", "children": [
            "See ", {"tag": "a", "href": "https://example.org/a_(b)", "title": "", "children": ["https://example.org/a_(b)"]},
            ". End"]}]),
        # A picture would be a request to another host.
        ("![alt](https://example.org/p.png)", [{"tag": "p", "children": [
            {"tag": "a", "href": "https://example.org/p.png", "title": "", "children": ["alt"]}]}]),
        # Only the web and mail.
        ("[a](javascript:alert(1)) [b](data:text/html,x) [c](/relative)", [{"tag": "p", "children": [
            "[a](javascript:alert(1)) [b](data:text/html,x) [c](/relative)"]}]),
        ("Above\n---", [{"tag": "p", "children": ["Above"]}, {"tag": "hr", "children": []}]),
    ],
)
def test_answers_of_models_read_better_than_the_reference_reads_them(open_page, text, expected):
    [[whole, pieces]] = open_page().evaluate(READ, [[text], 1])
    assert whole == pieces == expected


def test_nesting_is_bounded(open_page):
    [[whole, _]] = open_page().evaluate(READ, [["> " * 40 + "deep"], 100])
    depth = 0
    while isinstance(whole[0], dict):
        depth, whole = depth + 1, whole[0]["children"]
    assert depth == 17 and whole[0].endswith("> deep"), "16 quotes and a paragraph"


HOSTILE = """<script>document.title = 'bad'</script> <img src=x onerror="document.title = 'bad'"> <style>* { display: none }</style>

[click](javascript:document.title='bad') [tab](java\tscript:alert(1)) <javascript:alert(1)> ![pixel](https://example.org/p.png)

```html" onmouseover="alert(1)
</code></pre><script>document.title = 'bad'</script>
```

| <iframe src="https://example.org/"></iframe> | <svg onload=alert(1)> |
|---|---|
| <a href="javascript:alert(1)">a</a> | [x](https://example.org/"onclick="alert(1)) |
"""


def test_hostile_markdown_stays_text(open_page):
    page = open_page()
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "<b>f</b>", "arguments": "<img src=x>"}}
    respond(page, stream(chunk(reasoning_content=HOSTILE), chunk(content=HOSTILE), chunk(tool_calls=[call]), chunk("stop")))
    say(page, HOSTILE)
    expect(page.locator("article.assistant[data-done]")).to_have_count(1, timeout=PATIENCE_MS)
    page.locator("summary").click()
    show(page, "hostile")
    tags = page.evaluate("[...new Set([...document.querySelectorAll('#log *')].map(e => e.localName))].sort()")
    assert set(tags) <= {
        "a", "article", "br", "button", "code", "details", "div", "p", "pre", "span", "strong", "summary", "table", "tbody", "td",
        "th", "thead", "tr",
    }
    names = page.evaluate("[...document.querySelectorAll('#log *')].flatMap(e => e.getAttributeNames())")
    assert not [name for name in names if name.startswith("on") or name in ("src", "style", "srcdoc")]
    links = page.evaluate("[...document.querySelectorAll('#log a')].map(a => [a.protocol, a.rel, a.target])")
    assert links and all(link == ["https:", "noopener noreferrer nofollow", "_blank"] for link in links)
    expect(answers(page)).to_contain_text("<script>document.title = 'bad'</script>")
    expect(page.locator(".call strong")).to_have_text("<b>f</b>")
    expect(page.locator("article.user .text")).to_have_text(HOSTILE.strip(), use_inner_text=True)
    assert "bad" not in page.title().split("–")[1]


def test_the_policy_forbids_html_and_other_scripts(browser, server):
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    blocked = page.evaluate(
        """async () => {
            const blocked = [];
            document.addEventListener('securitypolicyviolation', event => blocked.push(event.effectiveDirective));
            try { document.body.innerHTML = '<b>x</b>'; } catch { /* the policy forbids it */ }
            const script = document.createElement('script');
            try { script.textContent = 'document.title = "bad"'; } catch { /* the policy forbids it */ }
            const image = document.createElement('img');
            image.src = 'https://example.org/';
            document.body.append(image);
            await fetch('https://example.org/').catch(() => null);
            await new Promise(resolve => setTimeout(resolve));
            return [...new Set(blocked)].sort();
        }"""
    )
    assert blocked == ["connect-src", "img-src", "require-trusted-types-for"]
    context.close()


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_an_answer_and_a_block_of_code_can_be_copied(open_page, has_clipboard):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    if not has_clipboard:
        # As over plain HTTP from another machine.
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    text = "Run *this*:\n\n```sh\nls -l\n\techo <b>\n```"
    respond(page, stream(chunk(content=text), chunk("stop")))
    say(page, "How?")
    box = page.locator("#prompt")
    for name, expected in [("Copy the sh code", "ls -l\n\techo <b>"), ("Copy", text)]:
        shown = button(page.locator("article.assistant"), name)
        shown.click()
        expect(page.locator("#status")).to_have_text("Copied")
        box.fill("")
        box.focus()
        page.keyboard.press("Control+V")
        assert box.input_value() == expected


# Speed


def test_an_update_changes_only_the_last_block(open_page):
    page = open_page()
    text = "# Title\n\nA paragraph.\n\n" + "- an item\n" * 20 + "\n```py\n" + "x = 1\n" * 50
    changed = page.evaluate(
        """async text => {
            const { MarkdownView } = await import('/page/render.js');
            const box = document.createElement('div');
            const view = new MarkdownView(box);
            view.update(text);
            const blocks = [...box.children];
            const seen = [];
            const observer = new MutationObserver(records => seen.push(...records));
            observer.observe(box, { childList: true, characterData: true, subtree: true });
            for (let count = 1; count <= 100; count += 1) view.update(text + 'y = 2\\n'.repeat(count));
            seen.push(...observer.takeRecords());
            return {
                kinds: seen.map(record => record.type),
                isLast: seen.every(record => blocks.at(-1).contains(record.target)),
                same: blocks.every((block, i) => block === box.children[i]),
                lines: box.lastChild.querySelector('code').textContent.split('\\n').length,
            };
        }""",
        text,
    )
    assert changed == {"kinds": ["characterData"] * 100, "isLast": True, "same": True, "lines": 151}


# Answers with a stream that the test feeds: `feed(events)` and `finish()`.
FED = """() => {
    const encoder = new TextEncoder();
    const original = window.fetch;
    window.fetch = (path, options) => {
        if (!String(path).includes('chat/completions')) return original(path, options);
        const body = new ReadableStream({ start(controller) { window.controller = controller; } });
        options.signal.addEventListener('abort', () => window.controller.error(new DOMException('stopped', 'AbortError')));
        return Promise.resolve(new Response(body, { headers: { 'content-type': 'text/event-stream' } }));
    };
    window.feed = text => window.controller.enqueue(encoder.encode(
        'data: ' + JSON.stringify({ choices: [{ index: 0, delta: { content: text }, finish_reason: null }] }) + '\\n\\n'));
    window.finish = () => { window.controller.enqueue(encoder.encode('data: [DONE]\\n\\n')); window.controller.close(); };
}"""


def wait_for(page, condition):
    """Waits for a condition in JavaScript. Playwright's own wait needs an `eval`, which the page's policy forbids."""
    wait_until(condition, lambda: page.evaluate(condition))


def test_the_page_is_drawn_once_a_frame_however_many_tokens_come(open_page):
    page = open_page()
    page.evaluate(FED)
    say(page, "Go")
    wait_for(page, "window.controller !== undefined")
    draws, frames = page.evaluate(
        """async () => {
            const note = document.querySelector('article.assistant .note');
            let draws = 0, frames = 0, isOver = false;
            new MutationObserver(() => { draws += 1; }).observe(note, { childList: true, characterData: true, subtree: true });
            const count = () => { frames += 1; if (!isOver) requestAnimationFrame(count); };
            requestAnimationFrame(count);
            for (let burst = 0; burst < 20; burst += 1) {
                for (let token = 0; token < 100; token += 1) feed('word ');
                await new Promise(resolve => setTimeout(resolve, 5));
            }
            finish();
            while (!document.querySelector('article.assistant[data-done]')) await new Promise(resolve => setTimeout(resolve, 5));
            isOver = true;
            return [draws, frames];
        }"""
    )
    # One more at the end, and one for the frame that had begun.
    assert 1 <= draws <= frames + 2, (draws, frames)
    assert answers(page).inner_text().split() == ["word"] * 2000
    expect(page.locator("article.assistant .note")).to_contain_text("2000 tokens")


def test_the_end_stays_in_sight_unless_the_reader_scrolls_up(open_page):
    page = open_page()
    page.evaluate(FED)
    say(page, "Go")
    wait_for(page, "window.controller !== undefined")
    page.evaluate("for (let i = 0; i < 100; i += 1) feed(`line ${i}\\n\\n`)")
    latest = button(page, "Latest message")
    at_end = "document.getElementById('scroll').scrollHeight - document.getElementById('scroll').scrollTop < 2 * innerHeight"
    wait_for(page, f"document.querySelectorAll('.answer p').length === 100 && {at_end}")
    expect(latest).to_be_hidden()
    page.locator("#scroll").evaluate("area => { area.scrollTop = 100; }")
    expect(latest).to_be_visible()
    page.evaluate("feed('more\\n\\n')")
    wait_for(page, "document.querySelectorAll('.answer p').length === 101")
    assert page.locator("#scroll").evaluate("area => area.scrollTop") == 100
    latest.click()
    expect(latest).to_be_hidden()
    page.evaluate("finish()")
    expect_answers(page, 1)


# Readers


def test_a_screen_reader_hears_an_answer_once_and_not_each_token(open_page):
    page = open_page()
    live = page.evaluate("[...document.querySelectorAll('[aria-live], [role=status], [role=alert], [role=log]')].map(e => e.id)")
    assert live == ["status"]
    page.evaluate(FED)
    page.evaluate(
        """() => { window.heard = []; const status = document.getElementById('status');
        new MutationObserver(() => window.heard.push(status.textContent)).observe(status, { childList: true }); }"""
    )
    say(page, "Go")
    wait_for(page, "window.controller !== undefined")
    expect(page.locator("article.assistant")).to_have_attribute("aria-busy", "true")
    for word in ["One ", "**two** ", "three."]:
        page.evaluate("word => feed(word)", word)
        expect(answers(page).or_(page.locator("article.assistant .answer"))).to_contain_text(word.strip("* "))
    page.evaluate("finish()")
    expect_answers(page, 1)
    assert page.evaluate("heard") == ["The model answers.", "One two three."]
    expect(page.locator("article.assistant")).to_have_attribute("aria-busy", "false")
    for name in ("Your message", "Answer of stories"):
        expect(page.get_by_role("article", name=name)).to_be_visible()
    for role, name in [("navigation", "Conversations"), ("region", "Messages"), ("main", None), ("banner", None)]:
        expect(page.get_by_role(role, name=name)).to_be_visible()
    expect(page.get_by_role("heading", level=1, name="Go")).to_be_attached()
    unnamed = "[...document.querySelectorAll('button, a, input, textarea, select')].filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
    assert page.evaluate(unnamed) == []


def test_the_keyboard_is_enough(open_page):
    page = open_page()
    expect(page.locator("#prompt")).to_be_focused()
    respond(page, stream(chunk(content="Yes."), chunk("stop")))
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("Yes.")
    expect(page.locator("article.user .text")).to_have_text("One\ntwo", use_inner_text=True)
    expect(page.locator("#prompt")).to_be_focused()
    # Backwards through all that can be done; each place shows where the focus is.
    reached = []
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        name, outline = page.evaluate(
            "[document.activeElement.ariaLabel || document.activeElement.textContent.trim(),"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if reached and document_left(page):
            break
        assert outline != "none", name
        reached.append(name)
    assert reached[::-1] == [
        "Hide the conversations", "New conversation", "One", "Rename: One", "Export: One", "Delete: One", "Export all", "Delete all",
        "Light or dark", "Settings", "Messages", "Copy", "Edit", "Copy", "Regenerate",
    ]
    button(page, "Settings").press("Enter")
    expect(page.locator("[name=system]")).to_be_focused()
    page.keyboard.press("Escape")
    expect(button(page, "Settings")).to_be_focused()


def document_left(page):
    return page.evaluate("document.activeElement === document.body")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_is_enough(open_page, scheme):
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2, color_scheme=scheme)
    text = "# Wide\n\n" + "a" * 200 + "\n\n| " + "column | " * 12 + "\n|" + "---|" * 12 + "\n\n```\n" + "code " * 40 + "\n```"
    respond(page, stream(chunk(content=text), chunk("stop")))
    say(page, "Once upon a time there was a very long word: " + "a" * 200)
    expect_answers(page, 1)
    show(page, f"phone-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the screen"
    assert page.evaluate("document.getElementById('scroll').scrollWidth <= innerWidth")
    for name in ("Conversations", "New conversation", "Settings", "Send", "Light or dark"):
        box = button(page, name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] and box["height"] >= 36, name
    button(page, "Conversations").tap()
    expect(titles(page)).to_have_count(1)
    show(page, f"phone-conversations-{scheme}")
    # The messages below wait.
    assert page.locator("#page").evaluate("page => page.inert")
    page.keyboard.press("Escape")
    expect(titles(page)).to_be_hidden()
    button(page, "Conversations").tap()
    titles(page).tap()
    expect(titles(page)).to_be_hidden()
    button(page, "New conversation").tap()
    expect(page.locator("article")).to_have_count(0)
    button(page, "Settings").tap()
    box = page.locator("#settings").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] and box["height"] <= PHONE["height"]
    show(page, f"phone-settings-{scheme}")


def test_the_list_of_conversations_can_be_hidden(open_page):
    page = open_page()
    start(page, "About dogs")
    button(page, "Hide the conversations").click()
    expect(titles(page)).to_be_hidden()
    expect(button(page, "Conversations")).to_be_focused()
    page.reload()
    expect(titles(page)).to_be_hidden()
    button(page, "Conversations").click()
    expect(titles(page)).to_be_visible()


def test_a_browser_that_keeps_nothing_has_conversations_until_the_page_is_closed(browser, server):
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(window, 'indexedDB', { get() { throw new Error('forbidden'); } })")
    page = context.new_page()
    page.goto(server.url)
    expect(page.locator("#promise")).to_contain_text("This browser keeps no conversations.")
    start(page, "About dogs")
    start(page, "About cats")
    titles(page).last.click()
    expect(page.locator("article.user .text")).to_have_text("About dogs")
    context.close()
