"""A run folder as the training loop writes it, made of formulas, so that the page can be tried at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from rhapsode.base.random import generator
from rhapsode.corpus.prepare import prepare_corpus

STEPS = 2000
VERSIONS = {"rhapsode": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"}
FIRST = "Xq;vQ\nZ:&jjk$WuJ,NBh!nMo wL3zDPqK\n'cVRtEaYI-sG.ofx?HpubFdgm ilA\n"
MIDDLE = "Whe he dowst the bere and my soure\nAnd I hat the come to and will the wath\nThe shat have that preet.\n" * 4
LAST = """\
What says my lord? The night is well begun,
And I have sworn to keep my father's gate.

DUKE OF YORK:
Then let him speak; the king is here with me,
And all the crown is heavy on his head.

KING RICHARD:
Peace, gentle cousin. Shall I be the first
To weep for England, or the last to laugh?
"""


TEXTS = {
    "henry.txt": "Once more unto the breach, dear friends, once more.\n" * 40,
    "copy of henry.txt": "Once more unto the breach, dear friends, once more.\n" * 40,
    "richard.md": "Now is the winter of our discontent.\n" * 60,
    "john.html": "<p>Life is as tedious as a twice-told tale.</p>",
    "empty.txt": "",
}


def metrics(first: int = 1, last: int = STEPS, *, resumed_from: int | None = None) -> list[dict[str, Any]]:
    """The lines of a run from step `first` to `last`, without its end."""
    noise = generator(0, "metrics fixture").normal(size=STEPS + 1)
    machine = {"threads": 2, "peak_flops": 1.83e11, "device": "cpu", "name": "AMD EPYC"}
    lines: list[dict[str, Any]] = [
        {
            "kind": "start",
            "time": 1794900000.0,
            "versions": VERSIONS,
            "machine": machine,
            "parameters": 1_843_200,
            "flops_per_token": 1.1e7,
            "command": "rhapsode train shakespeare.txt --minutes 3",
            "resumed_from": resumed_from,
        }
    ]
    for step in range(first, last + 1):
        tokens, seconds = step * 4096, step * 0.09
        loss = 1.38 + 2.79 * math.exp(-((step / 160) ** 0.55))
        share = min(1, step / 40) * min(1, 1.02 - step / STEPS) / 0.4 if step > 0.6 * STEPS else min(1, step / 40)
        speed = 45_000 * (1 + 0.03 * noise[-step])
        if step % 250 == 0:
            validation = loss + 0.04 + 0.05 * step / STEPS
            line = {"step": step, "tokens": tokens, "seconds": seconds, "loss": validation}
            lines.append({"kind": "validation", **line, "bits_per_byte": validation / math.log(2), "best": True})
            lines.append({"kind": "checkpoint", "step": step, "seconds": seconds, "message": f"step-{step:08d}"})
        lines.append(
            {
                "kind": "train",
                "step": step,
                "tokens": tokens,
                "seconds": seconds,
                "loss": loss + 0.05 * noise[step],
                "learning_rate": 0.02 * min(1.0, share),
                "gradient_norm": 0.4 + 1.5 * math.exp(-step / 90) + 0.05 * abs(noise[step]),
                "tokens_per_second": speed,
                "peak_share": speed * 1.1e7 / 1.83e11 / 4,
            }
        )
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run."""
    return make_run(tmp_path / "runs" / "shakespeare")


def make_run(run: Path) -> Path:
    run.mkdir(parents=True)
    end = {"kind": "end", "step": STEPS, "seconds": 180.0, "reason": "time", "best_step": STEPS}
    end |= {"message": "Finished: the three minutes are over.", "loss": 1.41, "bits_per_byte": 2.03}
    write_lines(run / "metrics.jsonl", [*metrics(), end])
    samples = [
        {"step": step, "seconds": step * 0.09, "temperature": 0.8, "prompt": "\n", "text": text}
        for step, text in ((0, FIRST), (500, MIDDLE), (1000, MIDDLE), (1500, LAST), (2000, LAST * 4))
    ]
    write_lines(run / "samples.jsonl", samples)
    settings = {"minutes": 3.0, "seed": 0, "optimizer": "muon", "learning_rate": 0.02, "layers": 4, "tokenizer": None}
    (run / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    choices = [
        {"name": "tokenizer", "value": "character", "reason": "1.1 MB of text is too little to learn subwords from."},
        {"name": "layers", "value": 4, "reason": "Four shapes were timed; this one ends lowest in three minutes."},
        {"name": "batch", "value": "32 × 128", "reason": "The largest that still makes enough steps."},
    ]
    plan = {"summary": "A character model of 1.8 M parameters.", "expected_bits_per_byte": 2.1, "choices": choices}
    (run / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    texts = run.parent / "texts"
    texts.mkdir()
    for name, text in TEXTS.items():
        (texts / name).write_text(text, encoding="utf-8")
    prepare_corpus([str(texts)], run / "corpus", licence="public domain")
    (run / "log.txt").write_text("step 1\nstep 2\n", encoding="utf-8")
    return run
