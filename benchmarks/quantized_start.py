"""How soon a quantised model writes its first token, in how much memory, and what compiling the kernels takes.

    python benchmarks/quantized_start.py FOLDER [--rounds 5]

FOLDER is a model that `rhapsode quantize` wrote; its file should be in the system's cache, so run it twice. Every
figure is from a fresh process: the first with an empty folder for compiled kernels, the others with what it has left.
Memory is what is resident after a text was written, pages of the file included, less what was before loading.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from rhapsode.base.machine import processor, threads
from rhapsode.model.packed_folder import PACKED

SLOWEST_LOADING, SLOWEST_FIRST, SLOWEST_COMPILING = 2.0, 60.0, 1.0  # seconds
LARGEST_SHARE = 1.3  # of the file, in memory
PROMPT, NEW = "a", 32
CONTEXT_MEMORY = 64 * 2**20  # for the cache: it is not what is measured


def measure(folder: Path) -> dict[str, float]:
    """Load and write in this process."""
    # What imports take is not counted.
    import rhapsode.inference.kernels.step  # noqa: F401
    import rhapsode.inference.language_model as module

    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    model = module.load(folder, "cpu")
    model.cache_bytes = CONTEXT_MEMORY
    loaded = time.perf_counter()
    model.engine()
    ready = time.perf_counter()
    model.generate(PROMPT, max_new_tokens=1)
    written = time.perf_counter()
    model.generate(PROMPT, max_new_tokens=NEW)
    return {
        "loading": loaded - began,
        "compiling": ready - loaded,
        "first token": written - began,
        "memory": psutil.Process().memory_info().rss - before,
    }


def in_fresh_process(folder: Path, cache: str) -> dict[str, float]:
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    command = [sys.executable, __file__, str(folder), "--measure"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.folder)))
        return
    size = (a.folder / PACKED).stat().st_size
    with tempfile.TemporaryDirectory(prefix="rhapsode-kernels-") as cache:
        first = in_fresh_process(a.folder, cache)
        later = [in_fresh_process(a.folder, cache) for _ in range(a.rounds)]
    middle = {name: statistics.median(each[name] for each in later) for name in first}
    print(f"{processor()}, {threads()} threads; {a.folder}: {size / 1e6:,.1f} MB; medians of {a.rounds}\n")
    print(f"loading                        {middle['loading']:6.2f} s")
    print(f"compiling, the first time ever {first['compiling']:6.2f} s")
    print(f"compiling, later               {middle['compiling']:6.2f} s")
    print(f"first token, later             {middle['first token']:6.2f} s after loading began")
    print(f"memory                         {middle['memory'] / 1e6:6.1f} MB, {middle['memory'] / size:.2f} of the file")
    faults = [
        name
        for name, bad in {
            "loading": middle["loading"] > SLOWEST_LOADING,
            "the first compiling": first["compiling"] > SLOWEST_FIRST,
            "later compiling": middle["compiling"] > SLOWEST_COMPILING,
            "memory": middle["memory"] > LARGEST_SHARE * size,
        }.items()
        if bad
    ]
    if faults:
        sys.exit(f"more than it shall be: {', '.join(faults)}")


if __name__ == "__main__":
    main()
