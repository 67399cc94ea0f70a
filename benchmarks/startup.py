"""Seconds from nothing to `rhapsode --help` and `import rhapsode`: medians of whole processes.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "rhapsode --help": ["-m", "rhapsode", "--help"],
    "import rhapsode": ["-c", "import rhapsode"],
    "rhapsode train --help": ["-m", "rhapsode", "train", "--help"],
}


def main() -> None:
    for name, words in COMMANDS.items():
        seconds = []
        for _ in range(7):
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
            seconds.append(time.perf_counter() - began)
        print(f"{name:24} {statistics.median(seconds):.2f} s (median of 7; {min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
