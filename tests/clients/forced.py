"""What the tests of agents share: tools, and a proxy that makes the model call them in order."""

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TASK = "What is the weather in the capital of France?"
# What the tools were called with, in order, and what the second one says.
CALLS = [("get_capital", "France"), ("get_weather", "Paris")]
WEATHER = "It rains in Paris."


class Forced:
    """A proxy before a server: the i-th request of a conversation must call the i-th tool of `plan`.

    The built-in model cannot decide what to call. `tool_choice` makes the grammar decide, so that agents go through all their
    steps: a call, its result, another call, its result, the answer. None: no tool, the model answers with a text.
    """

    def __init__(self, url, plan):
        self.requests = []
        plan = iter(plan)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append(body)
                name = next(plan)
                limit, named = "max_tokens", {"type": "function", "function": {"name": name}}
                if self.path.endswith("/responses"):
                    limit, named = "max_output_tokens", {"type": "function", "name": name}
                forced = dict(body, seed=1) | {limit: 100 if name else 20}
                if limit == "max_output_tokens" and not name:
                    # OpenAI's Agents take a response that is cut off for an error.
                    del forced[limit]
                forced.pop("max_completion_tokens", None)
                forced["tool_choice"] = named if name else "none"
                request = urllib.request.Request(
                    url + self.path, json.dumps(forced).encode(), {"content-type": "application/json"}
                )
                try:
                    response = urllib.request.urlopen(request)
                except urllib.error.HTTPError as error:
                    response = error
                data = response.read()
                self.send_response(response.status)
                self.send_header("content-type", response.headers["content-type"])
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
