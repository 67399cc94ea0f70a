"""`rhapsode translate MODEL TEXT...`: what an encoder-decoder makes of texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

if TYPE_CHECKING:
    from rhapsode.inference.translation import Translation

AtLeastOne = validators.Number(gte=1)


def translate(
    model: Path,
    /,
    *texts: Annotated[str, Parameter(allow_leading_hyphen=True)],
    beams: Annotated[int | None, Parameter(validator=AtLeastOne)] = None,
    length_penalty: float | None = None,
    max_tokens: Annotated[int | None, Parameter(validator=AtLeastOne)] = None,
    out: Path | None = None,
    force: bool = False,
    json: bool = False,
    device: str = "auto",
) -> None:
    """Turn texts into what the model was trained to make of them, one line for each.

    The most likely text is searched for with beams; what is not chosen here is as the model's folder says.

        rhapsode translate runs/german "A dog runs."

        rhapsode translate runs/german sentences.txt --out german.txt --beams 5

    Parameters
    ----------
    model: Path
        The folder of an encoder-decoder, a checkpoint, or a run.
    texts: str
        Texts, or files (gzipped too) with a text on each line. Without any, or for -, lines of standard input.
    beams: int
        Beginnings of each text that are followed side by side; 1 always takes the most likely token.
    length_penalty: float
        A text's log probability is divided by its length to this power: above 0 longer texts win, below 0 shorter.
    max_tokens: int
        Longest text to write, its end included.
    out: Path
        The file to write, instead of standard output.
    force: bool
        Replace the file in --out.
    json: bool
        Print a JSON object for each text: source, text, score, ended.
    device: str
        auto, cpu, cuda or mps.
    """
    import contextlib
    import sys
    import time
    from itertools import tee

    from rhapsode.base.files import new_file
    from rhapsode.base.machine import prepare
    from rhapsode.base.progress import Progress, note
    from rhapsode.cli.lines import count_of, texts_of
    from rhapsode.inference.language_model import load

    chosen = {"beams": beams, "length_penalty": length_penalty, "max_new_tokens": max_tokens}
    settings: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    total = count_of(texts)
    prepare(device)
    language_model = load(model, device)
    language_model.translations([], **settings)  # what is wrong with them is known before --out is made
    sources, reading = tee(texts_of(texts))
    start, count, cut = time.monotonic(), 0, 0
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if out is not None:
            path = stack.enter_context(new_file(out, replace=force))
            file = stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
        quiet = out is None and sys.stdout.isatty()
        progress = stack.enter_context(Progress("translating", total, "texts", quiet=quiet))
        translated: Iterator[Translation] = (
            (each for text in reading for each in language_model.translations([text], **settings))
            if total is None and sys.stdin.isatty()  # who types a line waits for its translation
            else language_model.translations(reading, progress=progress, **settings)
        )
        for source, each in zip(sources, translated, strict=True):
            print(_as_json(source, each) if json else each.text.replace("\n", " "), file=file, flush=quiet)
            count, cut = count + 1, cut + (not each.ended)
    note(f"{count:,} {'text' if count == 1 else 'texts'}, {count / max(time.monotonic() - start, 1e-9):.1f} texts/s")
    if cut:
        note(f"{cut:,} of them reached the greatest length and may be cut; --json tells which (ended).")


def _as_json(source: str, translation: Translation) -> str:
    from json import dumps

    shown = {"text": translation.text, "score": translation.score, "ended": translation.ended}
    return dumps({"source": source} | shown, ensure_ascii=False)
