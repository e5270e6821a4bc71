#!/usr/bin/env bash
# Expected: `InferenceClient(base_url=...)` sends a `response_format` of OpenAI's form, `json_schema`, to
# a server that speaks OpenAI's API as it was given.
# Seen: it sends {"type": "json_object", "value": SCHEMA}, a form of TGI. A server that ignores unknown
# fields then answers with any JSON. And the client's own messages come back with fields that no
# request has: `description` in each called function, null.
# We depend on it in: crates/bitnet-server/src/api/format.rs (`value`) and fields.rs.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check huggingface_hub==2.4.0
cd "$dir"
HF_HOME="$dir/home" HF_HUB_DISABLE_TELEMETRY=1 "$dir/venv/bin/python" - <<'PYTHON'
import http.server
import importlib.metadata
import json
import threading

from huggingface_hub import InferenceClient

requests = []


class Server(http.server.BaseHTTPRequestHandler):
    """Keeps requests and answers each with a call of a function."""

    def do_POST(self):
        requests.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
        call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
        answer = json.dumps(answer | {"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = InferenceClient(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
print("huggingface_hub", importlib.metadata.version("huggingface_hub"))
schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
given = {"type": "json_schema", "json_schema": {"name": "point", "schema": schema, "strict": True}}
user = {"role": "user", "content": "hi"}
message = client.chat_completion([user], model="m", response_format=given).choices[0].message
path, request = requests[-1]
sent = request["response_format"]
print(path, "given:", given)
print(path, "sent: ", sent)
result = {"role": "tool", "tool_call_id": "call_1", "content": "1"}
client.chat_completion([user, message, result], model="m")
function = requests[-1][1]["messages"][1]["tool_calls"][0]["function"]
print("a function that comes back:", function)
same = sent == {"type": "json_object", "value": schema}
same &= path == "/v1/chat/completions" and function == {"name": "f", "arguments": "{}", "description": None}
raise SystemExit(0 if same else 1)
PYTHON
