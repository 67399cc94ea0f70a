"""How fast and in how much memory `rhapsode corpus` prepares large texts.

    python benchmarks/corpus_memory.py [--gigabytes 1] [--kinds txt jsonl txt.zst]

The text is the bundled Shakespeare with its speeches shuffled anew for each megabyte, so no two documents are equal.
The command runs in a process of its own, whose memory (resident set) is looked at every 10 ms.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import zstandard
from rich.console import Console
from rich.table import Table

from rhapsode.base.random import generator
from rhapsode.corpus.examples import example

LARGEST_ALLOWED_BYTES = 2e9
SPEECHES_A_DOCUMENT = 10


def blocks(size: int) -> Iterator[list[str]]:
    """Speeches in new orders, about a megabyte at a time, until they add up to `size` bytes."""
    speeches = example("shakespeare").read_text(encoding="utf-8").split("\n\n")
    written = block = 0
    while written < size:
        order = generator(0, "corpus benchmark", block).permutation(len(speeches))
        block += 1
        yield [speeches[index] for index in order]
        written += sum(len(speech) + 2 for speech in speeches)


def write_text(path: Path, kind: str, size: int) -> None:
    """`size` bytes of text as one file of this kind."""
    with path.open("wb") as file:
        target = zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False) if kind == "txt.zst" else file
        for speeches in blocks(size):
            if kind == "jsonl":
                for first in range(0, len(speeches), SPEECHES_A_DOCUMENT):
                    text = "\n\n".join(speeches[first : first + SPEECHES_A_DOCUMENT])
                    target.write((json.dumps({"text": text}) + "\n").encode("utf-8"))
            else:
                target.write(("\n\n".join(speeches) + "\n\n").encode("utf-8"))
        if target is not file:
            target.close()


def measure(text: Path, out: Path) -> tuple[float, int]:
    """Seconds and peak bytes of memory of `rhapsode corpus TEXT --out OUT`."""
    began = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, "-m", "rhapsode", "corpus", str(text), "--out", str(out)],
        stdout=subprocess.DEVNULL,
    )
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.01)
    if process.wait() != 0:
        sys.exit(f"rhapsode corpus ended with exit code {process.returncode}")
    return time.perf_counter() - began, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--kinds", nargs="+", default=["txt", "jsonl", "txt.zst"], choices=["txt", "jsonl", "txt.zst"])
    parser.add_argument("--folder", type=Path, help="where the texts may lie meanwhile: three times their size")
    arguments = parser.parse_args()

    table = Table(title=f"rhapsode corpus, {arguments.gigabytes:g} GB of text in one file")
    for heading in ("kind", "documents", "seconds", "MB/s", "peak memory"):
        table.add_column(heading, justify="right")
    too_much = False
    for kind in arguments.kinds:
        folder = Path(tempfile.mkdtemp(prefix="rhapsode-corpus-", dir=arguments.folder))
        try:
            text, out = folder / f"text.{kind}", folder / "corpus"
            write_text(text, kind, int(arguments.gigabytes * 1e9))
            seconds, peak = measure(text, out)
            manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
            documents = sum(read["documents"] for read in manifest["read"].values())
            size = sum(split["bytes"] for split in manifest["splits"].values())
            table.add_row(
                kind, f"{documents:,}", f"{seconds:.1f}", f"{size / 1e6 / seconds:.0f}", f"{peak / 1e6:.0f} MB"
            )
            too_much |= peak > LARGEST_ALLOWED_BYTES
        finally:
            shutil.rmtree(folder)
    Console().print(table)
    if too_much:
        sys.exit("more than 2 GB of memory were used")


if __name__ == "__main__":
    main()
