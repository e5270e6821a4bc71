"""A model class for EleutherAI's lm-eval, without a server.

On the command line, `python -m bitnet.lm_eval` is lm-eval with one more model:

    python -m bitnet.lm_eval run --model bitnet --model_args model=2b4t,threads=8 --tasks arc_easy

lm-eval 0.4 keeps a registry of models but looks for no entry points, so its own command does not
find the class. In Python, pass an instance:

    lm_eval.simple_evaluate(model=bitnet.lm_eval.BitnetLM("2b4t"), tasks=["arc_easy"])
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from ._model import Model, load

if TYPE_CHECKING:
    from ._model import Options

__all__ = ["BitnetLM"]


@register_model("bitnet")
class BitnetLM(TemplateLM):
    """A model as lm-eval uses it. Its requests run together, as many as `parallel` says."""

    def __init__(
        self,
        model: str | os.PathLike[str] | Model | None = None,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
        **options: Any,
    ) -> None:
        """
        Args:
            model: A loaded `Model`, or what `load` takes.
            max_length: Maximum number of tokens of a request; the model's context if not given.
            max_gen_toks: Maximum number of tokens of an answer where a task names none.
            add_bos_token: Whether texts begin with BOS; as the model's files ask if not given, as
                lm-eval's model `hf` does. `local-completions` leaves BOS out.
            batch_size: Not used: the engine fills its steps itself.
            max_batch_size: Not used.
            device: Not used: the CPU.
            options: The keywords of `load`.
        """
        super().__init__()
        self.model = model if isinstance(model, Model) else load(model, **options)
        info = self.model.info
        self.max_length = min(max_length or info["context_length"], info["context_length"])
        self.max_gen_toks = max_gen_toks
        self._add_bos = add_bos_token
        bos = info["bos_token"]
        self._bos_text = "" if bos is None else self.model.detokenize([bos], show_special=True)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation in the model's template, for `--apply_chat_template`."""
        fields = {
            "messages": chat_history,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        return self.model._engine.read_chat(json.dumps(fields)).text

    @property
    def eot_token_id(self) -> int:
        """The token at the end of a text."""
        return self.model.info["eos_token"]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text: BOS if the model has one."""
        bos = self.model.info["bos_token"]
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """The name under which lm-eval keeps requests in its cache."""
        return self.model.info["source"].replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_options: object
    ) -> list[int]:
        """The tokens of a text. They begin with one BOS, as `add_bos_token` says, unless special
        tokens are off."""
        has_bos = self._bos_text != "" and string.startswith(self._bos_text)
        bos = False if add_special_tokens is False or has_bos else self._add_bos
        return self.model.tokenize(string, bos=bos, parse_special=True)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, **_options: object
    ) -> list[tuple[float, bool]]:
        prompts = [(context + text)[-self.max_length :] for _, context, text in requests]
        results = self.model.generate(prompts, max_tokens=0, logprobs=1, prompt_logprobs=True)
        scores = []
        for (key, _, text), result in zip(requests, results):
            entries = result.prompt_logprobs[-len(text) :]
            if entries[0] is None:
                message = f"{len(text)} tokens to score leave no room for a context of one token"
                raise ValueError(f"{message} in max_length {self.max_length}")
            is_greedy = all(entry.top[0][0] == token for entry, token in zip(entries, text))
            scores.append((sum(entry.logprob for entry in entries), is_greedy))
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, scores[-1])
        return scores

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows of `max_length` tokens."""
        totals = []
        for request in requests:
            (text,) = request.args
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                # A window has one more token than the model reads.
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            windows = [(None, *utils.make_disjoint_window(window)) for window in windows]
            totals.append(sum(score for score, _ in self._loglikelihood_tokens(windows)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Answers to texts, up to the strings that tasks name."""
        native = []
        for request in requests:
            context, settings = request.args
            options = _options(settings, self.max_gen_toks)
            room = max(self.max_length - (options["max_tokens"] or 0), 1)
            native.append(self.model._request(self.tok_encode(context)[-room:], options))
        results = self.model._wait(native, False, {})
        for request, result in zip(requests, results):
            self.cache_hook.add_partial("generate_until", request.args, result.text)
        return [result.text for result in results]


def _options(settings: dict[str, Any], max_gen_toks: int) -> Options:
    """The keywords of `generate` for a task's settings, which are transformers'."""
    is_sampled = settings.get("do_sample", settings.get("temperature", 0) > 0)
    until = settings.get("until") or []
    options: Options = {
        "max_tokens": settings.get("max_gen_toks", max_gen_toks),
        "stop": [until] if isinstance(until, str) else [text for text in until if text],
        "temperature": settings.get("temperature", 1.0) if is_sampled else 0.0,
        "seed": settings.get("seed", 0),
        # A sample of the whole distribution, unless the task cuts it.
        "top_k": settings.get("top_k", 0),
        "top_p": settings.get("top_p", 1.0),
        "min_p": settings.get("min_p", 0.0),
    }
    return options


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
