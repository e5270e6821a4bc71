"""`bitnet.serve` and `python -m bitnet`: the real server and the real program."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

import bitnet

PATIENCE = 120


def complete(server, **fields):
    """The text that a server gives to a prompt."""
    request = urllib.request.Request(
        f"{server.base_url}/completions",
        json.dumps(fields).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]["text"]


def program(*arguments, **options):
    """Runs `python -m bitnet`."""
    command = [sys.executable, "-m", "bitnet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **options)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that has ended, and whose parent has not waited for it, is a zombie.
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until(is_so):
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_server_gives_the_texts_of_the_model(model):
    expected = model.generate("Once upon a time", seed=7, max_tokens=30)
    with bitnet.serve(threads=1, model_name=["tales", "other"]) as server:
        text = complete(server, prompt="Once upon a time", seed=7, max_tokens=30, model="other")
        assert text == expected
        with urllib.request.urlopen(f"{server.base_url}/models") as answer:
            assert json.load(answer)["data"][0]["id"] == "tales"
        assert "running" in repr(server)
    assert "stopped" in repr(server) and "stopped" in server.log
    with pytest.raises(OSError):
        urllib.request.urlopen(server.url)


def test_a_server_that_cannot_start_says_why(tmp_path):
    with pytest.raises(bitnet.EngineError, match="no-such-option"):
        bitnet.serve(no_such_option=1)
    with pytest.raises(bitnet.EngineError, match="no-such-file.gguf"):
        bitnet.serve(tmp_path / "no-such-file.gguf")


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux's /proc")
def test_a_server_ends_with_the_process_that_started_it():
    code = (
        "import bitnet, os, time; server = bitnet.serve()\n"
        "print(server._process.pid, flush=True); time.sleep(1000)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not is_alive(pid))


def test_the_program_is_in_the_package(model):
    assert program("--version").stdout == f"bitnet {bitnet.__version__}\n"
    done = program("run", "Once upon a time", "--seed", 7, "-n", 20, "--json")
    assert json.loads(done.stdout)["text"] == model.generate(
        "Once upon a time", seed=7, max_tokens=20
    )
    wrong = program("run", "--no-such-option")
    assert wrong.returncode == 2 and "--no-such-option" in wrong.stderr
    missing = program("run", "-m", "no-such-file.gguf", "Hi")
    assert missing.returncode == 1 and missing.stderr.startswith("error: cannot load")
    script = os.path.join(os.path.dirname(sys.executable), "bitnet")
    if os.path.exists(script):
        done = subprocess.run([script, "--version"], capture_output=True, text=True)
        assert done.stdout == f"bitnet {bitnet.__version__}\n"


def test_the_program_writes_all_of_its_output():
    page = program("man").stdout
    assert page.startswith(".") and ".SH" in page
    script = program("completions", "bash").stdout
    assert script.rstrip().endswith("fi") or "complete -F" in script


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise on Windows")
def test_ctrl_c_ends_the_program():
    command = [sys.executable, "-m", "bitnet", "serve", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline().startswith("listening on http://")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
