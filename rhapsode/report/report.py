"""The page of a run: how it learned, what it wrote, on what text, with which settings, and what to do next.

Run `rhapsode report runs/mytext`. The page is one file without scripts or network, made from the run's records alone.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from rhapsode import __version__
from rhapsode.base.drawing import page_style
from rhapsode.base.errors import InputError
from rhapsode.base.files import write_atomically
from rhapsode.base.progress import duration
from rhapsode.base.settings import read_yaml
from rhapsode.report.charts import loss_over_time, loss_over_tokens, over_steps
from rhapsode.report.records import Records, number, read_records

PAGE = "report.html"
LONGEST_SAMPLE = 900  # characters shown of each sample
DOCUMENTS_SHOWN = 12


def write_report(run: Path) -> Path:
    """Write `run`/report.html and return its path; the run may be finished, going on, or killed.

    Raises:
        InputError: `run` is not a run folder.
    """
    import jinja2
    from markupsafe import Markup

    records = read_records(run)
    package = resources.files("rhapsode.report")
    template = (package / "page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = Markup(page_style() + (package / "page.css").read_text(encoding="utf-8"))
    page = environment.from_string(template).render(style=style, **_contents(records))
    path = run / PAGE
    write_atomically(path, page.encode("utf-8", errors="replace"))  # JSON can spell half a character
    return path


def next_commands(run: Path) -> list[tuple[str, str]]:
    """What one can do with a run now: pairs of a purpose and the command for it."""
    settings = _settings(run)
    folder, prompt = shlex.quote(str(run)), shlex.quote(_prompt(settings))
    use = {
        "encoder": [
            ("Fill gaps with it", f"rhapsode fill {folder} {prompt}"),
            ("Turn texts into vectors", f"rhapsode embed {folder} texts.txt --out vectors.npy"),
        ],
        "encoder-decoder": [("Turn text into text", f"rhapsode translate {folder} {prompt}")],
    }.get(
        str(settings.get("kind")),
        [
            ("Write text with it", f"rhapsode generate {folder} {prompt}"),
            ("Talk with it", f"rhapsode chat {folder}"),
            ("See what it thinks comes next", f"rhapsode next {folder} {prompt} --temperature 0.1 1 2"),
            ("Measure it on another text", f"rhapsode evaluate {folder} other.txt"),
        ],
    )
    return [*use, ("Check that every file is undamaged", f"rhapsode verify {folder}")]


def _settings(run: Path) -> dict[str, Any]:
    """The settings of a run; none where they cannot be read."""
    try:
        return read_yaml(run / "run.yaml")
    except InputError:
        return {}


def _prompt(settings: Mapping[str, Any]) -> str:
    """Words in the language of the run's own text: the last line that its samples begin with."""
    lines = str(settings.get("sample_prompt") or "").strip().splitlines()
    return lines[-1].strip() if lines else "Once upon a time"


def _contents(records: Records) -> dict[str, Any]:
    """Everything the page shows, in the words and numbers it shows."""
    run = records.run.resolve()
    return {
        "name": run.name,
        "folder": str(records.run),
        "version": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "status": _status(records),
        "command": _text(records.starts[0].get("command") or "") if records.starts else "",
        "problems": records.problems,
        "facts": _facts(records),
        "loss_charts": _drawn(
            {"title": "Loss over time", "svg": loss_over_time(records), "legend": True},
            {"title": "Loss over tokens", "svg": loss_over_tokens(records), "legend": True},
            {
                "title": "Share of targets that were the most likely token",
                "svg": over_steps(records, "accuracy", of="validation", scale=100, smooth=False),
                "note": "% of the validation text",
            },
        ),
        "speed_charts": _drawn(
            {"title": "Tokens per second", "svg": over_steps(records, "tokens_per_second")},
            {
                "title": "Share of the arithmetic peak",
                "svg": over_steps(records, "peak_share", scale=100),
                "note": f"% of {_peak(records)}",
            },
            {"title": "Learning rate", "svg": over_steps(records, "learning_rate", smooth=False)},
            {"title": "Gradient norm", "svg": over_steps(records, "gradient_norm"), "note": "before clipping"},
        ),
        "samples": _samples(records.samples, str(records.settings.get("kind") or "decoder")),
        "events": [
            {"step": _whole(event.get("step")), "kind": event["kind"], "message": _message(event)}
            for event in records.events
            if event is not records.end
        ],
        "plan": _plan(records.plan),
        "corpus": _corpus(records),
        "commands": [{"what": what, "line": line} for what, line in next_commands(records.run)],
        "details": [(title, rows) for title, rows in _details(records) if rows],
        "log": "\n".join(records.log),
    }


def _drawn(*charts: dict[str, Any]) -> list[dict[str, Any]]:
    from markupsafe import Markup

    plain = {"legend": False, "note": ""}
    # Our own drawing of numbers: the one thing on the page that is not escaped.
    return [plain | chart | {"svg": Markup(chart["svg"])} for chart in charts if chart["svg"]]


def _status(records: Records) -> dict[str, str]:
    steps = _whole(records.train["step"][-1]) if len(records.train) else "0"
    if records.end is None:
        return {
            "kind": "running",
            "text": f"Not finished: {steps} steps so far. It is going on, or it was interrupted.",
        }
    failed = str(records.end.get("reason", "")) in ("not finite", "failed", "error")
    message = str(records.end.get("message") or records.end.get("reason") or "Finished")
    return {"kind": "failed" if failed else "finished", "text": message}


def _facts(records: Records) -> list[dict[str, Any]]:
    facts: list[dict[str, Any]] = []

    def add(name: str, value: str, *notes: str) -> None:
        facts.append({"name": name, "value": value, "notes": [note for note in notes if note]})

    losses, bits = np.asarray(records.validation["loss"]), np.asarray(records.validation["bits_per_byte"])
    if np.isfinite(losses).any():
        best = int(np.nanargmin(losses))
        if math.isfinite(bits[best]):
            first = bits[np.isfinite(bits)][0]
            expected = number(records.plan.get("expected_bits_per_byte"))
            told = f", {expected:.2f} expected" if math.isfinite(expected) else ""
            add("Validation", f"{bits[best]:.3f}", "bits per byte", f"{first:.2f} at first{told}")
        right = np.asarray(records.validation["accuracy"])
        if math.isfinite(right[best]):
            add("Right", f"{100 * right[best]:.1f} %", "of the targets were the most likely token")
        note = f"perplexity {math.exp(min(losses[best], 700)):,.2f}"
        add(
            "Best loss",
            f"{losses[best]:.3f}",
            "nats per token",
            f"{note}, at step {_whole(records.validation['step'][best])}",
        )
    start = records.starts[-1] if records.starts else {}
    if math.isfinite(parameters := number(start.get("parameters"))):
        add("Parameters", _compact(parameters))
    if len(records.train):
        add("Text read", _compact(records.train["tokens"][-1]), "tokens", f"{_whole(records.train['step'][-1])} steps")
        seconds = number((records.end or {}).get("seconds", records.train["seconds"][-1]))
        add("Training time", duration(seconds) if math.isfinite(seconds) else "–")
        speeds, shares = np.asarray(records.train["tokens_per_second"]), np.asarray(records.train["peak_share"])
        if np.isfinite(speeds).any():
            share = f"{100 * np.nanmedian(shares):.0f} % of the machine's peak" if np.isfinite(shares).any() else ""
            add("Speed", _compact(float(np.nanmedian(speeds))), "tokens/s", share)
    return facts


def _samples(samples: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, str]]:
    """The samples of the first, the middle and the last step that has any. Only a decoder's goes on from its prompt."""
    steps = list(dict.fromkeys(sample.get("step") for sample in samples))
    chosen = list(dict.fromkeys([*steps[:1], *steps[len(steps) // 2 :][:1], *steps[-1:]]))
    names = {1: ["At the end"], 2: ["At first", "At the end"]}.get(len(chosen), ["At first", "Half-way", "At the end"])
    shown = []
    for name, step in zip(names, chosen, strict=False):
        sample = next(sample for sample in samples if sample.get("step") == step)
        prompt, text = str(sample.get("prompt") or ""), str(sample["text"])
        text = text.removeprefix(prompt)
        if len(text) > LONGEST_SAMPLE:
            text = text[:LONGEST_SAMPLE].rstrip() + " …"
        note = [f"step {_whole(step)}"]
        if math.isfinite(seconds := number(sample.get("seconds"))):
            note.append(duration(seconds))
        if math.isfinite(temperature := number(sample.get("temperature"))):
            note.append(f"temperature {temperature:g}")
        shown.append(
            {
                "title": name,
                "note": " · ".join(note),
                "prompt": prompt if kind == "decoder" else f"{prompt}\n\n",
                "text": text,
            }
        )
    return shown


def _plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    choices = plan.get("choices")
    rows = [row for row in choices if isinstance(row, dict)] if isinstance(choices, list) else []
    return {
        "summary": str(plan.get("summary") or ""),
        "choices": [{key: _text(row.get(key)) for key in ("name", "value", "reason")} for row in rows],
    }


def _corpus(records: Records) -> list[dict[str, Any]]:
    """The tables of the text: its two parts, what was read, what was dropped and why, the largest documents."""
    manifest = records.corpus

    def rows(key: str, *columns: str) -> list[list[str]]:
        part = manifest.get(key)
        entries = part.items() if isinstance(part, dict) else ()
        return [[name, *(_text(entry.get(column)) for column in columns)] for name, entry in entries]

    largest = sorted(records.documents, key=lambda document: -number(document.get("bytes")))[:DOCUMENTS_SHOWN]
    columns = ("source", "split", "bytes", "licence")
    tables = (
        ("", ["part", "documents", "characters", "bytes"], rows("splits", "documents", "characters", "bytes")),
        ("Read", ["kind", "files", "documents", "characters"], rows("read", "files", "documents", "characters")),
        ("Dropped", ["reason", "documents", "such as"], rows("dropped", "count", "examples")),
        (
            "Largest documents" if len(records.documents) > 1 else "The document",
            [*columns],
            [[_text(document.get(column)) for column in columns] for document in largest],
        ),
    )
    return [{"title": title, "head": head, "rows": content} for title, head, content in tables if content]


def _details(records: Records) -> Iterable[tuple[str, list[tuple[str, str]]]]:
    yield "All settings", _flat(records.settings)
    start = records.starts[-1] if records.starts else {}
    for title, key in (("Versions", "versions"), ("Machine", "machine")):
        part = start.get(key)
        yield title, _flat(part) if isinstance(part, dict) else []


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested names and values as rows of text: `optimizer.momentum`."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _text(value)))
    return rows


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _message(event: Mapping[str, Any]) -> str:
    if event["kind"] == "resumed":
        return f"Went on from the checkpoint of step {_whole(event.get('step'))}."
    return str(event.get("message") or event.get("reason") or "")


def _peak(records: Records) -> str:
    machine = records.starts[-1].get("machine") if records.starts else None
    peak = number(machine.get("peak_flops")) if isinstance(machine, dict) else math.nan
    return f"{peak / 1e9:,.0f} GFLOP/s, measured" if math.isfinite(peak) else "what was measured"


def _whole(value: object) -> str:
    return f"{number(value):,.0f}" if math.isfinite(number(value)) else "–"


def _compact(value: float) -> str:
    """Three digits and a unit: 1.23 M, 45.6 k, 789."""
    if not math.isfinite(value):
        return "–"
    for size, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"
