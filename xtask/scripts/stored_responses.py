"""Measures what 10,000 stored responses take: `stored_responses.py PROGRAM`. Linux only: it reads the memory of processes.

A server with the built-in model, in memory and then with a folder for state, answers 10,000 requests to /v1/responses whose
metadata have 3 kB. Fails if the server's memory grows by 64 MB or more, or if reading a stored response takes 1 ms or more in
the median. Takes a few minutes.
"""

import concurrent.futures
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time

NUM_RESPONSES = 10_000
BYTES_MAX = 64e6
LOOKUP_MAX_S = 1e-3
# A text of the metadata, which is kept with each response.
NOTE = "x" * 500


class Server:
    def __init__(self, program, options):
        command = [program, "serve", "--port", "0", "-t", "1", "--kv-memory", "64M", "--log-level", "warn", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])
        self.local = threading.local()
        while self.ask("GET", "/readyz")[0] != 200:
            time.sleep(0.05)

    def ask(self, method, path, body=None):
        """Status, body, and seconds until the whole answer. Each thread has a connection."""
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port)
        start = time.perf_counter()
        try:
            self.local.connection.request(method, path, body and json.dumps(body), {"content-type": "application/json"})
            response = self.local.connection.getresponse()
        except http.client.RemoteDisconnected:
            # The server closes connections that rest.
            del self.local.connection
            return self.ask(method, path, body)
        text = response.read()
        return response.status, text, time.perf_counter() - start

    def create(self, index, **more):
        # `metadata` is kept with the response, and the model does not read it.
        metadata = {f"k{part}": NOTE for part in range(6)}
        body = {"input": f"Once {index}", "max_output_tokens": 1, "seed": 1, "metadata": metadata} | more
        status, text, _ = self.ask("POST", "/v1/responses", body)
        assert status == 200, text
        return json.loads(text)["id"]

    def memory(self):
        """Resident bytes of the process that are no pages of files."""
        with open(f"/proc/{self.process.pid}/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    def stop(self):
        self.process.terminate()
        assert self.process.wait() == 0


def measure(program, name, options):
    server = Server(program, options)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: server.create(index, store=False), range(500)))
        before = server.memory()
        ids = list(pool.map(server.create, range(NUM_RESPONSES)))
    grown = server.memory() - before
    assert all(server.ask("GET", f"/v1/responses/{ids[index]}")[0] == 200 for index in (0, -1)), "all are kept"
    reads = [server.ask("GET", f"/v1/responses/{id}")[2] for id in ids[::10]]
    # The answer to an empty request, over the same connection.
    base = statistics.median(server.ask("GET", "/health")[2] for _ in range(1000))
    read = statistics.median(reads)
    print(f"{name}: {grown / 1e6:.1f} MB; reading one takes {read * 1e3:.3f} ms, of which HTTP {base * 1e3:.3f} ms", flush=True)
    server.stop()
    return grown < BYTES_MAX and read < LOOKUP_MAX_S


def main():
    [program] = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        fits = [measure(program, "in memory", []), measure(program, "with --state-dir", ["--state-dir", folder])]
    sys.exit(0 if all(fits) else "more than 64 MB, or more than 1 ms")


main()
