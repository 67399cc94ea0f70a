"""The report: everything a run recorded, escaped, on a page that needs nothing else, whatever state the run is in."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.report.records import read_records
from rhapsode.report.report import next_commands, write_report

from .conftest import metrics, write_lines

VOID = {"meta", "path", "use", "rect", "circle"}


class Page(HTMLParser):
    """Checks that tags are balanced, and gathers the words, the tags, the attributes and the ids."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words, self.tags, self.attributes = "", set[str](), list[tuple[str, str]]()
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data + " "


def page_of(run: Path) -> Page:
    return Page(write_report(run))


def test_the_page_shows_what_was_recorded(run_folder: Path) -> None:
    page = page_of(run_folder)
    for expected in (
        "shakespeare",
        "Finished: the three minutes are over.",
        "2.194",  # bits per byte of the last validation
        "2.10 expected",
        "1.84 M",  # parameters
        "8.19 M",  # tokens
        "183 GFLOP/s, measured",
        "Peace, gentle cousin.",
        "Four shapes were timed",
        "Dropped",
        "duplicate",
        "richard.md",
        "public domain",
        "learning_rate",
        "2.13.0",
        "rhapsode generate",
        "step 2",
    ):
        assert expected in page.words, expected
    assert page.source.count("<svg") == 6
    assert "Not everything could be read" not in page.words


def test_the_page_needs_no_network_and_runs_no_script(run_folder: Path) -> None:
    page = page_of(run_folder)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "image"}
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "action", "srcset")
        if name.endswith("href"):
            assert value.startswith("#")
        if not name.startswith("xmlns"):
            assert "//" not in value
    css = page.source.split("<style>", 1)[1].split("</style>", 1)[0]
    assert "url(" not in css
    assert "@import" not in css


def test_drawings_take_the_colours_of_the_page(run_folder: Path) -> None:
    page = page_of(run_folder)
    for svg in re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL):
        assert not re.search(r"#[0-9a-fA-F]{3,6}\b(?!\))", re.sub(r"(href=\"|url\()#\w+", "", svg))
        assert "var(--first)" in svg
    assert "prefers-color-scheme: dark" in page.source


def test_no_two_elements_share_an_id(run_folder: Path) -> None:
    page = page_of(run_folder)
    ids = [value for name, value in page.attributes if name == "id"]
    different = set(ids)
    for id in different:  # two drawings of one shape may define the same clipping twice, never different things
        definitions = re.findall(rf'id="{id}".*?</(?:clipPath|defs)>', page.source, flags=re.DOTALL)
        assert len({re.sub(r"\s+", " ", definition) for definition in definitions}) <= 1, id


def test_text_from_outside_is_escaped(run_folder: Path) -> None:
    evil = '<script>alert("x")</script><img src=x onerror=y>'
    write_lines(run_folder / "samples.jsonl", [{"step": 1, "prompt": evil, "text": evil * 2 + "\ud800"}])
    (run_folder / "run.yaml").write_text(json.dumps({evil: evil}), encoding="utf-8")
    plan = {"summary": evil, "choices": [{"name": evil, "value": evil, "reason": evil}]}
    (run_folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (run_folder / "log.txt").write_text(evil, encoding="utf-8")
    end = {"kind": "end", "step": 9, "reason": evil, "message": evil}
    start = {"kind": "start", "versions": {evil: evil}, "machine": {"name": evil}}
    write_lines(run_folder / "metrics.jsonl", [start, {"kind": "warning", "step": 1, "message": evil}, end])
    for file in ("manifest.json", "documents.jsonl"):
        path = run_folder / "corpus" / file
        path.write_text(path.read_text(encoding="utf-8").replace("richard", "<img src=x onerror=y>"), encoding="utf-8")
    page = page_of(run_folder)
    assert not page.tags & {"script", "img"}
    assert page.words.count(evil) >= 12


def test_a_run_that_goes_on_and_whose_last_line_is_cut_short(run_folder: Path) -> None:
    path = run_folder / "metrics.jsonl"
    write_lines(path, metrics(last=300))
    data = path.read_bytes()
    for cut in (2, 40, 100):
        path.write_bytes(data[:-cut])
        page = page_of(run_folder)
        assert "Not finished: 299 steps so far." in page.words
        assert "Not everything could be read" not in page.words


def test_a_run_that_was_resumed_and_warned(run_folder: Path) -> None:
    warning = {"kind": "warning", "step": 700, "seconds": 63.0, "message": "The disk is full."}
    lines = [*metrics(last=500), *metrics(501, 900, resumed_from=500), warning]
    write_lines(run_folder / "metrics.jsonl", lines)
    page = page_of(run_folder)
    assert "Went on from the checkpoint of step 500." in page.words
    assert "The disk is full." in page.words
    assert "Not finished: 900 steps" in page.words


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_a_run_that_has_hardly_begun(run_folder: Path, last: int) -> None:
    write_lines(run_folder / "metrics.jsonl", metrics(last=last))
    for name in ("samples.jsonl", "plan.json", "run.yaml", "log.txt"):
        (run_folder / name).unlink()
    page = page_of(run_folder)
    assert f"Not finished: {last} steps" in page.words
    assert ("Nothing is recorded yet." in page.words) == (last < 2)


def test_numbers_that_are_none_are_left_out(run_folder: Path) -> None:
    lines = metrics(last=400)
    for line in lines[5::7]:
        line |= {"loss": float("nan"), "gradient_norm": float("inf"), "tokens_per_second": None, "bits_per_byte": "x"}
    write_lines(run_folder / "metrics.jsonl", lines)
    page = page_of(run_folder)
    assert not re.search(r"\b(nan|inf)\b", page.source.replace("font-style", ""), flags=re.IGNORECASE)
    assert page.source.count("<svg") == 6


def test_damaged_records_are_named(run_folder: Path) -> None:
    path = run_folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[10], lines[20] = "{not json}\n", "[1, 2]\n"
    path.write_text("".join(lines), encoding="utf-8")
    (run_folder / "plan.json").write_text("[]", encoding="utf-8")
    (run_folder / "run.yaml").write_text("a: [", encoding="utf-8")
    page = page_of(run_folder)
    assert "Not everything could be read" in page.words
    assert f"{path}: 2 lines are not JSON objects" in page.words
    assert f"{run_folder / 'plan.json'}: does not hold names and values." in page.words
    assert f"{run_folder / 'run.yaml'}:1: is not the YAML of a settings file" in page.words


def test_a_corpus_that_lies_elsewhere_is_found(run_folder: Path) -> None:
    elsewhere = run_folder.parent / "my corpus"
    (run_folder / "corpus").rename(elsewhere)
    lines = metrics(last=10)
    lines[0]["corpus"] = str(elsewhere)
    write_lines(run_folder / "metrics.jsonl", lines)
    assert "richard.md" in page_of(run_folder).words


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        write_report(tmp_path / "none")


def test_commands_can_be_typed_as_they_stand(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    assert dict(next_commands(run))["Write text with it"] == f"rhapsode generate '{run}' 'Once upon a time'"
    run.mkdir()
    (run / "run.yaml").write_text('sample_prompt: "ROMEO:\\n\\n  It\'s $5 \\n"\n', encoding="utf-8")
    command = dict(next_commands(run))["See what it thinks comes next"]
    assert shlex.split(command) == ["rhapsode", "next", str(run), "It's $5", "--temperature", "0.1", "1", "2"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)
KEYS = ("kind", "step", "tokens", "seconds", "loss", "bits_per_byte", "machine", "versions", "resumed_from", "message")
LINES = st.fixed_dictionaries(
    {"kind": st.sampled_from(["start", "train", "validation", "warning", "end"]) | JSON},
    optional=dict.fromkeys(KEYS[1:], JSON),
)


@given(st.lists(LINES, max_size=6), st.lists(st.fixed_dictionaries({"text": JSON}, optional={"step": JSON})), JSON)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_records_make_a_page(tmp_path: Path, lines: list[dict], samples: list[dict], plan: object) -> None:
    write_lines(tmp_path / "metrics.jsonl", lines)
    write_lines(tmp_path / "samples.jsonl", samples)
    (tmp_path / "plan.json").write_text(json.dumps({"choices": [plan], "summary": plan}), encoding="utf-8")
    assert page_of(tmp_path).words
    assert len(read_records(tmp_path).train) == sum(line["kind"] == "train" for line in lines)
