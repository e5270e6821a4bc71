"""Renders chat templates in jinja2, set up by transformers, beside our own program.

A part of test_templates.py.
"""

import json
import os
import subprocess
import time

# Our time is UTC; Python's is local.
os.environ["TZ"] = "UTC"
time.tzset()


class Ours:
    """The example `render_chats` of bitnet-tokenizers."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def render(self, request):
        """(text, None) or (None, error)."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"our program ended at {request['template']!r}")
        answer = json.loads(line)
        return answer.get("text"), answer.get("error")


def theirs(request):
    """(text, None) or (None, error), as `apply_chat_template` has it."""
    from transformers.utils import chat_template_utils as utils

    kwargs = dict(request.get("variables") or {})
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if request.get(name) is not None:
            kwargs.setdefault(name, request[name])
    try:
        messages = utils._normalize_chat_messages(json.loads(json.dumps(request["messages"])))
        rendered, _ = utils.render_jinja_template(
            conversations=[messages],
            tools=request.get("tools"),
            documents=request.get("documents"),
            chat_template=request["template"],
            continue_final_message=request.get("continue_final_message", False),
            add_generation_prompt=request.get("add_generation_prompt", False),
            **kwargs,
        )
        return rendered[0], None
    except Exception as error:  # the exception is the result of the template
        return None, f"{type(error).__name__}: {error}"


def now():
    """Seconds since 1970, for both sides to have the same minute."""
    return int(time.time())
