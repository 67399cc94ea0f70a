"""Settings: what people write is checked, the place of a mistake is named, flags win over the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given as over
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.base.settings import Range, field_docs, given, overridden, read_yaml, validated


@dataclass(frozen=True)
class Shape:
    """Settings of the kind that the package has."""

    layers: Annotated[int | None, Range(1, 100)] = None
    """Blocks, one
    after another."""
    learning_rate: Annotated[float | None, Range(0, 1, low_open=True)] = None
    """Step size."""
    optimizer: Literal["adamw", "muon", "sgd"] | None = None
    """What follows the gradient."""
    betas: Annotated[tuple[float, ...] | None, Range(0, 1, high_open=True)] = None
    """Decay of the moments."""
    tied: bool | None = None
    """One table for both ends."""
    out: Path | None = None
    """Where it goes."""


@dataclass(frozen=True)
class Required:
    """Two fields, one of which must be given."""

    name: str
    tags: tuple[str, ...] = ()
    limit: Annotated[float, Range(1)] = None  # type: ignore[assignment]


def wrong(cls: type, values: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        validated(cls, values, "here")
    assert caught.value.exit_code == 2
    return caught.value.message


def test_valid_values_are_taken_and_converted() -> None:
    values = {
        "layers": 4,
        "learning_rate": "1e-3",
        "betas": [0.9, 0],
        "tied": False,
        "out": "runs/a",
        "optimizer": None,
    }
    assert validated(Shape, values, "here") == Shape(4, 0.001, None, (0.9, 0.0), False, Path("runs/a"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer", 3, "here: layer: there is no such setting. Did you mean 'layers'?"),
        ("layers", 0, "here: layers: value 0 is out of range (1..100)."),
        ("layers", 3.5, "here: layers: value 3.5 is not a whole number."),
        ("layers", True, "here: layers: value True is not a whole number."),
        ("learning_rate", 0, "here: learning_rate: value 0.0 is out of range (above 0 and at most 1)."),
        ("learning_rate", "fast", "here: learning_rate: value 'fast' is not a number."),
        ("learning_rate", float("nan"), "here: learning_rate: value nan is not a finite number."),
        ("learning_rate", 10**400, "here: learning_rate: value inf is not a finite number."),
        ("optimizer", "adam", "here: optimizer: value 'adam' is not known. Did you mean 'adamw'?"),
        ("betas", [0.9, 1.0], "here: betas: value 1.0 is out of range (0 or more and below 1)."),
        ("tied", 1, "here: tied: value 1 is not true or false."),
        ("out", ["x" * 100], f"here: out: value ['{'x' * 55}... is not a path."),
    ],
)
def test_messages(name: str, value: object, message: str) -> None:
    assert wrong(Shape, {name: value}) == message


def test_a_required_field_must_be_there() -> None:
    assert wrong(Required, {"tags": ["a"]}) == "here: a value is missing for name."


def test_none_is_a_value_only_where_it_is_the_default() -> None:
    assert validated(Required, {"name": "a", "limit": None}, "here").limit is None
    assert wrong(Required, {"name": None}) == "here: name: value None is not text."


@over(st.floats(allow_nan=False), st.floats(allow_nan=False), st.floats(allow_nan=False), st.booleans(), st.booleans())
def test_range_is_the_interval(low: float, high: float, value: float, low_open: bool, high_open: bool) -> None:
    inside = (low < value if low_open else low <= value) and (value < high if high_open else value <= high)
    assert (value in Range(low, high, low_open, high_open)) == inside
    assert value in Range()


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    return path


def test_the_file_and_line_of_a_mistake_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "# ours\nlayers: 4\nlearning_rat: 0.1\n")
    with pytest.raises(InputError) as caught:
        validated(Shape, read_yaml(path), "unused")
    assert caught.value.message == f"{path}:3: learning_rat: there is no such setting. Did you mean 'learning_rate'?"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("layers: 4\nlayers: 5\n", ":2: is not the YAML of a settings file ('layers' stands here and on line 1)."),
        ("layers: {a: 1,\n  a: 2}\n", ":2: is not the YAML of a settings file ('a' stands here and on line 1)."),
        ("- 4\n", ":1: is not the YAML of a settings file (lines of `name: value` belong here)."),
        ("a: &x [1]\nb: *x\n", ":2: is not the YAML of a settings file (aliases are not read)."),
        ("a: [1\nb: 2\n", ":2: is not the YAML of a settings file"),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", ":2: is not the YAML of a settings file"),
        ("a: 2024-99-99\n", ": is not YAML (month must be in 1..12"),
        (b"a: \xff\n", ": is not UTF-8 text. Save it as UTF-8."),
        ("a: \x00\n", ": is not YAML ("),
        ("[" * 5000 + "]" * 5000, ":1: is not the YAML of a settings file (lists are nested too deeply)."),
        ("#" * 100_001, ": is larger than 100,000 bytes, which no settings file is."),
    ],
)
def test_broken_files(tmp_path: Path, text: str | bytes, told: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert caught.value.message.startswith(f"{path}{told}")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path)
    assert read_yaml(write(tmp_path, "# nothing yet\n")) == {}


@over(st.one_of(st.binary(max_size=200), st.text("[]{}:-*&!|>'\"#% \nab01", max_size=60).map(str.encode)))
def test_any_bytes_are_settings_or_one_clear_message(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    try:
        values = read_yaml(path)
    except InputError as error:
        assert str(path) in error.message
    else:
        assert set(values) == set(values.places)


@over(st.dictionaries(st.sampled_from(["layers", "optimizer", "tied", "betas"]), st.none() | st.booleans()))
def test_what_yaml_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert read_yaml(path) == values


def test_flags_win_over_the_file_and_name_themselves(tmp_path: Path) -> None:
    file = validated(Shape, read_yaml(write(tmp_path, "layers: 4\ntied: true\n")), "file")
    flags = validated(Shape, given(Shape(layers=6, tied=False)), "flags")
    assert overridden(file, flags) == Shape(layers=6, tied=False)
    assert overridden(file, Shape()) == file
    with pytest.raises(InputError) as caught:
        validated(Shape, given(Shape(learning_rate=3.0)), "flags")
    assert caught.value.message == "--learning-rate: value 3.0 is out of range (above 0 and at most 1)."


def test_field_docs() -> None:
    docs = field_docs(Shape)
    assert docs["layers"] == "Blocks, one after another."
    assert list(docs) == ["layers", "learning_rate", "optimizer", "betas", "tied", "out"]
    assert field_docs(Required) == {}
