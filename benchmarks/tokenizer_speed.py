"""How fast byte-level BPE encodes English, beside `tokenizers` and plain tiktoken with the same vocabulary.

    python benchmarks/tokenizer_speed.py [TOKENIZER] [--text FILE...] [--megabytes 40] [--rounds 5]

Trains a vocabulary of 8,192 tokens unless a TOKENIZER is given, and checks that the ids are equal. The text is the
English novels beside this checkout, or the bundled Shakespeare repeated. All take turns in one process, on as many
threads as the machine has cores. The peers get the text in parts that they can share among threads; ours cuts it.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rhapsode.base.machine import processor, threads

os.environ["RAYON_NUM_THREADS"] = str(threads())  # read when `tokenizers` is first used

import numpy as np
import tiktoken
import tokenizers
from rich.console import Console
from rich.table import Table

from rhapsode.corpus.examples import example
from rhapsode.tokenizer.encoders import byte_pair_ranks, merges_of
from rhapsode.tokenizer.pre_tokenizers import PATTERNS, safe_parts
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

NOVELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "pretrain" / "english_novels.tar.xz"


def documents(files: list[Path]) -> Iterator[str]:
    """The text to encode."""
    if files:
        yield from (file.read_text(encoding="utf-8") for file in files)
    elif NOVELS.is_file():
        with tarfile.open(NOVELS) as archive:
            for member in archive:
                if member.isfile() and (file := archive.extractfile(member)) is not None:
                    yield io.TextIOWrapper(file, encoding="utf-8").read()
    else:
        shakespeare = example("shakespeare").read_text(encoding="utf-8")
        while True:
            yield shakespeare


def first(megabytes: float, files: list[Path]) -> list[str]:
    """The first documents, until they have so many megabytes."""
    texts: list[str] = []
    for text in documents(files):
        texts.append(text)
        if sum(map(len, texts)) >= megabytes * 1e6:
            break
    return texts


def plain_tiktoken(tokenizer: Tokenizer) -> tiktoken.Encoding:
    """tiktoken as its users have it: the ranks and the pattern, nothing of ours."""
    model = tokenizer.content["model"]
    found = byte_pair_ranks(model["vocab"], merges_of(model))
    if tokenizer.pre_tokenizer is None or found is None:
        raise SystemExit("error: tiktoken cannot encode as this tokenizer does.")
    return tiktoken.Encoding(
        "plain", pat_str=PATTERNS[tokenizer.pre_tokenizer], mergeable_ranks=found[0], special_tokens={}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?", type=Path)
    parser.add_argument("--text", nargs="*", type=Path, default=[])
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--vocabulary-size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    texts = first(a.megabytes, a.text)
    size = sum(len(text.encode("utf-8")) for text in texts) / 1e6
    start = time.perf_counter()
    tokenizer = Tokenizer.load(a.tokenizer) if a.tokenizer else train_tokenizer(texts, "bpe", a.vocabulary_size)
    ready = "loaded" if a.tokenizer else "trained"
    print(f"{processor()}, {threads()} threads, tokenizers {tokenizers.__version__}, tiktoken {tiktoken.__version__}")
    print(f"{size:.1f} MB of text in {len(texts)} documents; {tokenizer.vocabulary_size:,} tokens, ", end="")
    print(f"{ready} in {time.perf_counter() - start:.1f} s")

    start = time.perf_counter()
    tokenizer.prepare()
    print(f"our encoder made ready, its ids proven equal, in {time.perf_counter() - start:.2f} s\n")

    library = tokenizers.Tokenizer.from_str(tokenizer.definition)
    library.encode_special_tokens = True
    plain = plain_tiktoken(tokenizer)
    parts = [part for text in texts for part in safe_parts([text])]
    routes: dict[str, Callable[[], Any]] = {
        "tokenizers, encode_batch_fast": lambda: library.encode_batch_fast(parts, add_special_tokens=False),
        "tiktoken, encode_ordinary_batch": lambda: plain.encode_ordinary_batch(parts, num_threads=threads()),
        "rhapsode, encode_batch": lambda: tokenizer.encode_batch(texts),
    }
    theirs = np.concatenate([encoding.ids for encoding in routes["tokenizers, encode_batch_fast"]()])
    ours = np.concatenate(routes["rhapsode, encode_batch"]())
    equal = np.array_equal(ours, theirs)
    routes["tiktoken, encode_ordinary_batch"]()

    seconds: dict[str, list[float]] = {name: [] for name in routes}
    for _ in range(a.rounds):
        for name, route in routes.items():
            start = time.perf_counter()
            result = route()
            seconds[name].append(time.perf_counter() - start)
            del result
    table = Table(box=None, pad_edge=False)
    for heading in ("", "MB/s", "slowest", "fastest"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, times in seconds.items():
        figures = (statistics.median(times), max(times), min(times))
        table.add_row(name, *(f"{size / figure:.1f}" for figure in figures))
    Console(highlight=False, markup=False).print(table)
    print(
        f"\nmedian of {a.rounds} rounds in turns; {len(ours):,} ids, {'equal' if equal else 'NOT EQUAL'} to tokenizers'"
    )
    if not equal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
