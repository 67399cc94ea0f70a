"""English to German on Multi30k, with a model of the size of the literature's: BLEU on test_2016_flickr.

    python benchmarks/translation.py ../shared/data/translation/multi30k_en_de --minutes 60

4 + 4 layers of width 128, 4 heads, a joint BPE of 10,000 entries. BLEU is sacrebleu's, lower-cased and tokenised (13a),
beam 5. Prints the loss over time and BLEU with greedy search, with beams, and with the mean of the last checkpoints.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import sacrebleu

import rhapsode
from rhapsode.base.machine import prepare, processor, threads

SETTINGS = {
    "hidden-size": "128",
    "layers": "4",
    "heads": "4",
    "intermediate-size": "256",
    "vocabulary-size": "10000",
}


def lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


def bleu(written: list[str], references: list[str]) -> float:
    return sacrebleu.corpus_bleu(written, [references], lowercase=True, tokenize="13a").score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/multi30k"))
    a, more = parser.parse_known_args()
    print(f"{processor()}, {threads()} threads")
    began = time.perf_counter()
    words = ["train", str(a.folder / "train.en.gz"), "--target", str(a.folder / "train.de.gz")]
    words += ["--validation", str(a.folder / "val.en.gz"), "--validation-target", str(a.folder / "val.de.gz")]
    words += [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    words += ["--minutes", f"{a.minutes:g}", "--out", str(a.out), "--force", *more]
    subprocess.run([sys.executable, "-m", "rhapsode", *words], check=True)
    print(f"\n{time.perf_counter() - began:.0f} s\n\n{'seconds':>8}{'tokens':>14}{'nats/token':>12}{'right':>8}")
    for line in (a.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "validation":
            print(f"{record['seconds']:8.0f}{record['tokens']:14,}{record['loss']:12.3f}{record['accuracy']:8.1%}")
    prepare("cpu")
    model = rhapsode.load(a.out, device="cpu")
    print(f"\n{model.config.parameters:,} parameters")
    source, references = lines(a.folder / "test_2016_flickr.en.gz"), lines(a.folder / "test_2016_flickr.de.gz")
    for beams in (1, 5):
        began = time.perf_counter()
        written = model.translate(source, beams=beams)
        seconds = time.perf_counter() - began
        print(f"BLEU, {beams} beam{'s' * (beams > 1)}: {bleu(written, references):.2f}   ({seconds:.0f} s)")
    for number in (0, 1, 2):
        print(f"\n{source[number]}\n  {written[number]}\n  {references[number]} (reference)")


if __name__ == "__main__":
    main()
