"""Compares the cost of requests to two builds of the program: `request_cost.py OLD NEW [OPTIONS OF serve]`.

Both serve the built-in model on one thread. Each request goes to both in turns, over connections that stay open, so that
both see the same state of the machine. Prints medians and the median ratio of pairs; takes about a minute.
"""

import http.client
import json
import statistics
import subprocess
import sys
import time

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
STORY = {"prompt": "Once upon a time", "seed": 7, "ignore_eos": True}
# Path, body, and number of pairs.
KINDS = {
    "tokenize": ("/tokenize", {"prompt": "Once upon a time there was a dog."}, 3000),
    "8 tokens": ("/v1/completions", STORY | {"max_tokens": 8}, 900),
    "100 tokens": ("/v1/completions", STORY | {"max_tokens": 100}, 180),
    "known schema": ("/v1/completions", {"prompt": "Once", "seed": 7, "max_tokens": 24, "structured_outputs": {"json": SCHEMA}}, 500),
}


class Server:
    def __init__(self, program, options):
        command = [program, "serve", "--port", "0", "-t", "1", "--kv-memory", "64M", "--log-format", "json", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        self.connection = http.client.HTTPConnection("127.0.0.1", port)
        while self.ask("GET", "/readyz")[0] != 200:
            time.sleep(0.05)

    def ask(self, method, path, body=None):
        """Status, and seconds until the whole answer."""
        start = time.perf_counter()
        self.connection.request(method, path, body, {"content-type": "application/json"})
        response = self.connection.getresponse()
        response.read()
        return response.status, time.perf_counter() - start


def main():
    old, new, *options = sys.argv[1:]
    servers = [Server(program, options) for program in (old, new)]
    for kind, (path, body, num_pairs) in KINDS.items():
        body = json.dumps(body)
        times = ([], [])
        for pair in range(-8, num_pairs):
            for index in (0, 1) if pair % 2 else (1, 0):
                status, seconds = servers[index].ask("POST", path, body)
                assert status == 200, status
                # The first pairs warm up: they compile the schema and fill the cache.
                if pair >= 0:
                    times[index].append(seconds)
        old, new = (statistics.median(seconds) * 1e3 for seconds in times)
        ratio = statistics.median(after / before for before, after in zip(*times))
        print(f"{kind:12}  {num_pairs:4} pairs  {old:8.4f} ms  {new:8.4f} ms  ratio {ratio:.4f}", flush=True)
    for server in servers:
        server.process.terminate()
        assert server.process.wait() == 0


main()
