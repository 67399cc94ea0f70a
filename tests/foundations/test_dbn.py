"""Deep belief networks: the classifier begins as the stack, learns, dreams, and comes back from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import is_classifier
from sklearn.datasets import load_digits

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.foundations.dbn import DeepBeliefNetwork
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.network import Classifier
from rhapsode.foundations.rbm import RestrictedBoltzmannMachine


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    x, y = load_digits(return_X_y=True)
    return x / 16, y


@pytest.fixture(scope="module")
def trained(digits: tuple[Array, Array]) -> DeepBeliefNetwork:
    """On the first 1,200 digits; do not change it."""
    x, y = digits
    settings: dict[str, Any] = {"pre_training": {"epochs": 60}, "fine_tuning": {"epochs": 20}}
    return DeepBeliefNetwork(hidden=(80, 60), **settings).fit(x[:1200], y[:1200])


def test_digits_are_learned(trained: DeepBeliefNetwork, digits: tuple[Array, Array]) -> None:
    x, y = digits[0][1200:], digits[1][1200:]
    assert trained.score(x, y) > 0.9
    assert (trained.predict(x) == y).mean() == pytest.approx(trained.score(x, y))
    np.testing.assert_allclose(trained.predict_proba(x).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_the_classifier_begins_as_the_stack(digits: tuple[Array, Array], visible: Any) -> None:
    x, y = digits[0][:200], digits[1][:200]
    barely = {"epochs": 1, "learning_rate": 1e-12}
    dbn = DeepBeliefNetwork(hidden=(20, 10), visible=visible, pre_training={"epochs": 3}, fine_tuning=barely)
    dbn.fit(x, y)
    np.testing.assert_allclose(dbn.classifier_.transform(x), dbn.transform(x), atol=1e-5)


def test_fine_tuning_leaves_the_stack_alone(digits: tuple[Array, Array]) -> None:
    x, y = digits[0][:200], digits[1][:200]
    dbn = DeepBeliefNetwork(hidden=(20,), pre_training={"epochs": 3}, fine_tuning={"epochs": 5}).fit(x)
    before = dbn.transform(x)
    assert not np.allclose(dbn.fine_tune(x, y).classifier_.transform(x), before, atol=1e-3)
    assert np.array_equal(dbn.transform(x), before)


def test_the_next_layer_learns_what_the_one_below_makes_of_the_examples(
    trained: DeepBeliefNetwork, digits: Any
) -> None:
    x = digits[0][:1200]
    again = trained._machine(1).fit(trained.rbms_[0].transform(x))
    assert np.array_equal(again.weights_, trained.rbms_[1].weights_)


def test_reconstructions_keep_which_digit_it_is(trained: DeepBeliefNetwork, digits: Any) -> None:
    """Grey pixels are chances to the machines, whose own coins blur what they make of them."""
    x, y = digits[0][1200:], digits[1][1200:]
    back = trained.reconstruct(x)
    assert ((back - x) ** 2).mean() < 0.6 * ((x.mean(axis=0) - x) ** 2).mean()
    assert trained.score(back, y) > 0.6


def test_dreams_have_the_correlations_of_digits(trained: DeepBeliefNetwork, digits: Any) -> None:
    dreams = trained.sample(500, steps=200)
    assert dreams.shape == (500, 64)
    assert ((dreams >= 0) & (dreams <= 1)).all()
    real, dreamt = (np.cov(x, rowvar=False) for x in (digits[0][:1200], dreams))
    apart = ~np.eye(64, dtype=bool)
    assert np.corrcoef(real[apart], dreamt[apart])[0, 1] > 0.8
    assert trained.predict_proba(dreams).max(axis=1).mean() > 0.8
    assert len(np.unique(trained.predict(dreams))) == 10


def test_a_seed_gives_the_same_dreams_again(trained: DeepBeliefNetwork) -> None:
    dreams = trained.sample(5, steps=3)
    assert np.array_equal(dreams, trained.sample(5, steps=3))
    assert not np.array_equal(dreams, trained.sample(5, steps=3, seed=1))


def test_it_comes_back_from_its_files(trained: DeepBeliefNetwork, digits: tuple[Array, Array], tmp_path: Path) -> None:
    trained.save(tmp_path / "dbn")
    again, x = DeepBeliefNetwork.load(tmp_path / "dbn"), digits[0][1200:]
    assert again.settings() == trained.settings()
    assert np.array_equal(again.predict_proba(x), trained.predict_proba(x))
    assert np.array_equal(again.sample(3, steps=2), trained.sample(3, steps=2))
    trained.classifier_.save(tmp_path / "classifier")  # one like any other
    assert np.array_equal(Classifier.load(tmp_path / "classifier").predict(x), trained.predict(x))
    unlabelled = DeepBeliefNetwork(hidden=(5,), pre_training={"epochs": 1}).fit(x)
    unlabelled.save(tmp_path / "unlabelled")
    again = DeepBeliefNetwork.load(tmp_path / "unlabelled")
    assert np.array_equal(again.transform(x), unlabelled.transform(x))
    with pytest.raises(InputError, match="has seen no labels yet"):
        again.predict(x)


def test_scikit_learn_takes_it_for_a_classifier() -> None:
    assert is_classifier(DeepBeliefNetwork())
    assert not is_classifier(RestrictedBoltzmannMachine())


def test_a_stack_of_other_layers_is_damaged(digits: tuple[Array, Array], tmp_path: Path) -> None:
    dbn = DeepBeliefNetwork(hidden=(5, 4), pre_training={"epochs": 1}).fit(digits[0][:50])
    dbn.hidden = (5,)
    dbn.save(tmp_path / "dbn")
    with pytest.raises(DamagedError, match="holds 2 machines, and the settings say 1"):
        DeepBeliefNetwork.load(tmp_path / "dbn")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DeepBeliefNetwork(hidden=()), "hidden: is no list of widths"),
        (lambda: DeepBeliefNetwork(hidden=5), "hidden: is no list of widths"),  # type: ignore[arg-type]
        (lambda: DeepBeliefNetwork(pre_training=["epochs"]), "pre_training: are no settings by name"),  # type: ignore[arg-type]
        (lambda: DeepBeliefNetwork(fine_tuning={1: 2}), "fine_tuning: 1 is no setting of it"),  # type: ignore[dict-item]
        (lambda: DeepBeliefNetwork(hidden=(10, 0)), "hidden: is 0"),
        (lambda: DeepBeliefNetwork(visible="real"), "visible: is 'real'"),  # type: ignore[arg-type]
        (
            lambda: DeepBeliefNetwork(pre_training={"epoch": 3}),
            "pre_training: 'epoch' is no setting of it. Did you mean 'epochs'",
        ),
        (lambda: DeepBeliefNetwork(pre_training={"hidden": 3}), "pre_training: 'hidden' is no setting of it"),
        (lambda: DeepBeliefNetwork(fine_tuning={"epochs": 0}), "epochs: is 0. It must be at least 1"),
        (lambda: DeepBeliefNetwork().fit([[0, 2]]), r"x\[0, 1\]: is 2"),
        (lambda: DeepBeliefNetwork().transform([[0, 1]]), "has learned nothing yet"),
        (lambda: DeepBeliefNetwork().fine_tune([[0, 1]], [1]), "has learned nothing yet"),
        (lambda: DeepBeliefNetwork(hidden=(2,)).fit([[0, 1], [1, 0]]).predict([[0, 1]]), "has seen no labels yet"),
        (lambda: DeepBeliefNetwork(hidden=(2,)).fit([[0, 1], [1, 0]], [0.5, 1]), r"y\[0\]: is 0.5"),
        (lambda: DeepBeliefNetwork(hidden=(2,)).fit([[0, 1], [1, 0]], [1]), "y: has the shape"),
        (lambda: DeepBeliefNetwork(hidden=(2,)).fit([[0, 1]]).inverse_transform([[1]]), "h: has the shape"),
    ],
)
def test_bad_input_is_one_clear_error(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
