"""What the estimators of this room share: settings, seeds, checks of what they are given, and files.

Made like those of scikit-learn: settings are keywords of `__init__`, each kept under its own name; `fit` returns the
estimator; what was learned has a name that ends with an underscore.

    Classifier(hidden=(64,), seed=3).fit(x, y).save("digits")
    Classifier.load("digits").predict(x)

A saved estimator is a folder:

    estimator.json           the class, its settings, what was learned besides arrays, and the shapes of the arrays
    parameters.safetensors   the arrays
"""

from __future__ import annotations

import inspect
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from rhapsode.base.errors import DamagedError, InputError, MismatchError, RhapsodeError, nearest, shown
from rhapsode.base.files import new_folder, read_json, write_atomically, write_json
from rhapsode.base.progress import Progress
from rhapsode.base.random import generator

Array = npt.NDArray[Any]
Values = Literal["finite", "moderate", "unit", "binary", "signs", "whole"]

DESCRIPTION = "estimator.json"
PARAMETERS = "parameters.safetensors"
FILES = {DESCRIPTION, PARAMETERS}
SECONDS_WITHOUT_A_BAR = 1.0
LARGEST = 1e15
"""Of "moderate" numbers: their squares, and sums of a hundred million of them, are still numbers in float32."""
LARGEST_SETTING = 2**64

NEEDED: dict[Values, str] = {
    "finite": "a finite number",
    "moderate": f"a number from {-LARGEST:g} to {LARGEST:g}",
    "unit": "a number from 0 to 1",
    "binary": "0 or 1",
    "signs": "-1 or +1",
    "whole": "a whole number from 0",
}


class Estimator:
    """What every estimator of this room can do besides learning.

    A subclass names in `learned` the attributes that `fit` sets: arrays, and what JSON can hold. One whose parameters
    lie deeper gives them in `_state` and takes them back in `_restore`.

    Args:
        seed: of all random numbers; the same seed, settings and data give the same estimator.
    """

    learned: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = check_number("seed", seed, whole=True)

    def settings(self) -> dict[str, Any]:
        """The settings it was made with, by name: `type(self)(**self.settings())` is its untrained twin."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The same, by the name that scikit-learn's pipelines and searches call. There is nothing deeper."""
        return self.settings()

    def set_params(self, **settings: Any) -> Self:
        """Change settings. What was learned with the old ones is forgotten, for it may not fit the new ones.

        Raises:
            InputError: there is no such setting, or it cannot be that.
        """
        known = self.settings()
        for name in settings.keys() - known.keys():
            raise InputError(f"{type(self).__name__} has no setting {shown(name)}", todo=nearest(name, known))
        self.__dict__ = type(self)(**{**known, **settings}).__dict__
        return self

    def __sklearn_clone__(self) -> Self:
        """An untrained twin. scikit-learn's own way of making one asks settings to be kept as the very same objects."""
        return type(self)(**self.settings())

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks before it takes an estimator in. Only it asks, so it is there: no import is needed."""
        tags = sys.modules["sklearn.base"].BaseEstimator.__sklearn_tags__(self)
        if hasattr(self, "predict_proba"):
            tags.estimator_type, tags.classifier_tags = "classifier", sys.modules["sklearn.utils"].ClassifierTags()
            tags.target_tags.required = True
        return tags

    def random(self, purpose: str, *position: int, seed: int | None = None) -> np.random.Generator:
        """Random numbers for one `purpose` at one `position` (epoch, batch, layer, ...): nothing to save.

        Args:
            seed: instead of the estimator's own.

        Raises:
            InputError: it is no whole number.
        """
        return generator(self.seed if seed is None else check_number("seed", seed, whole=True), purpose, *position)

    @property
    def fitted(self) -> bool:
        """Whether it has learned anything."""
        return all(hasattr(self, name) for name in self.learned)

    def check_fitted(self) -> None:
        """
        Raises:
            InputError: it was not fitted yet.
        """
        if not self.fitted:
            raise InputError(f"this {type(self).__name__} has learned nothing yet", todo="Call fit first.")

    def save(self, folder: str | Path, *, replace: bool = False) -> None:
        """Write it into a new folder, wholly or not at all.

        Args:
            replace: a saved estimator that is there already. Nothing else is ever replaced.

        Raises:
            InputError: it was not fitted yet, or went astray, or there is something at `folder`, or it cannot be
                written to.
        """
        self.check_fitted()
        state, folder = self._state(), Path(folder)
        if folder.exists() or folder.is_symlink():
            if not replace:
                todo = "Choose another name, or pass replace=True."
                raise InputError("already exists", where=str(folder), todo=todo)
            if not _is_ours(folder):
                raise InputError("holds other things than a saved estimator", where=str(folder), todo="Choose another.")
        arrays = {name: np.ascontiguousarray(value) for name, value in state.items() if isinstance(value, np.ndarray)}
        description = {
            "class": type(self).__name__,
            "settings": self.settings(),
            "learned": {name: value for name, value in state.items() if name not in arrays},
            "shapes": {name: list(array.shape) for name, array in arrays.items()},
        }
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise InputError("holds a value that is not finite", where=name, todo="Fit it again.")
        try:
            with new_folder(folder, replace=replace) as temporary:
                write_json(temporary / DESCRIPTION, description)
                write_atomically(temporary / PARAMETERS, save(arrays))
        except OSError as error:
            raise InputError(f"cannot be written ({error.strerror})", where=str(folder)) from None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What `save` wrote. The file never chooses the class: it has to be of this one.

        Raises:
            InputError: there is no such folder.
            MismatchError: it holds an estimator of another class.
            DamagedError: it is not what was saved.
        """
        path = Path(folder) / DESCRIPTION
        description = read_json(path)
        parts = [description.get(name) for name in ("settings", "learned", "shapes")] if _is_named(description) else []
        if not parts or not all(isinstance(part, dict) for part in parts):
            raise DamagedError("does not describe an estimator", where=str(path))
        if description["class"] != cls.__name__:
            raise MismatchError(f"is of the class {shown(description['class'])}, not {cls.__name__}", where=str(path))
        settings, learned, shapes = parts
        arrays = _read_arrays(Path(folder) / PARAMETERS)
        if {name: list(array.shape) for name, array in arrays.items()} != shapes:
            raise DamagedError(f"has other arrays than {DESCRIPTION} says", where=str(Path(folder) / PARAMETERS))
        if set(settings) != set(inspect.signature(cls).parameters):
            raise DamagedError(f"its settings are not those of {cls.__name__}", where=str(path))
        try:
            estimator = cls(**settings)
            estimator._restore({**learned, **arrays})
        except (RhapsodeError, TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            what = error.message if isinstance(error, RhapsodeError) else shown(str(error))
            raise DamagedError(f"does not fit together ({what})", where=str(folder)) from None
        return estimator

    def _state(self) -> dict[str, Any]:
        """What was learned, by name: arrays, and what JSON can hold."""
        return {name: getattr(self, name) for name in self.learned}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `_state` gave. Arrays from a file of arrays are finite; all else is for a subclass to check,
        even that what should be one is no list.

        Raises:
            InputError: something is missing, too much or of the wrong shape.
        """
        if set(state) != set(self.learned):
            raise InputError(f"holds {shown(sorted(state))} and not {shown(sorted(self.learned))}")
        for name, value in state.items():
            setattr(self, name, value)


def check_array(
    name: str, array: npt.ArrayLike, shape: Sequence[int | str], values: Values = "finite", *, below: int | None = None
) -> Array:
    """`array` as one of NumPy, if it is what it must be.

    Args:
        name: of the argument, for the message.
        shape: for each axis its length, or what it counts where any length from 1 on will do: ("examples", 64).
        values: what each value must be.
        below: of whole numbers, the first that is too large.

    Returns:
        A copy. float32 stays float32, every other number becomes float64; whole numbers become int64.

    Raises:
        InputError: it is not; the message names the argument, and the place of the first wrong value.
    """
    wanted = f"({', '.join(str(axis) for axis in shape)}{',' if len(shape) == 1 else ''})"
    if np.ma.is_masked(array):
        raise InputError("has masked values", where=name, todo="Fill them, or leave their rows out.")
    try:
        found = np.asarray(array)
    except ValueError:
        raise InputError("its rows have different lengths", where=name, todo=f"Its shape must be {wanted}.") from None
    except (TypeError, RuntimeError) as error:  # what other libraries say of their own arrays
        raise InputError(f"is no array of NumPy ({shown(str(error))})", where=name) from None
    if found.dtype.kind not in "biuf":
        raise InputError(f"holds {found.dtype} and not numbers", where=name, todo=f"Each must be {NEEDED[values]}.")
    if len(found.shape) != len(shape) or any(
        length != axis if isinstance(axis, int) else length == 0
        for length, axis in zip(found.shape, shape, strict=True)
    ):
        raise InputError(f"has the shape {found.shape}, not {wanted}", where=name, todo="Give it that shape.")
    if found.dtype.kind in "bf" and found.dtype not in (np.float32, np.float64):
        with np.errstate(over="ignore"):  # what is too large for float64 becomes infinite
            found = found.astype(np.float64)
    good: Array = np.isfinite(found)
    if values == "moderate":
        good = (found >= -LARGEST) & (found <= LARGEST)
    elif values == "unit":
        good = (found >= 0) & (found <= 1)
    elif values == "binary":
        good = (found == 0) | (found == 1)
    elif values == "signs":
        good = np.abs(found) == 1
    elif values == "whole":
        good &= (found >= 0) & (found == np.floor(found)) & (found < (below if below is not None else 2**63))
    if not good.all():
        place = tuple(int(index) for index in np.argwhere(~good)[0])
        where = f"{name}[{', '.join(map(str, place))}]"
        needed = NEEDED[values]
        if values == "whole":
            needed += " on" if below is None else f" to {below - 1}"
        value = found[place].item()
        is_number = not (isinstance(value, float) and math.isnan(value))
        raise InputError(f"is {value}" if is_number else "is not a number", where=where, todo=f"It must be {needed}.")
    if values == "whole":
        return found.astype(np.int64)
    return found.astype(np.float32 if found.dtype == np.float32 else np.float64)


def check_number(
    name: str,
    number: float,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> Any:
    """`number`, if it is what it must be: finite, between the bounds, an int where it must be `whole`.

    Raises:
        InputError: it is not; the message names the setting.
    """
    if isinstance(number, np.generic):
        number = number.item()
    kind = "a whole number" if whole else "a number"
    right = isinstance(number, int if whole else (int, float)) and not isinstance(number, bool)
    if not right or not abs(number) < math.inf:
        raise InputError(f"{shown(number)} is not {kind}", where=name)
    if abs(number) >= LARGEST_SETTING:
        raise InputError("is too large", where=name, todo="It must be between -2^64 and 2^64.")
    bounds = [
        (least is not None and number < least, f"at least {least}"),
        (most is not None and number > most, f"at most {most}"),
        (above is not None and number <= above, f"more than {above}"),
        (below is not None and number >= below, f"less than {below}"),
    ]
    for broken, bound in bounds:
        if broken:
            raise InputError(f"is {number}", where=name, todo=f"It must be {bound}.")
    return number


def check_choice(name: str, value: Any, choices: Sequence[str]) -> Any:
    """`value`, if it is one of `choices`.

    Raises:
        InputError: it is not; the message names the setting and the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"is {shown(value)}", where=name, todo=f"Choose one of: {', '.join(choices)}.")
    return value


def check_words(name: str, words: Any) -> list[str]:
    """`words` as a list, if they are strings, and not one: its letters would pass for words.

    Raises:
        InputError: they are not; the message names the argument, and the place of the first that is no string.
    """
    if isinstance(words, str) or not isinstance(words, Iterable):
        raise InputError(f"is {shown(words)} and no list of words", where=name, todo="Give a list of strings.")
    listed = list(words)
    for place, word in enumerate(listed):
        if not isinstance(word, str):
            raise InputError(f"is {shown(word)} and no word", where=f"{name}[{place}]", todo="It must be a string.")
    return listed


class Bar:
    """A bar for work that may be long: it shows when the work has gone on for more than a second.

    with Bar("fitting", total=epochs, unit="epochs") as bar:
        bar.advance(loss="0.31")
    """

    def __init__(self, description: str, total: float, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._completed = 0.0
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        return self

    def advance(self, amount: float = 1, **fields: str) -> None:
        """`amount` more is done; `fields` are shown beside it."""
        self._completed += amount
        if self._progress is None and time.monotonic() - self._start > SECONDS_WITHOUT_A_BAR:
            self._progress = Progress(self._description, self._total, self._unit, completed=self._completed)
            self._progress.__enter__()
        if self._progress is not None:
            self._progress.update(self._completed, **fields)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.__exit__(kind, error, traceback)


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a saved estimator, and nothing that would be lost with it."""
    return folder.is_dir() and not folder.is_symlink() and {path.name for path in folder.iterdir()} <= FILES


def _is_named(description: Any) -> bool:
    return isinstance(description, dict) and isinstance(description.get("class"), str)


def _read_arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise DamagedError("the file does not exist", where=str(path))
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError, TypeError, KeyError, AttributeError) as error:  # the last of a type NumPy lacks
        raise DamagedError(f"is no safetensors file ({shown(str(error))})", where=str(path)) from None
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DamagedError(f"array {shown(name)} holds a value that is not finite", where=str(path))
    return arrays
