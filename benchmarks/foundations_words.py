"""Skip-gram on the English novels (69 MB) beside gensim's: words a second, and agreement with people's judgements.

    python benchmarks/foundations_words.py [--rounds 1] [--threads 2] [--epochs 5] [--megabytes 69]

Both read the same sentences from memory, with the same settings and as many threads, in turns in one process, each
round with another seed. A word counts each time it is read, the rare ones too; the time is that of everything, from
sentences to vectors: the vocabulary, the training and, in the first round, the compiling. Processor time is that of all
threads: it says what the program costs where something else keeps the cores busy. The judgements are those beside this
checkout, asked of both by `rhapsode.explain`: Spearman's correlation on WordSim-353 and SimLex-999, and the analogies
of word2vec among the first 30,000 words.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gensim
import numpy as np
from rich.console import Console
from rich.table import Table

from rhapsode.base.machine import processor
from rhapsode.explain.embeddings import WordVectors
from rhapsode.explain.judgements import read_judgements
from rhapsode.foundations.skip_gram import SkipGram, sentences_of

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NOVELS = DATA / "pretrain" / "english_novels.tar.xz"
PAIRS = {"WordSim-353": "EN-WS-353-ALL.txt", "SimLex-999": "EN-SIMLEX-999.txt"}
COMMON = {"window": 5, "min_count": 5}
DIMENSION = 100
LEAST_SPEED = 300_000  # words a second
MOST_BELOW = 0.02  # of Spearman's correlation, below gensim's

Vectors = tuple[Sequence[str], Any]


def novels(megabytes: float) -> tuple[int, list[list[str]]]:
    """How many novels there are in so many megabytes, and their paragraphs."""
    sentences: list[list[str]] = []
    count, left = 0, megabytes * 1e6
    with tarfile.open(NOVELS) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() and left > 0 else None
            if file is not None:
                text = io.TextIOWrapper(file, encoding="utf-8-sig").read()[: int(left)]
                left -= len(text.encode("utf-8"))
                sentences += ([*map(sys.intern, words)] for words in sentences_of(text))
                count += 1
    return count, sentences


def ours(sentences: list[list[str]], epochs: int, threads: int, seed: int) -> Vectors:
    model = SkipGram(dimension=DIMENSION, epochs=epochs, threads=threads, seed=seed, **COMMON).fit(sentences)
    return model.words_, model.vectors_


def theirs(sentences: list[list[str]], epochs: int, threads: int, seed: int) -> Vectors:
    same = {"vector_size": DIMENSION, "sg": 1, "negative": 5, "sample": 1e-3, "alpha": 0.025, "min_alpha": 1e-4}
    model = gensim.models.Word2Vec(sentences, epochs=epochs, workers=threads, seed=seed, **same, **COMMON)
    return model.wv.index_to_key, model.wv.vectors


def judged(words: Sequence[str], matrix: Any) -> dict[str, float]:
    """What people's judgements say of the vectors."""
    vectors = WordVectors(words, np.array(matrix))
    figures: dict[str, float] = {}
    for name, file in PAIRS.items():
        pairs = read_judgements(DATA / "embeddings" / "word-sim" / file)
        assert isinstance(pairs, list)
        found = vectors.correlation(pairs)
        assert found.spearman is not None
        figures[name] = found.spearman
        figures[f"{name}, pairs"] = found.pairs
    questions = read_judgements(DATA / "embeddings" / "questions-words.txt")
    assert isinstance(questions, dict)
    sections = vectors.analogies(questions)
    asked = sum(section.asked for section in sections)
    figures["analogies, %"] = 100 * sum(section.right for section in sections) / max(asked, 1)
    figures["analogies, asked"] = asked
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=69)
    a = parser.parse_args()
    count, sentences = novels(a.megabytes)
    words = sum(map(len, sentences))
    print(f"{processor()}, {a.threads} threads, gensim {gensim.__version__}")
    print(f"{count} novels, {words:,} words in {len(sentences):,} paragraphs, read {a.epochs} times; ", end="")
    print(f"{DIMENSION} numbers a word\n")

    programs: dict[str, Callable[..., Vectors]] = {"rhapsode": ours, "gensim": theirs}
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for seed in range(1, a.rounds + 1):
        for name, program in programs.items():
            began, busy = time.perf_counter(), time.process_time()
            vectors = program(sentences, a.epochs, a.threads, seed)
            seconds, cost = time.perf_counter() - began, time.process_time() - busy
            speed = {"words/s": words * a.epochs / seconds, "words a processor second": words * a.epochs / cost}
            figures[name].append(speed | judged(*vectors))

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    medians = {
        name: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for name, runs in figures.items()
    }
    for name in programs:
        table.add_column(name, justify="right")
    for key in medians["rhapsode"]:
        digits = 0 if medians["gensim"][key] > 100 else 4 if key in PAIRS else 1
        table.add_row(key, *(f"{medians[name][key]:,.{digits}f}" for name in programs))
    Console(highlight=False, markup=False).print(table)
    for key in PAIRS:
        each = [f"{ours[key]:.4f} and {theirs[key]:.4f}" for ours, theirs in zip(*figures.values(), strict=True)]
        print(f"{key}, each round: {'; '.join(each)}")
    below = medians["gensim"]["WordSim-353"] - medians["rhapsode"]["WordSim-353"]
    if medians["rhapsode"]["words/s"] < LEAST_SPEED or below > MOST_BELOW:
        raise SystemExit(f"below {LEAST_SPEED:,} words/s, or more than {MOST_BELOW} below gensim")


if __name__ == "__main__":
    main()
