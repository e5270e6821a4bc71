"""The page at /, in headless Chromium: chat, stop, settings, light and dark, a phone, and no other host is asked anything.

With SCREENSHOTS=FOLDER, what it looks like is left there.
"""

import json
import os
import pathlib
import re
import shutil
import urllib.parse

import pytest
from conftest import PATIENCE, Server
from playwright.sync_api import expect, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# It has no business with anybody; and no sandbox, for it may run as root.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]
PATIENCE_MS = PATIENCE * 1000
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


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
    """Opens the page in a window of its own; at the end, nothing may have gone wrong in it or to anybody else."""
    contexts, wrong = [], []

    def open_page(url=server.url, **options):
        context = browser.new_context(**({"viewport": DESK} | options))
        contexts.append(context)
        page = context.new_page()
        host = urllib.parse.urlsplit(url).netloc

        def asked(request):
            parts = urllib.parse.urlsplit(request.url)
            if parts.scheme != "data" and parts.netloc != host:
                wrong.append(f"asked {request.url}")

        page.on("request", asked)
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


def set_up(page, **values):
    page.get_by_role("button", name="Settings").click()
    for name, value in values.items():
        page.locator(f"dialog [name={name}]").fill(str(value))
    page.get_by_role("button", name="Done").click()


def say(page, text):
    page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("button", name="Send").click()


def answers(page):
    return page.locator("article.assistant[data-done] .text")


def test_a_conversation_is_streamed_and_timed(open_page):
    page = open_page()
    expect(page.locator("#model")).to_have_text("stories")
    show(page, "light-empty")
    set_up(page, seed=1, max_tokens=120, temperature=0.8)
    with page.expect_response("**/v1/chat/completions") as response:
        say(page, "Once upon a time")
    assert response.value.header_value("content-type").startswith("text/event-stream")
    expect(answers(page)).to_have_count(1, timeout=PATIENCE_MS)
    expect(page.locator("article.assistant .note")).to_contain_text("120 tokens")
    expect(page.locator("article.assistant .note")).to_contain_text("tokens/s")
    say(page, "The next day")
    expect(answers(page)).to_have_count(2, timeout=PATIENCE_MS)
    show(page, "light")
    # The last answer can be had again, which with a seed is the same.
    text = answers(page).last.inner_text()
    page.get_by_role("button", name="Again").click()
    expect(answers(page)).to_have_count(2, timeout=PATIENCE_MS)
    assert answers(page).last.inner_text() == text
    # What was said stands until there is a new conversation.
    expect(page.locator("article.user")).to_have_count(2)
    page.get_by_role("button", name="New").click()
    expect(page.locator("article")).to_have_count(0)


def test_a_seed_gives_the_same_answer_and_another_another(open_page):
    texts = []
    for seed in (1, 1, 2):
        page = open_page()
        set_up(page, seed=seed, max_tokens=40, temperature=1)
        say(page, "Once upon a time")
        expect(answers(page)).to_have_count(1, timeout=PATIENCE_MS)
        texts.append(answers(page).inner_text())
    assert texts[0] == texts[1] != texts[2] and texts[0]


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_an_answer_can_be_copied(open_page, has_clipboard):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    if not has_clipboard:
        # As over plain HTTP from another machine.
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    set_up(page, seed=1, max_tokens=10)
    say(page, "Once upon a time")
    page.get_by_role("button", name="Copy").click(timeout=PATIENCE_MS)
    expect(page.get_by_role("button", name="Copied", exact=True)).to_be_visible()
    box = page.get_by_role("textbox", name="Message")
    box.focus()
    page.keyboard.press("Control+V")
    assert box.input_value().strip() == answers(page).inner_text().strip()


def test_settings_are_sent_and_kept(open_page):
    page = open_page()
    set_up(page, system="Be brief.", temperature=0, seed=7, top_p=0.9, top_k=40, min_p=0.05, max_tokens=3)
    with page.expect_request("**/v1/chat/completions") as request:
        say(page, "Once")
    body = request.value.post_data_json
    expected = {"temperature": 0, "seed": 7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 3, "stream": True}
    assert {name: body[name] for name in expected} == expected
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    expect(answers(page)).to_have_count(1, timeout=PATIENCE_MS)
    page.reload()
    page.get_by_role("button", name="Settings").click()
    assert page.locator("dialog [name=seed]").input_value() == "7"
    show(page, "settings")
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Done").click()
    with page.expect_request("**/v1/chat/completions") as request:
        say(page, "Once")
    assert "seed" not in request.value.post_data_json


def test_stop_stops_the_server_too(open_page, server):
    page = open_page()
    set_up(page, max_tokens=7000, system="")

    def without_end(route):
        # A story would be over before anybody could stop it.
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True}))

    page.route("**/v1/chat/completions", without_end, times=1)
    # The text comes piece by piece, while it is written: each is a mutation of the text.
    page.evaluate(
        """() => { let pieces = 0; new MutationObserver(() => { document.body.dataset.pieces = ++pieces; })
        .observe(document.getElementById('log'), { characterData: true, subtree: true }); }"""
    )
    say(page, "Once upon a time")
    expect(page.locator("body")).to_have_attribute("data-pieces", re.compile(r"\d\d+"), timeout=PATIENCE_MS)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("article.assistant .note")).to_contain_text("stopped")
    running = 'vllm:num_requests_running{model_name="stories",engine="0"}'
    page.wait_for_timeout(500)
    assert server.metrics()[running] == 0
    say(page, "The dog")
    expect(answers(page)).to_have_count(2, timeout=PATIENCE_MS)


def test_an_error_is_shown_and_the_next_message_is_sent(open_page):
    page = open_page()
    set_up(page, temperature=-1)
    say(page, "Once")
    expect(page.locator("article.error")).to_contain_text("temperature")
    set_up(page, temperature=1, max_tokens=5)
    say(page, "Once")
    expect(answers(page)).to_have_count(1, timeout=PATIENCE_MS)


def test_dark_is_dark_and_can_be_chosen(open_page):
    def brightness(page):
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    assert brightness(light) > 600 and brightness(dark) < 150
    dark.get_by_role("button", name="Light or dark").click()
    assert brightness(dark) > 600
    dark.reload()
    assert brightness(dark) > 600, "the choice is kept"
    dark.get_by_role("button", name="Light or dark").click()
    set_up(dark, seed=1, max_tokens=120)
    say(dark, "Once upon a time")
    expect(answers(dark)).to_have_count(1, timeout=PATIENCE_MS)
    show(dark, "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_is_enough(open_page, scheme):
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2, color_scheme=scheme)
    set_up(page, seed=3, max_tokens=150)
    say(page, "Once upon a time there was a very long word: " + "a" * 200)
    expect(answers(page)).to_have_count(1, timeout=PATIENCE_MS)
    show(page, f"phone-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the screen"
    for name in ("Settings", "New", "Send", "Light or dark"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] and box["height"] >= 36, name
    page.get_by_role("button", name="Settings").click()
    box = page.locator("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] and box["height"] <= PHONE["height"]
    show(page, f"phone-settings-{scheme}")


def test_a_key_is_asked_for_and_sent_and_not_kept(open_page, tmp_path):
    import hashlib

    (tmp_path / "keys").write_text(hashlib.sha256(b"secret").hexdigest() + " alice\n")
    with Server("--api-key-file", str(tmp_path / "keys")) as server:
        page = open_page(server.url)
        expect(page.locator("#model")).to_contain_text("key")
        set_up(page, key="secret", max_tokens=5)
        expect(page.locator("#model")).to_have_text("stories")
        say(page, "Once")
        expect(answers(page)).to_have_count(1, timeout=PATIENCE_MS)
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
