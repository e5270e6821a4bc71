"""Threads, event loops, interrupts, forks and the collector of garbage."""

import asyncio
import concurrent.futures
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import bitnet

# Seconds that anything may take to happen, on a machine that has other things to do.
PATIENCE = 120


def python(code):
    """Runs code in a process of its own; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_threads_share_an_engine_and_do_not_change_each_other(model):
    prompts = [f"The {animal} said" for animal in ("cat", "dog", "bird", "fish", "cow", "pig")]
    expected = [model.generate(prompt, seed=9, max_tokens=30) for prompt in prompts]
    results = [None] * len(prompts)

    def run(index):
        results[index] = model.generate(prompts[index], seed=9, max_tokens=30)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


def test_other_threads_run_while_one_waits(model):
    ticks = []
    is_done = threading.Event()

    def tick():
        while not is_done.is_set():
            ticks.append(None)
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    model.generate("Once upon a time", seed=1, max_tokens=100, ignore_eos=True)
    is_done.set()
    thread.join()
    assert len(ticks) > 5


def test_tasks_get_the_texts_of_threads(model):
    prompts = [f"The {animal}" for animal in ("cat", "dog", "bird")]
    expected = model.generate(prompts, seed=1, max_tokens=20)

    async def run():
        together = await model.agenerate(prompts, seed=1, max_tokens=20)
        single = await asyncio.gather(
            *(model.agenerate(prompt, seed=1, max_tokens=20) for prompt in prompts)
        )
        stream = model.astream("The cat", seed=1, max_tokens=20)
        pieces = [piece async for piece in stream]
        return together, single, pieces, await model.achat("The dog", seed=1, max_tokens=20)

    together, single, pieces, chat = asyncio.run(run())
    assert together == single == expected
    assert together[0].tokens == expected[0].tokens and together[0].finish_reason == "length"
    assert "".join(pieces) == expected[0] and pieces[-1].finish_reason == "length"
    assert chat == expected[1]
    # A second loop, after the first is closed.
    assert asyncio.run(model.agenerate("The cat", seed=1, max_tokens=20)) == expected[0]


def test_a_loop_goes_on_while_tasks_wait(model):
    async def run():
        ticks = 0
        task = asyncio.create_task(model.agenerate("Once", max_tokens=200, ignore_eos=True))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.001)
        return ticks

    assert asyncio.run(run()) > 5


def test_errors_reach_tasks(model):
    async def run():
        with pytest.raises(bitnet.RequestError, match="temperature is -1"):
            await model.agenerate("Hi", temperature=-1)
        with pytest.raises(bitnet.RequestError, match="temperature is -1"):
            async for _ in model.astream("Hi", temperature=-1):
                pass

    asyncio.run(run())


def test_cancelling_a_task_cancels_its_request():
    model = bitnet.load(parallel=1, ctx_size=100_000)  # a request that runs on would block the next

    async def run():
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                endless = model.agenerate("Once", ignore_eos=True, max_tokens=90_000)
                await asyncio.wait_for(endless, 0.05)
        async with model.astream("Once", ignore_eos=True, max_tokens=90_000) as stream:
            async for _ in stream:
                break
        start = time.monotonic()
        await model.agenerate("Once", max_tokens=1)
        return time.monotonic() - start

    assert asyncio.run(run()) < PATIENCE / 10


@pytest.mark.parametrize("end", ["close", "with", "del"])
def test_a_stream_that_is_left_cancels_its_request(end):
    model = bitnet.load(parallel=1, ctx_size=100_000)  # a request that runs on would block the next
    for _ in range(3):
        stream = model.stream("Once", ignore_eos=True, max_tokens=90_000)
        next(stream)
        if end == "close":
            stream.close()
            assert list(stream) == []
        elif end == "with":
            with stream:
                pass
        else:
            del stream
            gc.collect()
    result = model.generate("Once", max_tokens=1)
    # Cancelled requests computed a few tokens, not 270000: the wait is a step or two.
    assert result.timings.first_token_s < PATIENCE / 10


def in_threads(work, number):
    """Runs `work(index)` in threads; fails if one of them does."""
    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        return list(pool.map(work, range(number)))


def test_half_read_streams_that_the_collector_finds_under_load_disturb_nothing():
    model = bitnet.load(parallel=8)
    expected = [model.generate("The cat", seed=seed, max_tokens=20) for seed in range(4)]

    def leave_streams(index):
        for count in range(10):
            stream = model.stream("Once", ignore_eos=True, max_tokens=400)
            for _ in range(count % 3):
                next(stream)
            # A cycle: only the collector finds the stream.
            cycle = [stream]
            cycle.append(cycle)
            del stream, cycle
            gc.collect()

    def generate(index):
        return [model.generate("The cat", seed=seed, max_tokens=20) for seed in range(4)]

    results = in_threads(lambda index: (leave_streams, generate)[index % 2](index), 8)
    assert results[1::2] == [expected] * 4
    gc.collect()
    # The streams that were left would generate 16000 tokens first.
    assert model.generate("Once", max_tokens=1).timings.first_token_s < PATIENCE / 10


def test_loops_in_threads_share_an_engine():
    model = bitnet.load()
    expected = [model.generate("The cat", seed=seed, max_tokens=20) for seed in range(6)]

    def run(index):
        async def pieces():
            return "".join([p async for p in model.astream("The cat", seed=index, max_tokens=20)])

        return asyncio.run(pieces())

    assert in_threads(run, 6) == expected


INTERRUPTED = """
import os, signal, threading, time
import bitnet
model = bitnet.load(parallel=1, ctx_size=100_000)
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - start)
print(model.generate("Once upon", seed=1, max_tokens=5, temperature=0).finish_reason)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise on Windows")
@pytest.mark.parametrize(
    "call",
    [
        "model.generate('Once', ignore_eos=True, max_tokens=90_000)",
        "model.generate(['Once'] * 50, ignore_eos=True, max_tokens=90_000)",
        "list(model.stream('Once', ignore_eos=True, max_tokens=90_000))",
        "[model.logits([5] * 2000) for _ in range(1000)]",
        "model.embed(['Once upon a time ' * 100] * 5000, pooling='last')",
        "model.perplexity('Once upon a time ' * 100000, context=512)",
        "import asyncio; asyncio.run(model.agenerate('Once', ignore_eos=True, max_tokens=90_000))",
    ],
)
def test_ctrl_c_ends_a_call_at_once_and_the_model_goes_on(call):
    interrupted, reason = python(INTERRUPTED.format(call=call)).splitlines()
    word, seconds = interrupted.split()
    assert word == "interrupted" and float(seconds) < PATIENCE / 10
    assert reason == "length"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_gets_an_error_and_can_load_the_model_itself():
    code = """
import os, warnings
warnings.simplefilter("ignore")  # of forks in processes with threads
import bitnet
model = bitnet.load()
text = model.generate("Once upon", seed=1, max_tokens=5)
child = os.fork()
if child == 0:
    try:
        model.generate("Hi")
        os._exit(1)
    except bitnet.EngineError as error:
        if "load the model again" not in str(error):
            os._exit(2)
    del model
    os._exit(0 if bitnet.load().generate("Once upon", seed=1, max_tokens=5) == text else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), model.generate("Once upon", seed=1, max_tokens=5) == text)
"""
    assert python(code) == "0 True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forks_while_threads_generate_change_no_text():
    code = """
import os, threading, warnings
warnings.simplefilter("ignore")  # of forks in processes with threads
import bitnet
model = bitnet.load()
expected = model.generate("The cat", seed=1, max_tokens=30)
texts, is_done = [], threading.Event()

def run():
    while not is_done.is_set():
        texts.append(model.generate("The cat", seed=1, max_tokens=30))

threads = [threading.Thread(target=run) for _ in range(4)]
for thread in threads:
    thread.start()
codes = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        try:
            model.generate("Hi")
        except bitnet.EngineError:
            os._exit(0)
        os._exit(1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
is_done.set()
for thread in threads:
    thread.join()
print(codes, set(texts) == {expected})
"""
    assert python(code) == "[0, 0, 0, 0, 0] True"


@pytest.mark.parametrize(
    "code",
    [
        "stream = bitnet.load().stream('Once', ignore_eos=True); next(stream)",
        "model = bitnet.load(); t = __import__('threading').Thread(target=model.generate, args=('Once',),"
        " kwargs={'max_tokens': 50}); t.start()",
        "import asyncio; model = bitnet.load(); s = model.astream('Once', ignore_eos=True)\n"
        "async def run():\n  async for _ in s: break\n  return s\nasyncio.run(run())",
        "import asyncio; model = bitnet.load()\n"
        "async def run():\n  asyncio.ensure_future(model.agenerate('Once', ignore_eos=True))\n"
        "  await asyncio.sleep(0.05)\nasyncio.run(run())",
        "model = bitnet.load(); answers = [model.stream('Once', ignore_eos=True) for _ in range(100)]",
    ],
)
def test_the_interpreter_ends_with_answers_in_progress(code):
    python(f"import bitnet\n{code}\n")


def test_a_model_is_freed_with_its_thread():
    gc.collect()
    model = bitnet.load()
    asyncio.run(model.agenerate("Once", max_tokens=2))
    names = [thread.name for thread in threading.enumerate()]
    assert "bitnet-notices" in names
    before = names.count("bitnet-notices")
    del model
    gc.collect()
    assert [t.name for t in threading.enumerate()].count("bitnet-notices") == before - 1


def test_an_answer_outlives_its_model():
    model = bitnet.load()
    expected = model.generate("The cat", seed=1, max_tokens=20)
    stream = model.stream("The cat", seed=1, max_tokens=20)

    async def run(model):
        pieces = model.astream("The cat", seed=1, max_tokens=20)
        first = await pieces.__anext__()
        del model
        gc.collect()
        return first + "".join([piece async for piece in pieces])

    models = [model]
    del model
    assert asyncio.run(run(models.pop())) == expected
    gc.collect()
    assert "".join(stream) == expected
