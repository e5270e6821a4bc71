"""Measures the package: beside `bitnet bench`, beside single calls and llama-cpp-python, and with Ray.

    speed.py bench MODEL    Python and `bitnet bench`, in turns
    speed.py clocks MODEL   the engine's clock, the clock of Python and `bitnet bench`, in turns
    speed.py speeds MODEL   the rates of Python alone, for benches/capacity.py
    speed.py rows MODEL     many prompts at once, and one by one
    speed.py peer MODEL     the same prompts in llama-cpp-python
    speed.py ray MODEL      two actors of one thread, and one process of two

`peer` runs in an environment with llama-cpp-python, the others in one with this package. Each prints
one JSON object. benchmarks/python.md has results.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time

# Tokens of no special meaning in the vocabularies of all models here.
FIRST_TOKEN, LAST_TOKEN = 1000, 30000
PREFILL, CONTEXT, STEPS, BATCH = 256, 16, 48, 8


def prompt(rng, length):
    """Random tokens, which no cache has."""
    return [rng.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(length)]


def timed(work):
    """The result of a call and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def python_rates(model, rng, batch=BATCH):
    """Tokens per second of prefill, of decoding and of decoding a batch, with all that Python
    does in a call."""
    greedy = {"temperature": 0, "ignore_eos": True}
    _, seconds = timed(lambda: model.generate(prompt(rng, PREFILL), max_tokens=1, **greedy))
    rates = {"prefill": PREFILL / seconds}
    for name, size in (("decode", 1), ("batch", batch)):
        prompts = [prompt(rng, CONTEXT) for _ in range(size)]
        results, seconds = timed(lambda: model.generate(prompts, max_tokens=STEPS, **greedy))
        first = max(result.timings.first_token_s for result in results)
        rates[name] = size * (STEPS - 1) / (seconds - first)
    return rates


def program_rates(program, model, threads):
    """The same rates of `bitnet bench`."""

    def run(*arguments):
        command = [*program, "bench", "-m", model, "-t", str(threads), "-r", "1", "--json"]
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, check=True)
        return json.loads(done.stdout)["runs"]

    prefill, *_ = run("-p", PREFILL, "-n", 0)
    _, decode, batch = run("-p", CONTEXT, "-n", STEPS, "--batch", BATCH)
    runs = {"prefill": prefill, "decode": decode, "batch": batch}
    return {name: run["tokens_per_second"]["median"] for name, run in runs.items()}


def bench(options):
    import bitnet

    model, rng = bitnet.load(options.model, threads=options.threads), random.Random(1)
    python_rates(model, rng)
    end = time.monotonic() + options.seconds
    ours, theirs = [], []
    while time.monotonic() < end:
        # `bitnet bench` has a warm-up round, too.
        python_rates(model, rng)
        ours.append(python_rates(model, rng))
        theirs.append(program_rates(options.program, options.model, options.threads))
    report = {"rounds": len(ours)}
    for name in ("prefill", "decode", "batch"):
        a, b = [rates[name] for rates in ours], [rates[name] for rates in theirs]
        ratios = [x / y for x, y in zip(a, b)]
        report[name] = {"python": spread(a), "program": spread(b), "ratio": spread(ratios)}
    return report


def clocks(options):
    """Tokens per second from the first token of an answer on."""
    import bitnet

    model, rng = bitnet.load(options.model, threads=options.threads), random.Random(1)
    command = [*options.program, "bench", "-m", options.model, "-t", str(options.threads), "--json"]
    model.generate(prompt(rng, CONTEXT), max_tokens=8)
    report = {}
    for steps in (64, 256):
        rates = {"engine": [], "python": [], "program": []}
        for _ in range(3):
            tokens = prompt(rng, CONTEXT)
            work = lambda: model.generate(tokens, max_tokens=steps, temperature=0, ignore_eos=True)
            result, seconds = timed(work)
            rates["engine"].append((steps - 1) / result.timings.decode_s)
            rates["python"].append((steps - 1) / (seconds - result.timings.first_token_s))
            arguments = ["-p", str(CONTEXT), "-n", str(steps), "-r", "3"]
            done = subprocess.run([*command, *arguments], capture_output=True, check=True)
            runs = json.loads(done.stdout)["runs"]
            rates["program"].append(runs[-1]["tokens_per_second"]["median"])
        report[steps] = rates
    return report


def speeds(options):
    import bitnet

    model, rng = bitnet.load(options.model, threads=options.threads), random.Random(1)
    python_rates(model, rng, options.parallel)
    end = time.monotonic() + options.seconds
    rates = []
    while time.monotonic() < end:
        rates.append(python_rates(model, rng, options.parallel))
    medians = {name: spread([rate[name] for rate in rates]) for name in rates[0]}
    return {"rounds": len(rates), "batch_size": options.parallel} | medians


def workload(options):
    rng = random.Random(options.seed)
    return [prompt(rng, options.prompt_tokens) for _ in range(options.prompts)]


def costs(work, number):
    """Rows per second of a call that answers `number` prompts, and the seconds of a processor for a
    row. With one thread the latter change little while other programs run."""
    start = time.process_time()
    result, seconds = timed(work)
    return result, {"rows_per_s": number / seconds, "cpu_s": (time.process_time() - start) / number}


def rows(options):
    import bitnet

    model = bitnet.load(options.model, threads=options.threads, parallel=options.parallel)
    greedy = {"temperature": 0, "ignore_eos": True, "max_tokens": options.answer_tokens}
    model.generate([1000], **greedy)
    prompts = workload(options)
    answers, together = costs(lambda: model.generate(prompts, **greedy), len(prompts))
    assert all(len(answer.tokens) == options.answer_tokens for answer in answers)
    # The same prompts again would be in the cache.
    options.seed += 1
    few = workload(options)[: options.single]
    _, single = costs(lambda: [model.generate(one, **greedy) for one in few], len(few))
    options.seed += 1
    few = workload(options)[: options.single]
    read = {**greedy, "max_tokens": 1}
    _, prompt = costs(lambda: [model.generate(one, **read) for one in few], len(few))
    report = {"prompts": len(prompts), "together": together}
    report |= {"single": len(few), "one_by_one": single, "prompts_only": prompt}
    ratios = {
        "rows_per_s": together["rows_per_s"] / single["rows_per_s"],
        "cpu_s": single["cpu_s"] / together["cpu_s"],
    }
    return report | {"ratio": ratios}


def peer(options):
    import llama_cpp

    threads = {"n_threads": options.threads, "n_threads_batch": options.threads}
    model = llama_cpp.Llama(options.model, n_ctx=512, verbose=False, **threads)
    prompts = workload(options)[: options.single]

    def answer(tokens):
        model.reset()
        pieces = model.generate(tokens, temp=0.0, reset=True)
        return [next(pieces) for _ in range(options.answer_tokens)]

    answer([1000])
    _, single = costs(lambda: [answer(tokens) for tokens in prompts], len(prompts))
    return {"version": llama_cpp.__version__, "single": len(prompts), "one_by_one": single}


def with_ray(options):
    import numpy
    import ray

    import bitnet.ray

    greedy = {"temperature": 0, "ignore_eos": True, "max_tokens": options.answer_tokens}
    prompts = workload(options)

    class Timed(bitnet.ray.Generator):
        """Also notes when the first batch begins and the last one ends: loading is not counted."""

        def __call__(self, batch):
            start = time.time()
            out = super().__call__(batch)
            size = len(batch["id"])
            return {**out, "start": numpy.full(size, start), "end": numpy.full(size, time.time())}

    speeds = {}
    for name, actors, threads in (("actors", 2, 1), ("process", 1, 2)):
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
        items = [{"id": index, "prompt": tokens} for index, tokens in enumerate(prompts)]
        dataset = ray.data.from_items(items)
        dataset = dataset.repartition(2 * actors).materialize()
        load = {"threads": threads, "ctx_size": 1024}
        out = dataset.map_batches(
            Timed,
            fn_constructor_kwargs={"model": options.model, "load_options": load, **greedy},
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            batch_size=max(len(prompts) // (2 * actors), 1),
        ).take_all()
        seconds = max(row["end"] for row in out) - min(row["start"] for row in out)
        speeds[f"{name}_rows_per_s"] = len(out) / seconds
        ray.shutdown()
    return speeds | {"ratio": speeds["actors_rows_per_s"] / speeds["process_rows_per_s"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["bench", "clocks", "speeds", "rows", "peer", "ray"])
    parser.add_argument("model")
    program = [sys.executable, "-m", "bitnet"]
    parser.add_argument("--program", nargs="+", default=program, help="the package's if not given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=75)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--single", type=int, default=32, help="prompts of the loop")
    parser.add_argument("--parallel", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    run = {
        "bench": bench,
        "clocks": clocks,
        "speeds": speeds,
        "rows": rows,
        "peer": peer,
        "ray": with_ray,
    }[options.what]
    print(json.dumps({"what": options.what, "model": options.model} | run(options), indent=1))


if __name__ == "__main__":
    main()
