"""How often rounding makes a text another one: the same texts written alone, in batches, and with prompts cut up.

    python benchmarks/ties.py [--texts 64] [--new-tokens 128]

What is written beside a text changes the order in which fp32 sums are rounded, and nothing else. Where two tokens are
as good as equally likely, or the random number falls on the border of two, the other one can then be drawn, and the
texts part. Counted is each text up to there; the gap is how far, in probability, the draw was from the other token.
Ends with 1 if any gap is larger than rounding makes it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import rhapsode
from rhapsode.base.machine import prepare, processor, threads
from rhapsode.base.random import generator
from rhapsode.corpus.examples import example
from rhapsode.inference import engine as engine_module
from rhapsode.inference.engine import Engine
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.matching import Constraints
from rhapsode.inference.sampling import Sampling, distribution, draw
from rhapsode.inference.step import TorchStep
from rhapsode.inference.text import Text
from rhapsode.model.block_cache import BLOCK
from rhapsode.model.families import FAMILIES
from rhapsode.model.model import new_model
from rhapsode.tokenizer.train import train_tokenizer
from rhapsode.training.settings import TrainSettings

NEAR = 1e-5
"""The largest gap, in probability, that rounding explains."""
BATCHES = (2, 4, 8, 16, 32)
CUTS = (16, 64)
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "sampled": Sampling(temperature=1.0, top_p=1.0),
    "top-p": Sampling(temperature=0.8),
}
UNFILTERED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


def gap(logits: np.ndarray, text: Text, other: int) -> float:
    """How far, in probability, the next draw of a text is from giving `other`; 0 where that is what it gives.

    Greedy: how much likelier the best token is. Else: from the random number to the share of [0, 1) that is `other`'s.
    Where a filter leaves `other` nothing: the least change of the logits, in powers of ten, that was found to give it.

    Args:
        logits: (rows, at least the vocabulary), those after the text.
    """
    logits, sampling, length = logits[: text.vocabulary_size], text.sampling, len(text.ids)
    allowed = None if text.matcher is None else text.matcher.allowed(text.vocabulary_size)

    def shares(scores: np.ndarray, sampling: Sampling = sampling) -> np.ndarray:
        return distribution(scores, sampling, text.ids, prompt_length=text.prompt_length, allowed=allowed)

    if sampling.temperature == 0:
        likely = shares(logits, replace(sampling, **UNFILTERED))
        return float(likely.max() - likely[other])
    likely = shares(logits)
    if likely[other] > 0:
        point, end = generator(sampling.seed, "sampling", length).random(), likely[: other + 1].sum()
        return float(max(0.0, end - likely[other] - point, point - end))
    noise = generator(0, "ties")
    for size in 10.0 ** np.arange(-8, 1):
        for _ in range(100):
            moved = logits + size * noise.uniform(-1, 1, len(logits))
            if draw(shares(moved), sampling.seed, length) == other:
                return float(size)
    return 1.0


def gap_after(
    model: LanguageModel, prompt: Sequence[int], written: Sequence[int], sampling: Sampling, other: int
) -> float:
    """`gap` after what a model has written, by its logits for the text alone, read in one piece."""
    matcher = None
    if sampling.constraint is not None:
        stops = {model.tokenizer.token_to_id(name) for name in sampling.stop_tokens}
        matcher = Constraints(model.tokenizer, sorted(model.end_ids | stops)).matcher(sampling.constraint)
    text = Text(0, prompt, sampling, model.tokenizer, model.end_ids, model.config.context_length, matcher)
    for token in written:
        text.push(token)
    return gap(model.logits(torch.tensor([text.ids]))[0, -1].float().cpu().numpy(), text, other)


@dataclass
class Comparison:
    """Texts written in some way, beside the same texts alone."""

    tokens: int = 0
    """Drawn after the same beginnings."""
    gaps: list[float] = field(default_factory=list)
    """Of those that were drawn otherwise, at most one in each text."""


Asked = tuple[list[int], Sampling]


def written(model: LanguageModel, asked: Sequence[Asked], step: TorchStep | None = None) -> list[list[int]]:
    """The ids of texts written together, nothing of which was read before."""
    blocks = sum(-(-(len(prompt) + sampling.max_new_tokens) // BLOCK) for prompt, sampling in asked)
    engine = Engine(step or TorchStep(model.decoder(), blocks), model.tokenizer, model.config.context_length)
    requests = [engine.submit(prompt, [sampling], model.end_ids) for prompt, sampling in asked]
    while not engine.idle:
        engine.step()
    return [request.texts[0].ids[len(prompt) :] for request, (prompt, _) in zip(requests, asked, strict=True)]


def compare(
    model: LanguageModel, asked: Sequence[Asked], alone: Sequence[list[int]], others: Sequence[list[int]]
) -> Comparison:
    """Count where `others` part from `alone`."""
    found = Comparison()
    for (prompt, sampling), mine, other in zip(asked, alone, others, strict=True):
        same = next((place for place, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), None)
        if same is None:
            found.tokens += len(mine)
            continue
        found.tokens += same + 1
        found.gaps.append(gap_after(model, prompt, mine[:same], sampling, other[same]))
    return found


def ways(model: LanguageModel, asked: Sequence[Asked]) -> Iterator[tuple[str, list[list[int]]]]:
    """The texts in batches of each size, and alone with their prompts read in pieces of each size."""
    for size in (size for size in BATCHES if size <= len(asked)):
        batches = (asked[first : first + size] for first in range(0, len(asked), size))
        yield f"{size} at once", [ids for batch in batches for ids in written(model, batch)]
    for cut in CUTS:
        before = engine_module.PROMPT_TOKENS
        engine_module.PROMPT_TOKENS = cut
        try:
            yield f"pieces of {cut}", [ids for one in asked for ids in written(model, [one])]
        finally:
            engine_module.PROMPT_TOKENS = before


def prompts(model: LanguageModel, count: int, longest: int) -> list[list[int]]:
    """Beginnings from the plays, of 1 to `longest` tokens."""
    ids = model.tokenizer.encode(example("shakespeare").read_text(encoding="utf-8")[:200_000])
    noise = np.random.default_rng(0)
    lengths = noise.integers(1, longest + 1, count).tolist()
    return [
        ids[first : first + length] for first, length in zip(noise.integers(0, 50_000, count), lengths, strict=True)
    ]


def trained(folder: Path, steps: int) -> LanguageModel:
    """A tiny model of the plays."""
    settings = TrainSettings(steps=steps, layers=4, hidden_size=128, heads=4, context_length=256, vocabulary_size=512)
    rhapsode.train([str(example("shakespeare"))], settings, out=folder / "run")
    return rhapsode.load(folder / "run", "cpu")


def at_random() -> LanguageModel:
    """A Llama in the proportions of one of 135 million parameters, a third as wide and deep; weights at random."""
    tokenizer = train_tokenizer([example("shakespeare").read_text(encoding="utf-8")], "bpe", 4096)
    config = FAMILIES["llama"].config(tokenizer.vocabulary_size, 192, 10, 3, 1, 64, 512, 512, tied_embeddings=True)
    model, noise = new_model(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=noise)
    return LanguageModel(model.eval(), tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400, help="of training the tiny model")
    a = parser.parse_args()
    prepare("cpu")
    print(f"{processor()}, {threads()} threads")
    with tempfile.TemporaryDirectory(prefix="rhapsode-ties-") as folder:
        models = {"trained": trained(Path(folder), a.steps), "at random": at_random()}
        table = Table(title=f"{a.texts} texts of each kind, beside the same texts written alone")
        for heading in ("", "", "tokens", "otherwise", "one in", "gap"):
            table.add_column(heading, justify="right")
        largest, tokens, otherwise = 0.0, 0, 0
        for name, model in models.items():
            beginnings = prompts(model, a.texts, 120)
            for drawn, sampling in SAMPLINGS.items():
                asked = [
                    (ids, replace(sampling, seed=seed, max_new_tokens=a.new_tokens))
                    for seed, ids in enumerate(beginnings)
                ]
                alone = [
                    ids for one in track(asked, f"{name}, {drawn}", transient=True) for ids in written(model, [one])
                ]
                for how, others in ways(model, asked):
                    found = compare(model, asked, alone, others)
                    tokens, otherwise = tokens + found.tokens, otherwise + len(found.gaps)
                    largest = max([largest, *found.gaps])
                    rate = f"{found.tokens / len(found.gaps):,.0f}" if found.gaps else "-"
                    gaps = f"{max(found.gaps):.1e}" if found.gaps else "-"
                    table.add_row(f"{name}, {drawn}", how, f"{found.tokens:,}", f"{len(found.gaps):,}", rate, gaps)
    Console().print(table)
    print(f"{otherwise:,} of {tokens:,} tokens were drawn otherwise; the largest gap was {largest:.1e}")
    if largest > NEAR:
        sys.exit(f"a gap of more than {NEAR:g} is no rounding")


if __name__ == "__main__":
    main()
