"""Measures what each API adds to a request beside a plain chat: `surface_cost.py PROGRAM [SECONDS OF A REQUEST]`. Linux only.

A server with the built-in model answers the same conversation, 64 tokens as a stream, through every API in turns. All work
of an API is done by the threads for HTTP and for text, so the difference of their processor time is its cost: translating
the request, and writing an event for each token. Fails if that is 0.1 % or more of the time that a request takes. The
default, 2.2 s, is a request of 128 + 64 tokens to the 2B shape (benchmarks/serving.md).
"""

import http.client
import json
import pathlib
import statistics
import subprocess
import sys
import time

SHARE_MAX = 1e-3
NUM_TOKENS = 64
ROUNDS = 40
REQUESTS_A_ROUND = 10
TEXT = "Once upon a time"
MESSAGES = [{"role": "user", "content": TEXT}]
# Paths and bodies; the first is the plain chat.
SURFACES = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": NUM_TOKENS, "ignore_eos": True}),
    "responses": ("/v1/responses", {"input": TEXT, "max_output_tokens": NUM_TOKENS, "ignore_eos": True, "store": False}),
    "responses, stored": ("/v1/responses", {"input": TEXT, "max_output_tokens": NUM_TOKENS, "ignore_eos": True}),
    "messages": ("/v1/messages", {"model": "stories", "messages": MESSAGES, "max_tokens": NUM_TOKENS, "ignore_eos": True}),
    "ollama": ("/api/chat", {"model": "stories", "messages": MESSAGES, "options": {"num_predict": NUM_TOKENS, "seed": 1}}),
}


class Server:
    def __init__(self, program):
        command = [program, "serve", "--port", "0", "-t", "1", "--kv-memory", "64M", "--log-level", "warn"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        self.connection = http.client.HTTPConnection("127.0.0.1", port)
        while self.ask("GET", "/readyz")[0] != 200:
            time.sleep(0.05)

    def ask(self, method, path, body=None):
        self.connection.request(method, path, body, {"content-type": "application/json"})
        response = self.connection.getresponse()
        return response.status, response.read()

    def seconds(self):
        """Processor time of the threads for HTTP and text so far."""
        total = 0
        for thread in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            if (thread / "comm").read_text().startswith("bitnet-http"):
                total += int((thread / "schedstat").read_text().split()[0])
        return total * 1e-9


def main():
    program, *rest = sys.argv[1:]
    request_s = float(rest[0]) if rest else 2.2
    server = Server(program)
    costs = {name: [] for name in SURFACES}
    for round in range(-2, ROUNDS):
        for name, (path, body) in SURFACES.items():
            body = json.dumps({"seed": 1, "stream": True} | body if name != "ollama" else body)
            start = server.seconds()
            for _ in range(REQUESTS_A_ROUND):
                status, text = server.ask("POST", path, body)
                assert status == 200, text
            if round >= 0:
                costs[name].append((server.seconds() - start) / REQUESTS_A_ROUND)
    plain = statistics.median(costs["chat"])
    print(f"{'chat':18} {plain * 1e6:7.1f} µs a request")
    worst = 0
    for name, seconds in list(costs.items())[1:]:
        more = statistics.median(after - before for after, before in zip(seconds, costs["chat"]))
        share = more / request_s
        worst = max(worst, share)
        print(f"{name:18} {statistics.median(seconds) * 1e6:7.1f} µs, {more * 1e6:+7.1f} µs, {more * 1e9 / NUM_TOKENS:+7.0f} ns a token, {share:+.4%} of {request_s} s")
    server.process.terminate()
    assert server.process.wait() == 0
    sys.exit(0 if worst < SHARE_MAX else f"more than {SHARE_MAX:.1%}")


main()
