"""Checks of what estimators are given, and their files: written whole, read strictly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rhapsode.base.errors import DamagedError, InputError, MismatchError
from rhapsode.foundations.estimator import Array, Bar, Estimator, check_array, check_choice, check_number
from rhapsode.foundations.network import Classifier
from rhapsode.foundations.rbm import RestrictedBoltzmannMachine


class Mean(Estimator):
    """The mean of each column, to have something small to save."""

    learned = ("mean_", "examples_")

    def __init__(self, *, shrink: float = 0.0, widths: tuple[int, ...] = (1, 2), seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.shrink = check_number("shrink", shrink, least=0, most=1)
        self.widths = tuple(widths)

    def fit(self, x: Array) -> Mean:
        x = check_array("x", x, ("examples", "features"))
        self.mean_, self.examples_ = x.mean(axis=0) * (1 - self.shrink), len(x)
        return self


@pytest.fixture
def fitted() -> Mean:
    return Mean(shrink=0.5, widths=(3,), seed=4).fit(np.array([[1.0, 2.0], [3.0, 6.0]]))


def test_what_is_saved_is_loaded(fitted: Mean, tmp_path: Path) -> None:
    fitted.save(tmp_path / "mean")
    loaded = Mean.load(tmp_path / "mean")
    assert loaded.settings() == fitted.settings() == {"shrink": 0.5, "widths": (3,), "seed": 4}
    assert np.array_equal(loaded.mean_, [1.0, 2.0])
    assert loaded.examples_ == 2
    assert sorted(path.name for path in (tmp_path / "mean").iterdir()) == ["estimator.json", "parameters.safetensors"]
    with pytest.raises(InputError, match="already exists"):
        fitted.save(tmp_path / "mean")
    fitted.save(tmp_path / "mean", replace=True)


def test_only_a_saved_estimator_is_replaced(fitted: Mean, tmp_path: Path) -> None:
    thesis, file, link = tmp_path / "thesis", tmp_path / "file", tmp_path / "link"
    fitted.save(thesis)
    (thesis / "chapter.txt").write_text("years of work")
    file.write_text("notes")
    link.symlink_to(tmp_path / "nowhere")
    for place in (thesis, file, link):
        with pytest.raises(InputError, match="already exists"):
            fitted.save(place)
        with pytest.raises(InputError, match="holds other things than a saved estimator"):
            fitted.save(place, replace=True)
    assert (thesis / "chapter.txt").read_text() == "years of work"
    assert file.read_text() == "notes"
    assert link.is_symlink()
    with pytest.raises(InputError, match=r"below: cannot be written \("):
        fitted.save(file / "below")


def test_what_went_astray_is_not_saved(fitted: Mean, tmp_path: Path) -> None:
    fitted.mean_[1] = np.nan
    with pytest.raises(InputError, match="mean_: holds a value that is not finite"):
        fitted.save(tmp_path / "mean")
    assert not [*tmp_path.iterdir()]


def test_settings_that_change_make_it_forget(fitted: Mean) -> None:
    assert fitted.get_params() == fitted.settings()
    for wrong, message in (({"shrink": 3}, "shrink: is 3"), ({"shrunk": 0}, "Mean has no setting 'shrunk'. Did you")):
        with pytest.raises(InputError, match=message):
            fitted.set_params(**wrong)
        assert fitted.fitted
    assert fitted.set_params(shrink=0.25) is fitted
    assert fitted.settings() == {"shrink": 0.25, "widths": (3,), "seed": 4}
    assert not fitted.fitted


def test_scikit_learn_takes_them() -> None:
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    x = np.random.default_rng(0).normal(size=(40, 3))
    y = x[:, 0] > 0
    twin = base.clone(Mean(widths=(5,)).fit(x))
    assert not twin.fitted
    assert twin.widths == (5,)
    machine, reader = RestrictedBoltzmannMachine(hidden=2, epochs=1), Classifier(hidden=(), epochs=1)
    assert base.is_classifier(reader)
    assert not base.is_classifier(machine)
    line = make_pipeline(MinMaxScaler(clip=True), machine, reader)
    found = GridSearchCV(line, {"classifier__learning_rate": [1e-6, 0.3]}, cv=2).fit(x, y)
    assert found.predict_proba(x).shape == (40, 2)
    assert found.best_estimator_.named_steps["classifier"].settings() == {
        **reader.settings(),
        "learning_rate": found.best_params_["classifier__learning_rate"],
    }


def test_settings_make_an_untrained_twin(fitted: Mean) -> None:
    twin = Mean(**fitted.settings())
    assert twin.settings() == fitted.settings()
    assert not twin.fitted
    with pytest.raises(InputError, match=r"this Mean has learned nothing yet. Call fit first."):
        twin.save("nowhere")


def test_random_numbers_are_those_of_their_place(fitted: Mean) -> None:
    twin = Mean(seed=4)
    assert fitted.random("order", 3).random() == twin.random("order", 3).random()
    others = [fitted.random("order", 4), fitted.random("noise", 3), Mean(seed=5).random("order", 3)]
    assert len({fitted.random("order", 3).random(), *(other.random() for other in others)}) == 4


def change_json(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "estimator.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    return change


def change_arrays(**arrays: Array) -> Callable[[Path], None]:
    return lambda folder: save_file(
        {**load_file(folder / "parameters.safetensors"), **arrays}, folder / "parameters.safetensors"
    )


def cut_short(folder: Path) -> None:
    path = folder / "parameters.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def of_a_type_of_its_own(folder: Path) -> None:
    """Numbers of eight bits, which safetensors knows and NumPy does not."""
    header = json.dumps({"mean_": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (folder / "parameters.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda folder: (folder / "estimator.json").unlink(), InputError, "the file does not exist"),
        (lambda folder: (folder / "estimator.json").write_text("[1]"), DamagedError, "does not describe an estimator"),
        (lambda folder: (folder / "estimator.json").write_text("{"), DamagedError, "is not JSON"),
        (lambda folder: (folder / "parameters.safetensors").unlink(), DamagedError, "does not exist"),
        (cut_short, DamagedError, "is no safetensors file"),
        (change_json(settings=3), DamagedError, "does not describe an estimator"),
        (change_json(**{"class": "Median"}), MismatchError, "is of the class 'Median', not Mean"),
        (change_json(settings={"shrink": 0.5}), DamagedError, "its settings are not those of Mean"),
        (change_json(settings={"shrink": 3, "widths": [1], "seed": 0}), DamagedError, "shrink: is 3"),
        (change_json(settings={"shrink": 10**400, "widths": [1], "seed": 0}), DamagedError, "shrink: is too large"),
        (change_json(settings={"shrink": 0, "widths": 1, "seed": 0}), DamagedError, "does not fit together"),
        (change_json(learned={}), DamagedError, "does not fit together"),
        (change_json(learned={"examples_": 2, "save": 1}), DamagedError, "does not fit together"),
        (change_json(shapes={"mean_": [3]}), DamagedError, "has other arrays than estimator.json says"),
        (of_a_type_of_its_own, DamagedError, "is no safetensors file"),
        (change_arrays(more=np.ones(2)), DamagedError, "has other arrays than estimator.json says"),
        (change_arrays(mean_=np.array([1.0, np.nan])), DamagedError, "holds a value that is not finite"),
    ],
)
def test_damaged_folders(
    fitted: Mean, tmp_path: Path, damage: Callable[[Path], None], kind: type[InputError], message: str
) -> None:
    fitted.save(tmp_path / "mean")
    damage(tmp_path / "mean")
    with pytest.raises(kind) as error:
        Mean.load(tmp_path / "mean")
    assert type(error.value) is kind
    assert message in error.value.message
    assert str(tmp_path) in error.value.message


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from(["f4", "f8", "i4", "u1", "?"]))
def test_arrays_of_the_right_shape_pass(shape: list[int], kind: str) -> None:
    found = check_array("x", np.ones(shape, kind).tolist() if kind == "i4" else np.ones(shape, kind), shape, "binary")
    assert found.shape == tuple(shape)
    assert found.dtype == (np.float32 if kind == "f4" else np.float64)


@pytest.mark.parametrize(
    ("array", "shape", "values", "message"),
    [
        ([[1], [2, 3]], ("examples",), "finite", "x: its rows have different lengths. Its shape must be (examples,)."),
        ([["a"]], ("examples", 1), "unit", "x: holds <U1 and not numbers. Each must be a number from 0 to 1."),
        ([[1j]], ("examples", 1), "finite", "x: holds complex128 and not numbers. Each must be a finite number."),
        ([None], ("examples",), "finite", "x: holds object and not numbers. Each must be a finite number."),
        ([1.0], ("examples", 1), "finite", "x: has the shape (1,), not (examples, 1). Give it that shape."),
        ([[1.0]], ("examples", 2), "finite", "x: has the shape (1, 1), not (examples, 2). Give it that shape."),
        (np.ones((0, 2)), ("examples", 2), "finite", "x: has the shape (0, 2), not (examples, 2). Give it that shape."),
        (1.0, ("examples",), "finite", "x: has the shape (), not (examples,). Give it that shape."),
        ([[1.0, np.nan]], ("examples", 2), "unit", "x[0, 1]: is not a number. It must be a number from 0 to 1."),
        ([[1.0, np.inf]], ("examples", 2), "finite", "x[0, 1]: is inf. It must be a finite number."),
        ([1.0, -1e16], ("examples",), "moderate", "x[1]: is -1e+16. It must be a number from -1e+15 to 1e+15."),
        ([1.0, np.nan], ("examples",), "moderate", "x[1]: is not a number. It must be a number from -1e+15 to 1e+15."),
        ([-(2**63)], ("examples",), "moderate", f"x[0]: is {-(2**63)}. It must be a number from -1e+15 to 1e+15."),
        (np.ma.masked_less([-1.0], 0), (1,), "finite", "x: has masked values. Fill them, or leave their rows out."),
        (np.array([2.5], np.float16), ("examples",), "whole", "x[0]: is 2.5. It must be a whole number from 0 on."),
        ([1.0, 1.5], ("examples",), "unit", "x[1]: is 1.5. It must be a number from 0 to 1."),
        ([1, 2], ("examples",), "binary", "x[1]: is 2. It must be 0 or 1."),
        ([1, -1, 0], ("examples",), "signs", "x[2]: is 0. It must be -1 or +1."),
        ([1, -1], ("examples",), "whole", "x[1]: is -1. It must be a whole number from 0 on."),
        ([1, 2.5], ("examples",), "whole", "x[1]: is 2.5. It must be a whole number from 0 on."),
        ([1e300], ("examples",), "whole", "x[0]: is 1e+300. It must be a whole number from 0 on."),
    ],
)  # fmt: skip
def test_arrays_that_are_wrong(array: Any, shape: tuple[int | str, ...], values: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        check_array("x", array, shape, values)
    assert error.value.message == message


def test_what_is_checked_is_a_copy() -> None:
    for kind in (np.float32, np.float64, np.int64):
        given = np.ones((2, 2), kind)
        given.setflags(write=False)
        found = check_array("x", given, (2, 2), "whole" if kind is np.int64 else "finite")
        found[0, 0] = 5
        assert given[0, 0] == 1
    with pytest.raises(InputError, match="x: is no array of NumPy"):
        check_array("x", torch.ones(1, requires_grad=True), ("examples",))


def test_truths_are_whole_numbers() -> None:
    assert check_array("y", [True, False], ("examples",), "whole").tolist() == [1, 0]


def test_whole_numbers_below_a_bound() -> None:
    assert check_array("y", [0.0, 2.0], ("examples",), "whole", below=3).tolist() == [0, 2]
    with pytest.raises(InputError) as error:
        check_array("y", [0, 3], ("examples",), "whole", below=3)
    assert error.value.message == "y[1]: is 3. It must be a whole number from 0 to 2."


@pytest.mark.parametrize(
    ("number", "bounds", "message"),
    [
        (True, {}, "rate: True is not a number."),
        ("1", {}, "rate: '1' is not a number."),
        (float("nan"), {}, "rate: nan is not a number."),
        (float("-inf"), {}, "rate: -inf is not a number."),
        (1e300, {}, "rate: is too large. It must be between -2^64 and 2^64."),
        (1.5, {"whole": True}, "rate: 1.5 is not a whole number."),
        (0, {"least": 1}, "rate: is 0. It must be at least 1."),
        (2, {"most": 1}, "rate: is 2. It must be at most 1."),
        (0, {"above": 0}, "rate: is 0. It must be more than 0."),
        (1, {"below": 1}, "rate: is 1. It must be less than 1."),
    ],
)
def test_settings_that_are_wrong(number: Any, bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        check_number("rate", number, **bounds)
    assert error.value.message == message


def test_settings_that_are_right() -> None:
    assert check_number("rate", np.float32(0.5), least=0.5, most=0.5, above=0, below=1) == 0.5
    assert isinstance(check_number("width", np.int64(3), whole=True), int)
    with pytest.raises(InputError, match="width: is too large"):
        check_number("width", -(10**5000), whole=True)
    assert check_choice("rule", "hebbian", ("hebbian", "storkey")) == "hebbian"
    with pytest.raises(InputError, match=r"rule: is 'oja'. Choose one of: hebbian, storkey."):
        check_choice("rule", "oja", ("hebbian", "storkey"))
    with pytest.raises(InputError, match=r"rule: is array\("):
        check_choice("rule", np.array(["hebbian", "storkey"]), ("hebbian", "storkey"))


def test_a_bar_shows_only_what_takes_long(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhapsode.base.progress.SECONDS_BETWEEN_LINES", 0.0)
    with Bar("fitting", 2, "epochs") as bar:
        bar.advance(loss="0.5")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("rhapsode.foundations.estimator.SECONDS_WITHOUT_A_BAR", 0.0)
    with Bar("fitting", 2, "epochs") as bar:
        bar.advance(loss="0.5")
        bar.advance(loss="0.4")
    assert "fitting: 100 %, 2 of 2 epochs" in capsys.readouterr().err
