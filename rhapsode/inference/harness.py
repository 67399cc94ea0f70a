"""A model of ours as the EleutherAI evaluation harness (lm-eval) asks it, and its tasks run with one.

    rhapsode evaluate runs/mytext --tasks arc_easy,lambada_openai --limit 100

Once this module is imported, lm-eval knows the model `rhapsode`; it is the one module that needs lm-eval. What a task
asks is read as by the harness's own class for transformers, `hf`, so that figures compare: texts are encoded and cut
alike, and names of control tokens in them become those tokens, for chat templates write them.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from rhapsode.base.errors import InputError, nearest
from rhapsode.base.progress import Progress, note
from rhapsode.inference.chat import ChatTemplate
from rhapsode.inference.engine import Request
from rhapsode.inference.evaluation import continuations
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.inference.sampling import Sampling

MOST_NEW_TOKENS = 256
"""Of an answer, where the task says nothing."""

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the most tokens of an answer; the first that is there counts."""

Pair = tuple[tuple[str, str] | None, list[int], list[int]]
"""A context and what follows it: as text, where there is one, and both as ids."""


@register_model("rhapsode")
class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm-eval declares no types
    """A decoder that the harness asks.

    Args:
        pretrained: a loaded model, or what `load` takes.
        device: "auto", "cpu", "cuda" or "mps".
        max_length: tokens that are read at once; the model's context unless given.
        batch_size: the harness gives it to every model; here as many texts are read side by side as is fast.
        max_batch_size: the same.

    Raises:
        InputError: no such model, one of another kind, more tokens than its context, or as `load`.
    """

    def __init__(
        self,
        pretrained: LanguageModel | Path | str,
        device: str = "auto",
        max_length: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.language_model = pretrained if isinstance(pretrained, LanguageModel) else load(pretrained, device)
        self._decoder = self.language_model.decoder()
        self._tokenizer = self.language_model.tokenizer
        self._device = self._decoder.device
        context = self._decoder.config.context_length
        self.max_length = context if max_length is None else max_length
        if not 1 <= self.max_length <= context:
            raise InputError(f"max_length must be between 1 and the model's context of {context}, not {max_length}")

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text.

        Raises:
            InputError: no token does.
        """
        if self._tokenizer.end_of_text_id is None:
            raise InputError("no token ends a text, and the task needs one", where=self._tokenizer.where)
        return self._tokenizer.end_of_text_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing precedes: the beginning of a text, where it has a token."""
        beginning = self._tokenizer.beginning_of_text_id
        return self.eot_token_id if beginning is None else beginning

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, after what stands before every text unless it stands there already."""
        ids = self._tokenizer.encode(string, special=True)
        front = [] if add_special_tokens is False else self._tokenizer.frame[0]
        return ids if not front or ids[: len(front)] == front else front + ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """ln p of what follows each context, and whether greedy search would write it."""
        pairs = [fitted(context, following, self.max_length) for _, context, following in requests]
        _tell_cut(sum(len(pair[0]) < len(asked[1]) for pair, asked in zip(pairs, requests, strict=True)), len(pairs))
        with Progress("reading", len(pairs), "texts", quiet=disable_tqdm) as progress:
            found = continuations(self._decoder, pairs, progress=progress)
        return [(one.log_probability, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """ln p of whole texts, read in windows of the model's context that do not overlap."""
        owners: list[int] = []
        windows: list[Pair] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, following in map(utils.make_disjoint_window, rolling):
                owners.append(number)
                windows.append((None, context, following))
        totals = [0.0] * len(requests)
        for number, (log_p, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[number] += log_p
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, all of them side by side."""
        engine, special, cut = self.language_model.engine(), self._tokenizer.special_tokens, 0
        asked: list[Request] = []
        texts: list[str] = []
        try:
            for number, request in enumerate(requests):
                context, settings = request.args
                sampling = sampling_of(settings, special, seed=number)
                room = self.max_length - sampling.max_new_tokens
                if room < 1:
                    raise InputError(
                        f"{sampling.max_new_tokens} new tokens leave no room in a context of {self.max_length}",
                        todo="Set max_gen_toks in the task's generation_kwargs.",
                    )
                ids = self.tok_encode(context) or [self.prefix_token_id]
                cut += len(ids) > room
                asked.append(engine.submit(ids[-room:], [sampling], self.language_model.end_ids))
            _tell_cut(cut, len(asked))
            with Progress("writing", len(asked), "texts", quiet=disable_tqdm) as progress:
                for one in asked:
                    texts.append("".join(piece.text for piece in engine.pieces(one)))
                    progress.advance()
        finally:
            for one in asked:
                engine.cancel(one)
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation through the model's template, up to where the assistant begins its turn, or goes on with it.

        Raises:
            InputError: there is no template, it fails, or it changes the turn that shall go on.
        """
        text = ChatTemplate(self.language_model).rendered(chat_history, None, generation=add_generation_prompt)
        if add_generation_prompt:
            return text
        begun = chat_history[-1]["content"]
        for ending in (begun.lstrip(), begun.strip()):  # templates may strip what is said
            if ending and ending in text:
                return text[: text.rindex(ending) + len(ending)]
        raise InputError("the chat template changes the turn that shall go on", where=self.language_model.where)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, which the harness records where it is used."""
        return self._tokenizer.chat_template if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """What the harness knows prompts by that it has kept."""
        return self._tokenizer.digest

    def get_model_info(self) -> dict[str, Any]:
        """What the harness records of the model."""
        where, parameters = self.language_model.where, self._decoder.config.parameters
        return {"model": "rhapsode", "model_args": {"pretrained": where}, "model_num_parameters": parameters}


def fitted(context: list[int], following: list[int], context_length: int) -> tuple[list[int], list[int]]:
    """The end of a context that fits into the model together with what follows it, of which the last is not read.

    Raises:
        InputError: what follows does not fit by itself.
    """
    if len(following) > context_length:
        raise InputError(
            f"a task asks for {len(following)} tokens at once; the model's context has {context_length}",
            todo="Use a model with a longer context.",
        )
    room = context_length + 1 - len(following)
    return context[-room:], following


def sampling_of(settings: dict[str, Any], special_tokens: Collection[str], *, seed: int) -> Sampling:
    """How an answer is written, from what a task calls `generation_kwargs`: greedily unless it says otherwise.

    Args:
        special_tokens: names that stop an answer as tokens too, where `until` has them.

    Raises:
        InputError: a setting that is unknown here, or out of range.
    """
    left = dict(settings)
    until = left.pop("until", None) or []
    stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
    lengths = [value for name in LENGTHS if (value := left.pop(name, None)) is not None]
    temperature, drawn = left.pop("temperature", None), left.pop("do_sample", None)
    if drawn is False or (drawn is None and temperature is None):
        temperature = 0.0
    known = {field.name for field in fields(Sampling)} - {"seed", "stop", "stop_tokens"}
    for name in left:
        if name not in known:
            raise InputError(f"{name!r} is unknown", where="generation_kwargs", todo=nearest(name, known))
    return Sampling(
        **({"top_p": 1.0} | left),
        temperature=1.0 if temperature is None else float(temperature),
        max_new_tokens=int(lengths[0]) if lengths else MOST_NEW_TOKENS,
        stop=stops,
        stop_tokens=tuple(stop for stop in stops if stop in special_tokens),
        seed=seed,
    )


def _tell_cut(cut: int, of: int) -> None:
    if cut:
        note(f"{cut:,} of {of:,} contexts are too long for the model: their beginnings were cut, as the harness does.")


def run_tasks(
    model: HarnessModel, tasks: Iterable[str], *, limit: int | None = None, include_path: Path | None = None
) -> dict[str, Any]:
    """The harness's results of a model on tasks, as `lm_eval.simple_evaluate` gives them.

    Args:
        tasks: names of tasks, groups or tags that the harness knows.
        limit: so many questions of each task; None for all.
        include_path: a folder of tasks (YAML) besides the harness's own. They may name Python code, which is run.

    Raises:
        InputError: there is no such task, or its data cannot be had.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise InputError("there is no such folder", where=str(include_path))
    manager = TaskManager(include_path=include_path)
    chosen = list(tasks)
    for name in chosen:
        if not manager.match_tasks([name]):
            raise InputError(f"the harness has no task {name!r}", todo="`lm_eval ls tasks` lists them.")
    try:
        with redirect_stdout(sys.stderr):  # what it says meanwhile is no result
            results: dict[str, Any] = simple_evaluate(
                model, tasks=chosen, limit=limit, task_manager=manager, log_samples=False
            )
    except OSError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"the data of a task cannot be had ({reason})", where=", ".join(chosen)) from None
    return results
