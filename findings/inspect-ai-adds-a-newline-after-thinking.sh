#!/usr/bin/env bash
# Expected: Inspect sends an earlier answer back as it came: `content` in `content`, the thinking in
# `reasoning_content`.
# Seen: if the answer had thinking, its `content` comes back with a line break before it. Without
# thinking it is unchanged. So the prompt of the next turn holds another answer than the model gave,
# unless the template removes the line break, and a cache of earlier prompts ends there.
# We depend on it in: docs/serving.md, which says what is reused of a conversation.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check inspect-ai==0.3.285 openai==3.57.0
cd "$dir"
HOME="$dir" LOCAL_API_KEY=none "$dir/venv/bin/python" - <<'PYTHON'
import asyncio
import http.server
import importlib.metadata
import json
import threading

from inspect_ai.model import ChatMessageUser, get_model

answers, requests = [], []


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with the next of `answers`, and keeps the messages of each request."""

    def do_POST(self):
        requests.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"} | answers.pop(0)}
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


async def second_turn(answer):
    """How an answer comes back in the next request."""
    answers[:] = [answer, {"content": "done"}]
    first = await model.generate([ChatMessageUser(content="hi")])
    await model.generate([ChatMessageUser(content="hi"), first.message, ChatMessageUser(content="go on")])
    return requests[-1][1]


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
model = get_model("openai-api/local/m", base_url=f"http://127.0.0.1:{server.server_port}/v1")
print("inspect-ai", importlib.metadata.version("inspect-ai"))
seen = []
for answer in ({"content": "Four."}, {"content": "Four.", "reasoning_content": "2 + 2"}):
    back = asyncio.run(second_turn(answer))
    seen.append(back)
    print(f"{answer} comes back as {back}")
expected = [
    {"role": "assistant", "content": "Four."},
    {"role": "assistant", "content": "\nFour.", "reasoning_content": "2 + 2"},
]
raise SystemExit(0 if seen == expected else 1)
PYTHON
