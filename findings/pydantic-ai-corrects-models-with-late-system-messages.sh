#!/usr/bin/env bash
# Expected: Pydantic AI answers an empty or invalid reply with a user message that says what is wrong.
# Seen: it also puts a system message behind the conversation. After an empty reply this is all it
# adds, and the reply is gone; before the correction of an invalid reply stands a system message that
# the first request did not have. Templates that take a system message only at the beginning, as
# Qwen3.5's does, end such a conversation with an error.
# We depend on it in: crates/bitnet-tokenizers/src/chat, which moves late system messages to the
# beginning for such templates.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check 'pydantic-ai-slim[openai]==2.68.0' openai==3.57.0
cd "$dir"
"$dir/venv/bin/python" - <<'PYTHON'
import http.server
import importlib.metadata
import json
import threading

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

answers, requests = [], []


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with the next of `answers`, and keeps the roles and texts of the messages."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        requests.append([(message["role"], message.get("content")) for message in body["messages"]])
        message = {"role": "assistant", "content": answers.pop(0)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        answer = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class Point(BaseModel):
    x: int


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
provider = OpenAIProvider(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
model = OpenAIChatModel("m", provider=provider)

print("pydantic-ai-slim", importlib.metadata.version("pydantic-ai-slim"))
seen = []
for what, output, replies in (
    ("an empty reply", str, ["", "done"]),
    ("a reply that its type refuses", NativeOutput(Point), ['{"x": "one"}', '{"x": 1}']),
):
    answers[:], requests[:] = replies, []
    Agent(model, output_type=output).run_sync("hi")
    print(f"{what}: the second request:")
    for role, text in requests[1]:
        print(f"  {role}: {text.splitlines()[0][:70]}")
    seen.append([[role for role, _ in request] for request in requests])
expected = [
    [["user"], ["user", "system"]],
    [["user"], ["user", "assistant", "system", "user"]],
]
raise SystemExit(0 if seen == expected else 1)
PYTHON
