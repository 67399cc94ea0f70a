"""Settings are frozen dataclasses; this checks what people write into them, in YAML files and as flags.

A field that is None was not chosen by anyone. `rhapsode train --config settings.yaml --layers 4` reads the file with
`read_yaml`, the flags with `given`, checks each with `validated`, and lets the flags win with `overridden`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml

from rhapsode.base.errors import InputError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)

LARGEST_FILE = 100_000  # bytes; settings are written by hand
DEEPEST_NESTING = 10


@dataclass(frozen=True)
class Range:
    """The numbers a field may hold, as `Annotated[float, Range(0, 1)]`.

    Args:
        low: the least value, or None.
        high: the greatest value, or None.
        low_open: `low` itself is not allowed.
        high_open: `high` itself is not allowed.
    """

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        if self.low is not None and (value < self.low or (self.low_open and value == self.low)):
            return False
        return self.high is None or value < self.high or (not self.high_open and value == self.high)

    def __str__(self) -> str:
        low = "" if self.low is None else f"above {self.low}" if self.low_open else f"{self.low} or more"
        high = "" if self.high is None else f"below {self.high}" if self.high_open else f"at most {self.high}"
        if low and high:
            return f"{self.low}..{self.high}" if not (self.low_open or self.high_open) else f"{low} and {high}"
        return low or high


class Located(dict[str, Any]):
    """Names and values, and where each was written (`places`), for the messages about them."""

    def __init__(self, values: Mapping[str, Any], places: Mapping[str, str]) -> None:
        super().__init__(values)
        self.places = dict(places)


def validated(cls: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """An instance of the dataclass `cls` from `values`, each checked against its field's type and range.

    Args:
        where: what the messages name when `values` does not know itself where it was written.

    Raises:
        InputError: a field that does not exist (with the nearest that does), a wrong type, a value out of range,
            or a field without a default that is missing.
    """
    annotations = typing.get_type_hints(cls, include_extras=True)
    defaults = {field.name: field.default for field in fields(cls) if field.init}
    names = list(defaults)
    places = values.places if isinstance(values, Located) else {}
    checked = {}
    for name, value in values.items():
        place = places.get(name, f"{where}: {name}")
        if name not in names:
            raise InputError("there is no such setting", where=place, todo=nearest(name, names))
        unset = value is None and defaults[name] is None
        checked[name] = None if unset else _checked(value, annotations[name], place)
    required = [field.name for field in fields(cls) if field.init and field.default is field.default_factory is MISSING]
    missing = [name for name in required if name not in checked]
    if missing:
        raise InputError(f"a value is missing for {', '.join(missing)}", where=where)
    return cls(**checked)


def given(settings: DataclassInstance) -> Located:
    """The fields that the command line gave, that is, those that are not None; messages name the flag."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    chosen = {name: value for name, value in values.items() if value is not None}
    return Located(chosen, {name: flag(name) for name in chosen})


def overridden(weak: Settings, strong: Settings) -> Settings:
    """`weak` with every field that `strong` has chosen (is not None) taken from `strong`."""
    return replace(weak, **given(strong))


def flag(name: str) -> str:
    """The flag of the field `name`: --learning-rate for learning_rate."""
    return f"--{name.replace('_', '-')}"


def read_yaml(path: Path) -> Located:
    """The settings in a YAML file, each with the file and line where it stands.

    Only plain values are read: no tags that name code, no aliases, no key twice.

    Raises:
        InputError: the file is missing or unreadable, too large, not UTF-8, or not YAML with names at the top.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise InputError("the file does not exist", where=where) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=where) from None
    if len(data) > LARGEST_FILE:
        raise InputError(f"is larger than {LARGEST_FILE:,} bytes, which no settings file is", where=where)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=where, todo="Save it as UTF-8.") from None
    try:
        return _parsed(text, where)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"is not the YAML of a settings file ({error.problem})", where=f"{where}{line}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number beyond what there is
        raise InputError(f"is not YAML ({str(error).splitlines()[0]})", where=where) from None


def field_docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, as one line of text, by the field's name."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        for statement, following in itertools.pairwise(body):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def _parsed(text: str, where: str) -> Located:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark = typing.cast("yaml.error.Mark", event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not read", problem_mark=mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST_NESTING:
            raise yaml.MarkedYAMLError(problem="lists are nested too deeply", problem_mark=mark)
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return Located({}, {})
        if not isinstance(root, yaml.MappingNode) or not all(isinstance(key, yaml.ScalarNode) for key, _ in root.value):
            raise yaml.MarkedYAMLError(problem="lines of `name: value` belong here", problem_mark=root.start_mark)
        _refuse_duplicates(root)
        values = {str(key.value): loader.construct_object(value, deep=True) for key, value in root.value}
        places = {str(key.value): f"{where}:{key.start_mark.line + 1}: {key.value}" for key, _ in root.value}
        return Located(values, places)
    finally:
        loader.dispose()


def _refuse_duplicates(node: yaml.Node) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                problem = f"{name!r} stands here and on line {seen[name]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen[name] = line
            _refuse_duplicates(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(value)


def _checked(value: Any, annotation: Any, place: str) -> Any:
    """`value` as the type that `annotation` asks for, or an InputError that names `place`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        value = _checked(value, arguments[0], place)
        for limit in arguments[1:]:
            if isinstance(limit, Range):
                _check_range(value, limit, place)
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))  # only `X | None` is used
        return _checked(value, kind, place)
    if origin is Literal:
        if value not in arguments:
            choices = [str(argument) for argument in arguments]
            raise InputError(f"value {_short(value)} is not known", where=place, todo=nearest(str(value), choices))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            value = [value]
        return tuple(_checked(item, arguments[0], place) for item in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"value {_short(value)} is not a table of names and values", where=place)
        return {_checked(key, arguments[0], place): _checked(item, arguments[1], place) for key, item in value.items()}
    return _converted(value, annotation, place)


def _converted(value: Any, kind: type, place: str) -> Any:
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3, which has no point, as text.
        with suppress(ValueError):
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if kind is Path and isinstance(value, str):
        value = Path(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
        raise InputError(f"value {_short(value)} is not {expected.get(kind, kind.__name__)}", where=place)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"value {value} is not a finite number", where=place)
    return value


def _check_range(value: Any, limit: Range, place: str) -> None:
    for item in value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else (value,):
        if item is not None and item not in limit:
            raise InputError(f"value {item} is out of range ({limit})", where=place)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
