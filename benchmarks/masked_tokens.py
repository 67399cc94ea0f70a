"""An encoder trained for some minutes: gaps filled rightly, beside always guessing the most frequent token.

python benchmarks/masked_tokens.py ../shared/data/pretrain/english_novels.tar.xz --minutes 10
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import rhapsode
from rhapsode.base.machine import prepare, processor, threads
from rhapsode.base.settings import read_yaml
from rhapsode.tokenizer.store import TokenStore
from rhapsode.training.objectives.masked_tokens import NOT_A_TARGET, MaskedTokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/masked"))
    a, more = parser.parse_known_args()
    print(f"{processor()}, {threads()} threads")
    began = time.perf_counter()
    words = ["train", a.text, "--kind", "encoder", "--minutes", f"{a.minutes:g}", "--out", str(a.out), "--force", *more]
    subprocess.run([sys.executable, "-m", "rhapsode", *words], check=True)
    seconds = time.perf_counter() - began
    print(f"\n{seconds:.0f} s, {seconds / 60 / a.minutes:.1%} of what was asked for\n")
    print(f"{'seconds':>8}{'tokens':>14}{'nats/gap':>11}{'right':>8}")
    for line in (a.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "validation":
            print(f"{record['seconds']:8.0f}{record['tokens']:14,}{record['loss']:11.3f}{record['accuracy']:8.1%}")
    prepare("cpu")
    model = rhapsode.load(a.out, device="cpu")
    store = {split: TokenStore.open(a.out / "tokens" / split).tokens for split in ("train", "validation")}
    settings = read_yaml(a.out / "run.yaml")
    assert model.tokenizer.mask_id is not None
    # Ten times what the run looked at, with gaps that it has not seen.
    examination = MaskedTokens(
        store["train"],
        np.array(store["validation"][: 10 * settings["validation_tokens"]]),
        context=settings["context_length"],
        seed=settings["seed"] + 1,
        vocabulary_size=model.tokenizer.vocabulary_size,
        mask_id=model.tokenizer.mask_id,
        never=model.tokenizer.special_tokens.values(),
        share=settings["masked_share"],
    )
    counts = np.bincount(store["train"], minlength=model.tokenizer.vocabulary_size)
    counts[list(model.tokenizer.special_tokens.values())] = 0
    targets = np.concatenate([batch.tensors[1].numpy().ravel() for batch in examination.examination])
    targets = targets[targets != NOT_A_TARGET]
    unigram = float((targets == counts.argmax()).mean())
    nats = float(-np.log((counts[targets] + 1) / (counts.sum() + len(counts))).mean())
    found = examination.validate(model.model)
    assert found.accuracy is not None
    print(f"\n{len(targets):,} gaps in the validation text{'':14}right   nats/gap")
    print(f"{'always the most frequent token (unigram)':44}{unigram:8.1%}{nats:11.3f}")
    print(f"{'the encoder':44}{found.accuracy:8.1%}{found.loss:11.3f}")
    print(f"{'ratio':44}{found.accuracy / unigram:8.1f}{'':4}{math.exp(nats - found.loss):7.1f} times as likely")


if __name__ == "__main__":
    main()
