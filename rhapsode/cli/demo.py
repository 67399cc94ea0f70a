"""`rhapsode demo`: three minutes on Shakespeare, to see it all."""

from __future__ import annotations

import time
from pathlib import Path

TEMPERATURES = (0.2, 0.7, 1.0)
PROMPT = "\n"
SAMPLE_TOKENS = 200


def demo(*, minutes: float = 3, out: Path = Path("runs/demo")) -> None:
    """Train on the bundled Shakespeare for three minutes and show the result.

    Writes a run folder with the model and its report, prints text sampled at three temperatures and what to type next.

        rhapsode demo

    Parameters
    ----------
    minutes: float
        Minutes the training may take.
    out: Path
        The run folder; if it is there already, the next free name after it.
    """
    started = time.time()
    from rhapsode.base.settings import validated
    from rhapsode.cli.train import show_plan, show_result
    from rhapsode.corpus.examples import example
    from rhapsode.inference.language_model import load
    from rhapsode.inference.sampling import Sampling
    from rhapsode.training import run
    from rhapsode.training.settings import TrainSettings

    settings = validated(TrainSettings, {"minutes": minutes}, "demo")
    result = run.train(
        [str(example("shakespeare"))],
        settings,
        out=next_free(out),
        started=started,
        show_plan=show_plan,
        licence="public domain",
    )
    if result.reason in ("done", "validation turned up"):
        samplings = [Sampling(temperature=temperature, max_new_tokens=SAMPLE_TOKENS) for temperature in TEMPERATURES]
        texts = load(result.run).generate_several(PROMPT, samplings)
        for temperature, generation in zip(TEMPERATURES, texts, strict=True):
            print(f"\n--- temperature {temperature:g} ---\n{generation.text.strip()}")
    show_result(result)


def next_free(folder: Path) -> Path:
    """`folder`, or the first of folder-2, folder-3, ... that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
