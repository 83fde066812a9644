"""Our models as the model type `unmask` of lm-evaluation-harness (extra `lm-eval`): `unmask lm-eval ARGUMENTS`.

Model arguments: `pretrained` (model folder, run folder or hub name), `device`, `dtype`, `mode` (static or dynamic, as in
`unmask eval`), `max_batch_size` (sequences decoded together), and any sampling parameter.

The likelihood of a text is that of being unmasked from left to right, one token a step: a product of conditional
probabilities in an order in which the model can decode, the text's tokens after it still masked. For a full-attention model
the canvas is just as long as the text. (The evaluation of LLaDA, arXiv 2502.09992, uses a Monte Carlo bound over random
orders instead.)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from unmask.config import GenerateRecipe, check
from unmask.config.evaluation import DEFAULT_MODES
from unmask.data.chat import ChatTokenizer
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.evaluate.records import fingerprint
from unmask.launch import find_model_folder, pick_device, pick_precision
from unmask.models.checkpoint import load_model
from unmask.objectives.trace_views import replay_logprobs
from unmask.rl.rollout import derive_seed
from unmask.train.progress import Progress
from unmask.types import SamplingParams, Trace

MAX_LENGTH = 4096  # tokens of a window, where a text is longer
_SAMPLING = ("temperature", "top_p", "top_k")
_WITHOUT_MEANING = ("do_sample", "until", "max_gen_toks")  # read by themselves


@register_model("unmask")
class UnmaskLM(LM):
    """What the harness asks for. Raises `UnmaskError` for arguments that mean nothing here."""

    def __init__(
        self, pretrained: str, device: str | None = None, dtype: str = "auto", mode: str = "", batch_size: Any = None,
        max_batch_size: int | None = None, **sampling: Any,
    ):  # fmt: skip
        super().__init__()
        if mode and mode not in DEFAULT_MODES:
            raise UnmaskError(f"model_args: unknown mode {mode!r}; known: {', '.join(DEFAULT_MODES)}")
        settings = {**DEFAULT_MODES.get(mode, {"temperature": 0.0}), **sampling}
        self.params = check(SamplingParams, settings, "model_args")
        limits = GenerateRecipe().engine.model_dump()
        given = max_batch_size or (batch_size if isinstance(batch_size, int) else None)
        if given is not None and given > 1:  # 1 is the harness's own default
            limits["max_sequences"] = given
        target = pick_device(device or "auto")
        self.folder = find_model_folder(pretrained)
        model = load_model(self.folder, device=target, dtype=pick_precision(dtype, target))
        self.chat = ChatTokenizer.load(self.folder)
        self.engine = Engine(model, decode=self.chat.decode, **limits)

    @property
    def tokenizer_name(self) -> str:
        """Also the name under which the harness caches what was asked."""
        return f"{self.folder.name}@{fingerprint(self.folder)}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        return str(self.chat.tokenizer.chat_template) if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = self.chat.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip
        return str(text)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """All together. Each request draws from a seed of its own, that of `model_args` and its number."""
        prompts, every, untils = [], [], []
        for number, request in enumerate(requests):
            context, settings = request.args
            params, until = self._params(settings, number)
            prompts.append(self.chat.encode(context))
            every.append(params)
            untils.append(until)
        traces: dict[int, Trace] = {}
        with Progress("generating", len(requests), unit="answer") as progress:
            for index, news in self.engine.stream(prompts, every):
                if news.trace is not None:
                    traces[index] = news.trace
                    progress.show(len(traces), {"tokens per forward": news.trace.tokens_per_forward})
        answers = [_before(self.chat.decode(traces[i].response_ids), untils[i]) for i in range(len(requests))]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See the top of this file. The second value: whether greedy decoding from left to right gives the continuation."""
        pairs = [self._split(*request.args) for request in requests]
        scores = self._score(pairs)
        greedy = self._greedy(pairs)
        found = [(score, again == text) for score, again, (_, text) in zip(scores, greedy, pairs, strict=True)]
        for request, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, score)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, after the end token, in windows of at most 4096 tokens."""
        found = []
        for request in requests:
            tokens = self.chat.encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self.chat.turn_end_id, max_seq_len=MAX_LENGTH, context_len=1)
            found.append(sum(self._score([make_disjoint_window(window) for window in windows])))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def _params(self, settings: Mapping[str, Any], number: int) -> tuple[SamplingParams, list[str]]:
        if unknown := [key for key in settings if key not in (*_SAMPLING, *_WITHOUT_MEANING)]:
            raise UnmaskError(
                f"generation setting {unknown[0]!r} is not known; known: {', '.join(_SAMPLING + _WITHOUT_MEANING)}"
            )
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        changed = {key: settings[key] for key in _SAMPLING if key in settings}
        if settings.get("do_sample") is False:
            changed["temperature"] = 0.0
        elif "temperature" in changed:
            changed["temperature"] = float(changed["temperature"])
        if "max_gen_toks" in settings:
            changed["max_new_tokens"] = settings["max_gen_toks"]
        stops = tuple(dict.fromkeys([*self.params.stop_strings, *filter(None, until)]))
        changed |= {"stop_strings": stops, "seed": derive_seed(self.params.seed, number)}
        if self.params.stop_token_ids is None and not self.params.ignore_eos:
            changed["stop_token_ids"] = tuple(sorted({*self.engine.model.spec.eos_token_ids, self.chat.turn_end_id}))
        return check(SamplingParams, {**self.params.model_dump(), **changed}, "generation settings"), until

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, cut where the context's own tokens end; white space at its end belongs to what follows."""
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        before = self.chat.encode(context) if context else []
        whole = self.chat.encode(context + continuation)
        return (before or [self.chat.turn_end_id]), whole[len(before) :]

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        spec, traces = self.engine.model.spec, []
        for prompt, text in pairs:
            num = len(text)
            size = max(1, num) if spec.attention == "bidirectional" else spec.block_size or 1
            rest = 0 if spec.attention == "bidirectional" else -(len(prompt) + num) % size
            canvas = text + [spec.mask_token_id] * rest
            steps, zeros = [*range(num), *[-1] * rest], [0.0] * (num + rest)
            traces.append(Trace(prompt, canvas, steps, zeros, zeros, num, size, num, "length"))
        return [sum(row) for row in replay_logprobs(self.engine.model, traces)]

    def _greedy(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[int]]:
        """What is decoded after each prompt from left to right, each token the most probable one."""
        params = [
            SamplingParams(
                max_new_tokens=max(1, len(text)), temperature=0.0, remasking_strategy="sequential", ignore_eos=True,
                stop_token_ids=(),
            )
            for _, text in pairs
        ]  # fmt: skip
        traces = self.engine.generate([prompt for prompt, _ in pairs], params)
        return [trace.canvas_ids[: len(text)] for trace, (_, text) in zip(traces, pairs, strict=True)]


def _before(text: str, stops: Sequence[str]) -> str:
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    return text[: min(ends, default=len(text))]


def main(words: list[str]) -> None:
    """The harness's own command line, with `--model unmask` where it names none."""
    from lm_eval.__main__ import cli_evaluate

    is_run = not words or words[0] not in ("ls", "validate")
    sys.argv = ["lm-eval", *words, *(["--model", "unmask"] if is_run and words and "--model" not in words else [])]
    cli_evaluate()
