"""`rhapsode train TEXT --minutes M` on a real corpus: bits per byte over time, and what the model writes at the end.

python benchmarks/long_run.py ../shared/data/pretrain/english_novels.tar.xz --minutes 20
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import rhapsode
from rhapsode.base.machine import prepare, processor, threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/long"))
    parser.add_argument("--prompts", nargs="+", default=["It was a dark night, and", '"My dear," said she,'])
    a = parser.parse_args()
    print(f"{processor()}, {threads()} threads")
    began = time.perf_counter()
    words = ["train", a.text, "--minutes", f"{a.minutes:g}", "--out", str(a.out), "--force"]
    subprocess.run([sys.executable, "-m", "rhapsode", *words], check=True)
    seconds = time.perf_counter() - began
    print(f"\n{seconds:.0f} s, {seconds / 60 / a.minutes:.1%} of what was asked for\n")
    print(f"{'seconds':>8}{'tokens':>14}{'nats/token':>12}{'bits/byte':>11}")
    for line in (a.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "validation":
            print(
                f"{record['seconds']:8.0f}{record['tokens']:14,}{record['loss']:12.3f}{record['bits_per_byte']:11.3f}"
            )
    prepare("cpu")
    model = rhapsode.load(a.out)
    for temperature in (0.5, 0.8):
        for prompt in a.prompts:
            text = model.generate(prompt, temperature=temperature, max_new_tokens=120).text
            print(f"\n--- temperature {temperature}\n{prompt}{text}")


if __name__ == "__main__":
    main()
