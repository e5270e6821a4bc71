#!/usr/bin/env bash
# Expected: `transformers chat MODEL URL` ("Base url to connect to") chats with a server that has OpenAI's
# /v1/chat/completions and /v1/models.
# Seen: before it reads a message, it sends POST /load_model, which only `transformers serve` has. If the
# server answers 404, the program ends with a traceback, and asks for nothing else.
# We depend on it in: docs/serving.md, which lists it among the clients that do not work.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 rich==15.0.0
cd "$dir"
HF_HUB_OFFLINE=1 HF_HOME="$dir/home" "$dir/venv/bin/python" - <<'PYTHON'
import http.server
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import threading

requests = []


class Server(http.server.BaseHTTPRequestHandler):
    """Has two routes of OpenAI's API."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.answer("/v1/chat/completions", {"choices": []})

    def do_GET(self):
        self.answer("/v1/models", {"object": "list", "data": [{"id": "m", "object": "model"}]})

    def answer(self, route, body):
        requests.append(f"{self.command} {self.path}")
        body = json.dumps(body).encode()
        self.send_response(200 if self.path == route else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("transformers", importlib.metadata.version("transformers"))
program = pathlib.Path(sys.executable).with_name("transformers")
arguments = [program, "chat", "m", f"http://127.0.0.1:{server.server_port}/v1"]
chat = subprocess.run(arguments, input="hi\n!exit\n", capture_output=True, text=True, timeout=100)
print("requests:", requests)
print("exit code:", chat.returncode)
print("it says:", next((line for line in chat.stderr.splitlines() if "404" in line), ""))
raise SystemExit(0 if requests == ["POST /load_model"] and chat.returncode == 1 else 1)
PYTHON
