"""What holds for each estimator of the room, as users of scikit-learn expect it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from rhapsode.base.errors import InputError
from rhapsode.foundations.boltzmann import BoltzmannMachine
from rhapsode.foundations.dbn import DeepBeliefNetwork
from rhapsode.foundations.estimator import Estimator
from rhapsode.foundations.hopfield import Hopfield
from rhapsode.foundations.modern_hopfield import ModernHopfield
from rhapsode.foundations.network import Classifier
from rhapsode.foundations.next_word import NextWord
from rhapsode.foundations.rbm import RestrictedBoltzmannMachine
from rhapsode.foundations.skip_gram import SkipGram

SIGNS = np.where(np.random.default_rng(0).random((12, 6)) < 0.5, -1.0, 1.0)
BITS = (SIGNS + 1) / 2
LABELS = np.arange(12) % 3
RHYME = "the cat sat on the mat and the dog sat on the rug"
SENTENCES = [RHYME.split()] * 4
for shared in (SIGNS, BITS, LABELS):
    shared.setflags(write=False)  # whoever changes what was given fails

ESTIMATORS: dict[str, tuple[Callable[[], Any], tuple[Any, ...], tuple[Any, ...]]] = {
    "Hopfield": (lambda: Hopfield(seed=3), (SIGNS,), (SIGNS[:5],)),
    "Storkey": (lambda: Hopfield(rule="storkey"), (SIGNS,), (SIGNS[:5],)),
    "pseudo-inverse": (lambda: Hopfield(rule="pseudo-inverse"), (SIGNS[:3],), (SIGNS[3:5],)),
    "ModernHopfield": (lambda: ModernHopfield(beta=0.5), (SIGNS,), (SIGNS[:5, :4],)),
    "BoltzmannMachine": (lambda: BoltzmannMachine(hidden=1, epochs=2, chains=3, seed=3), (BITS,), (BITS[:, :4],)),
    "exact": (lambda: BoltzmannMachine(hidden=1, epochs=2, phases="exact"), (BITS,), (BITS[:, :4],)),
    "binary": (lambda: RestrictedBoltzmannMachine(hidden=2, epochs=2, seed=3), (BITS,), (BITS[:, :4],)),
    "gaussian": (lambda: RestrictedBoltzmannMachine(hidden=2, epochs=2, visible="gaussian"), (SIGNS,), (BITS[:, :4],)),
    "DeepBeliefNetwork": (
        lambda: DeepBeliefNetwork(hidden=(3, 2), pre_training={"epochs": 1}, fine_tuning={"epochs": 1}, seed=3),
        (BITS, LABELS),
        (BITS[:, :4], LABELS),
    ),
    "Classifier": (
        lambda: Classifier(hidden=(3,), dropout=0.2, epochs=4, patience=2, seed=3),
        (SIGNS, LABELS),
        (BITS[:, :4], LABELS == 1),
    ),
    "SkipGram": (
        lambda: SkipGram(dimension=3, min_count=1, subsample=0, epochs=2),
        (SENTENCES,),
        ([["a", "rug"], ["a", "cat"]],),
    ),
    "NextWord": (lambda: NextWord(dimension=2, hidden=3, epochs=2, dropout=0.1), (RHYME,), ("a rug, a cat",)),
}
each = pytest.mark.parametrize(("make", "given", "other"), ESTIMATORS.values(), ids=ESTIMATORS)


def bits(estimator: Estimator) -> dict[str, Any]:
    """All that it has learned, to the last bit."""
    return {
        name: (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for name, value in estimator._state().items()
    }


@each
def test_a_fit_begins_afresh_and_gives_the_same_bits(make: Any, given: Any, other: Any) -> None:
    once = make()
    assert once.fit(*given) is once
    assert bits(make().fit(*other).fit(*given)) == bits(once.fit(*given)) == bits(make().fit(*given))


@each
def test_what_is_learned_ends_with_an_underscore(make: Any, given: Any, other: Any) -> None:
    estimator = make()
    before = set(vars(estimator))
    learned = {name for name in vars(estimator.fit(*given)).keys() - before if not name.startswith("_")}
    assert learned
    assert all(name.endswith("_") for name in learned)
    assert set(type(estimator).learned) <= learned
    assert estimator.settings() == make().settings()


@each
def test_a_loaded_one_goes_on_as_the_saved_one(make: Any, given: Any, other: Any, tmp_path: Path) -> None:
    estimator = make().fit(*given)
    estimator.save(tmp_path / "saved")
    again = type(estimator).load(tmp_path / "saved")
    assert bits(again) == bits(estimator)
    if hasattr(again, "partial_fit"):
        assert again.partial_fit(*given) is again  # of arrays that may be written to


@each
def test_nothing_is_asked_of_one_that_has_learned_nothing(make: Any, given: Any, other: Any) -> None:
    for name in ("predict", "predict_proba", "transform", "energy", "score"):
        ask = getattr(make(), name, None)
        if ask is not None:
            needed = [each for each in inspect.signature(ask).parameters.values() if each.default is each.empty]
            with pytest.raises(InputError, match="has learned nothing yet"):
                ask(*[given[0]] * len(needed))


@pytest.mark.parametrize("name", ["Hopfield", "BoltzmannMachine", "binary", "Classifier", "ModernHopfield"])
def test_lists_and_frames_do_as_well_as_arrays(name: str) -> None:
    make, given, _ = ESTIMATORS[name]
    for other in (np.ndarray.tolist, pandas.DataFrame, lambda x: np.asfortranarray(x.astype(np.int8))):
        assert bits(make().fit(other(given[0]), *given[1:])) == bits(make().fit(*given))
