#!/usr/bin/env bash
# Expected: LiteLLM sends `dimensions` to a server that speaks OpenAI's API, whatever its model is called, and lets the
# server answer or refuse.
# Seen: it refuses the request itself, before anything is sent, unless `text-embedding-3` is in the name of the model, and
# its message says that OpenAI's newer models do not support the field. With `drop_params` it leaves the field out and
# says nothing, so that vectors come in full length.
# We depend on it in: tests/clients/test_litellm.py (no `dimensions` through the proxy), docs/serving.md.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check litellm==1.108.7
cd "$dir"
LITELLM_LOCAL_MODEL_COST_MAP=True "$dir/venv/bin/python" - <<'PYTHON' 2>log | tee seen
import http.server
import importlib.metadata
import json
import threading

import litellm

litellm.suppress_debug_info = True
print("litellm", importlib.metadata.version("litellm"))


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with a vector of 4 numbers, or of the number that `dimensions` says."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        data = [{"object": "embedding", "index": 0, "embedding": [0.5] * body.get("dimensions", 4)}]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        answer = json.dumps({"object": "list", "model": body["model"], "data": data, "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
base = f"http://127.0.0.1:{server.server_port}/v1"


def ask(name, **more):
    try:
        arguments = {"api_base": base, "api_key": "none", "dimensions": 2, "encoding_format": "float"}
        answer = litellm.embedding(model="openai/" + name, input=["x"], **(arguments | more))
        return f"{len(answer.data[0]['embedding'])} numbers"
    except litellm.UnsupportedParamsError:
        return "refused"


print("my-model:", ask("my-model"))
print("my-text-embedding-3:", ask("my-text-embedding-3"))
print("my-model, drop_params:", ask("my-model", drop_params=True))
PYTHON
grep -qx 'my-model: refused' seen && grep -qx 'my-text-embedding-3: 2 numbers' seen && grep -qx 'my-model, drop_params: 4 numbers' seen
