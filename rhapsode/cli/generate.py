"""`rhapsode generate MODEL PROMPT`: continue a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter, validators

from rhapsode.inference.cache_type import CacheType
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.styles import Style

if TYPE_CHECKING:
    from rhapsode.inference.language_model import LanguageModel
    from rhapsode.inference.text import Piece

SAMPLING = Group.create_ordered("Sampling", help="The steps act in this order; docs/generation.md explains them.")

MOST_BEAMS = 1000
LONGEST_HINT = 60  # characters of a prompt that is repeated in a hint

REASONS = {
    "stop": "stopped at a stop string or token",
    "length": "stopped at --max-new-tokens {sampling.max_new_tokens}",
    "context": "stopped because the model's context of {config.context_length} tokens is full",
    "end of text": "the model ended the text",
}


def generate(
    model: Path,
    words: Annotated[str, Parameter(name="PROMPT")] = "",
    /,
    *,
    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    count: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=1000))] = 1,
    beams: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=MOST_BEAMS))] = 1,
    length_penalty: float | None = None,
    device: str = "auto",
    speculate: str | None = None,
    cache_type: CacheType = "float32",
    style: Annotated[Style | None, Parameter(group=SAMPLING)] = None,
    sampling: Annotated[Sampling, Parameter(name="*", group=SAMPLING)] = Sampling(),  # noqa: B008  # frozen
) -> None:
    """Continue a prompt.

    Writes the prompt and what follows it to standard output as it comes, and why it ended to standard error.

        rhapsode generate runs/mytext "Once upon a time" --style creative --count 3

    Parameters
    ----------
    model: Path
        A model folder, a checkpoint, or a run.
    words: str
        The beginning of the text. Without one, the model begins a text of its own.
    prompt: str
        The same; - reads it from standard input, without the line end that closes it.
    count: int
        Write so many texts, from this seed and those after it; with --beams, the most likely ones, the best first.
    beams: int
        Search for the most likely text instead of drawing one, following so many beginnings side by side; 1 draws.
    length_penalty: float
        A text's log probability is divided by its length to this power, 1 unless given: above 0 longer texts win, below
        0 shorter.
    device: str
        auto, cpu, cuda or mps.
    speculate: str
        Guess tokens and read several at once, for the same text sooner: prompt guesses what stood there before, a
        smaller model with the same tokenizer guesses what it would write.
    cache_type: CacheType
        What keys and values are kept in: float16 takes half the memory, int8 a quarter, on a processor.
    style: Style
        Values that go well together, for what their name says; flags beside it are stronger.
    """
    import time
    from dataclasses import replace
    from shlex import quote

    from rhapsode.base.errors import InputError
    from rhapsode.base.machine import prepare
    from rhapsode.base.progress import note
    from rhapsode.inference.language_model import load

    if words and prompt is not None:
        raise InputError("there are two prompts", todo="Give PROMPT or --prompt.")
    text = words if prompt is None else prompt
    text = _standard_input() if text == "-" else text
    if beams == 1 and length_penalty is not None:
        raise InputError("is for searches", where="--length-penalty", todo="Give --beams too.")
    if beams > 1 and (style or speculate):
        flag = "--style" if style else "--speculate"
        raise InputError("is for texts that are drawn; --beams search", where=flag, todo="Leave one of them out.")
    prepare(device)
    language_model = load(model, device)
    language_model.cache_type = cache_type
    if speculate:
        language_model.speculate("prompt" if speculate == "prompt" else load(speculate, device))
    if beams > 1:
        _search(language_model, model, text, sampling, count, beams, 1.0 if length_penalty is None else length_penalty)
        return
    samplings = [replace(sampling, seed=sampling.seed + number) for number in range(count)]
    start = time.monotonic()
    last = _show(text, language_model.stream_several(text, samplings), samplings)
    rate = sum(row_tokens for row_tokens, _ in last) / max(time.monotonic() - start, 1e-9)
    for row, (tokens, reason) in enumerate(last):
        why = REASONS[reason].format(sampling=sampling, config=language_model.config)
        note(f"{f'seed {samplings[row].seed}: ' if count > 1 else ''}{tokens} tokens, {why}")
    engine = language_model.engine()
    right = f", {engine.accepted} of {engine.guessed} guesses right" if speculate else ""
    note(f"{rate:.0f} tokens/s{right}")
    again = quote(text) if len(text) < LONGEST_HINT else "PROMPT"
    note(f"next: rhapsode generate {quote(str(model))} {again} --seed {sampling.seed + count}")


def _search(
    language_model: LanguageModel,
    model: Path,
    prompt: str,
    sampling: Sampling,
    count: int,
    beams: int,
    length_penalty: float,
) -> None:
    """Print the most likely texts one after another."""
    import time
    from dataclasses import replace
    from shlex import quote

    from rhapsode.base.errors import InputError
    from rhapsode.base.progress import note

    if count > beams:
        raise InputError(f"{beams} beams find no {count} texts", where="--count", todo="Use more --beams.")
    start = time.monotonic()
    found = language_model.search(
        prompt,
        beams=beams,
        length_penalty=length_penalty,
        max_new_tokens=sampling.max_new_tokens,
        sampling=replace(sampling, max_new_tokens=Sampling().max_new_tokens),
        count=count,
    )
    for number, each in enumerate(found, start=1):
        head = f"--- text {number} ---\n" if count > 1 else ""
        print(f"{head}{prompt}{each.text}")
    for number, each in enumerate(found, start=1):
        why = REASONS[each.finish_reason].format(sampling=sampling, config=language_model.config)
        name = f"text {number}: " if count > 1 else ""
        note(f"{name}score {each.score:.4f}, {len(each.ids)} tokens, {why}")
    note(f"{beams} beams, {time.monotonic() - start:.1f} s")
    again = quote(prompt) if len(prompt) < LONGEST_HINT else "PROMPT"
    note(f"next: rhapsode generate {quote(str(model))} {again} --beams {min(2 * beams, MOST_BEAMS)}")


def _show(prompt: str, pieces: Iterator[Piece], samplings: list[Sampling]) -> list[tuple[int, str]]:
    """Print the texts one after another, the first ones as they come; returns tokens and finish reason of each."""
    waiting = [""] * len(samplings)
    tokens, reasons = [0] * len(samplings), [""] * len(samplings)
    shown = 0

    def head(row: int) -> str:
        return prompt if len(samplings) == 1 else f"--- seed {samplings[row].seed} ---\n{prompt}"

    print(head(0), end="", flush=True)
    for piece in pieces:
        waiting[piece.row] += piece.text
        tokens[piece.row] += 1
        reasons[piece.row] = piece.finish_reason or ""
        while True:
            print(waiting[shown], end="", flush=True)
            waiting[shown] = ""
            if not reasons[shown]:
                break
            print()
            shown += 1
            if shown == len(samplings):
                break
            print(head(shown), end="")
    return list(zip(tokens, reasons, strict=True))


def _standard_input() -> str:
    """The text on standard input, without the line end that closes it."""
    import sys

    from rhapsode.base.errors import InputError

    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text at byte {error.start}", where="standard input") from None
