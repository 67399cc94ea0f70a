"""Networks that learn: XOR, optimisers beside torch's, early stopping, and the classifier."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rhapsode.base.errors import DamagedError, InputError, NotFiniteError
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.layers import Dense, Dropout, Layer, ReLU, Tanh, softmax_cross_entropy, squared_error
from rhapsode.foundations.network import SGD, Adam, Classifier, Network, Optimizer, gradient_check

XOR = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)
ODD = np.array([[0], [1], [1], [0]], dtype=np.float32)


def solves_xor(seed: int) -> bool:
    """Whether a network of two hidden units and one output learns it."""
    network = Network([Dense(2, 2, gain=0.5), Tanh(), Dense(2, 1, gain=0.5)], loss=squared_error, seed=seed)
    network.fit(XOR, ODD, optimizer=SGD(0.2, momentum=0.9), epochs=600, batch_size=4)
    return bool((np.abs(network.forward(XOR) - ODD) < 0.25).all())


def test_two_hidden_units_learn_xor_from_most_beginnings() -> None:
    assert sum(solves_xor(seed) for seed in range(100)) >= 90


def two_moons(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Two half circles, one in the other's arms; no line parts them."""
    random = np.random.default_rng(seed)
    angle, label = np.pi * random.random(count), random.integers(2, size=count)
    x = np.stack([np.cos(angle) + label, (1 - 2 * label) * np.sin(angle) + 0.5 * label], axis=1)
    return x + 0.1 * random.standard_normal(x.shape), label


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: SGD(0.1), lambda p, _: torch.optim.SGD(p, 0.1)),
        (lambda: SGD(0.1, momentum=0.9), lambda p, _: torch.optim.SGD(p, 0.1, momentum=0.9)),
        (lambda: Adam(0.01), lambda p, _: torch.optim.Adam(p, 0.01)),
        (
            lambda: Adam(0.01, beta1=0.8, beta2=0.99, epsilon=1e-3),
            lambda p, _: torch.optim.Adam(p, 0.01, betas=(0.8, 0.99), eps=1e-3),
        ),
        (
            lambda: Adam(0.01, weight_decay=0.1),
            lambda p, undecayed: torch.optim.AdamW(
                [{"params": p}, {"params": undecayed, "weight_decay": 0.0}], 0.01, weight_decay=0.1
            ),
        ),
    ],
    ids=["sgd", "momentum", "adam", "adam otherwise", "adamw"],
)
def test_optimizers_take_the_steps_of_torch(
    ours: Callable[[], Optimizer], theirs: Callable[[list[torch.Tensor], list[torch.Tensor]], torch.optim.Optimizer]
) -> None:
    random = np.random.default_rng(0)
    parameters = {"weight": random.standard_normal((3, 4)), "bias": random.standard_normal(4)}
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in parameters.items()}
    decays = isinstance(ours(), Adam) and getattr(ours(), "weight_decay") > 0  # noqa: B009
    groups = ([tensors["weight"]], [tensors["bias"]]) if decays else ([*tensors.values()], [])
    optimizer, reference = ours(), theirs(*groups)
    for _ in range(20):
        gradients = {name: random.standard_normal(value.shape) for name, value in parameters.items()}
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name])
        optimizer.step(parameters, gradients)
        reference.step()
    for name, tensor in tensors.items():
        assert np.abs(parameters[name] - tensor.detach().numpy()).max() < 1e-12


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 4))
def test_a_batch_is_the_mean_of_its_examples(seed: int, count: int, width: int) -> None:
    random = np.random.default_rng(seed)
    network = Network([Dense(width, 3), Tanh(), Dense(3, 2)], seed=seed, dtype=np.float64)
    x, y = random.standard_normal((count, width)), random.integers(2, size=count)
    loss = network.loss_and_gradients(x, y)
    together = {name: gradient.copy() for name, gradient in network.gradients.items()}
    losses, apart = [], {name: np.zeros_like(gradient) for name, gradient in together.items()}
    for row in range(count):
        losses.append(network.loss_and_gradients(x[row : row + 1], y[row : row + 1]))
        for name, gradient in network.gradients.items():
            apart[name] += gradient / count
    assert loss == pytest.approx(np.mean(losses))
    assert network.mean_loss(x, y) == pytest.approx(loss)
    for name, gradient in together.items():
        assert np.allclose(gradient, apart[name], atol=1e-12)


def test_a_seed_is_a_network() -> None:
    x, y = two_moons(100)

    def learned(seed: int, epochs: list[int]) -> dict[str, Array]:
        network = Network([Dense(2, 8), ReLU(), Dropout(0.2), Dense(8, 2)], seed=seed)
        optimizer = Adam(0.01)
        for each in epochs:
            network.fit(x, y, optimizer=optimizer, epochs=each)
        return network.parameters

    first, again, other = learned(1, [4]), learned(1, [1, 3]), learned(2, [4])
    assert all(np.array_equal(value, again[name]) for name, value in first.items())
    assert not np.array_equal(first["0.weight"], other["0.weight"])


def test_layers_of_one_shape_begin_differently() -> None:
    network = Network([Dense(3, 3), Tanh(), Dense(3, 3)])
    assert not np.array_equal(network.parameters["0.weight"], network.parameters["2.weight"])


def test_early_stopping_keeps_the_best_epoch() -> None:
    random = np.random.default_rng(0)
    x, y = (
        random.standard_normal((40, 20)),
        random.integers(2, size=40),
    )  # nothing but noise: it can only be learned by heart
    network = Network([Dense(20, 30), Tanh(), Dense(30, 2)], seed=3)
    history = network.fit(
        x[:20], y[:20], optimizer=Adam(0.01), epochs=200, batch_size=5, validation=(x[20:], y[20:]), patience=6
    )
    assert len(history.loss) == len(history.validation_loss) == history.best_epoch + 6 < 200
    assert history.validation_loss[history.best_epoch - 1] == min(history.validation_loss)
    assert network.mean_loss(x[20:], y[20:]) == pytest.approx(min(history.validation_loss), abs=1e-6)


def test_a_loss_that_is_no_number_stops_the_fit() -> None:
    network = Network([Dense(2, 1)], loss=squared_error)
    with pytest.raises(NotFiniteError, match=r"epoch \d+, batch 1: the loss is no number any more"):
        network.fit(XOR * 1e3, ODD, optimizer=SGD(1e3), epochs=100, batch_size=4)


def test_a_step_that_ends_in_no_number_is_told() -> None:
    """The last step's loss is nobody's to see."""
    network = Network([Dense(2, 1)], loss=squared_error)
    with pytest.raises(NotFiniteError, match=r"epoch 1: a parameter is no number any more. Lower the learning rate"):
        network.fit(XOR * 1e14, ODD, optimizer=SGD(1e19), epochs=1, batch_size=4)


def test_learning_that_goes_astray_takes_nothing_away() -> None:
    network = Network([Dense(2, 1)], loss=squared_error)
    before = network.outputs(XOR)
    for scale, rate, epochs in ((1e14, 1e19, 1), (1e3, 1e3, 100)):
        with pytest.raises(NotFiniteError):
            network.fit(XOR * scale, ODD, optimizer=SGD(rate), epochs=epochs)
        assert np.array_equal(network.outputs(XOR), before)
    kept: list[float] = []

    class Astray(SGD):
        def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
            super().step(parameters, gradients)
            kept.append(network.mean_loss(XOR, ODD))
            if len(kept) == 3:
                parameters["0.weight"][...] = np.nan

    with pytest.raises(NotFiniteError):
        network.fit(XOR, ODD, optimizer=Astray(0.1), epochs=9, validation=(XOR, ODD))
    assert network.mean_loss(XOR, ODD) == pytest.approx(kept[1])


def test_an_interrupted_fit_leaves_the_best_epoch() -> None:
    x, y = two_moons(40)
    losses: list[float] = []

    class Interrupted(Adam):
        def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
            super().step(parameters, gradients)
            losses.append(network.mean_loss(x, y))
            if len(losses) == 4:
                raise KeyboardInterrupt

    network = Network([Dense(2, 8), Tanh(), Dense(8, 2)])
    with pytest.raises(KeyboardInterrupt):
        network.fit(x, y, optimizer=Interrupted(0.01), epochs=9, batch_size=40, validation=(x, y))
    assert network.mean_loss(x, y) == pytest.approx(losses[2])
    assert losses[3] < losses[2]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_all_that_is_computed_is_of_one_type(kind: type) -> None:
    seen = []

    class Watching(Tanh):
        def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
            seen.append(x.dtype)
            return super().forward(x, random)

        def backward(self, gradient: Array) -> Array:
            seen.append(gradient.dtype)
            return super().backward(gradient)

    network = Network([Dense(2, 2), Watching(), Dense(2, 1)], loss=squared_error, dtype=kind)
    for x, y in ((XOR.astype(int), ODD.astype(np.float64)), (XOR > 0, ODD), (XOR.astype(np.float64), ODD)):
        network.fit(x, y, optimizer=Adam(), epochs=1)
        network.outputs(x)
        network.mean_loss(x, y)
    assert set(seen) == {np.dtype(kind)}


def test_a_gradient_that_is_wrong_is_found() -> None:
    class Wrong(Tanh):
        def backward(self, gradient: Array) -> Array:
            return super().backward(gradient) * 1.001

    x, y = two_moons(5)
    layers: list[Layer] = [Dense(2, 3), Wrong(), Dense(3, 2)]
    assert gradient_check(Network(layers, dtype=np.float64), x, y) > 1e-5
    layers[1] = Tanh()
    network = Network(layers, dtype=np.float64)
    before = {name: value.copy() for name, value in network.parameters.items()}
    assert gradient_check(network, x, y) < 1e-8
    assert all(np.array_equal(value, before[name]) for name, value in network.parameters.items())
    with pytest.raises(InputError, match="network: is of float32"):
        gradient_check(Network(layers), x, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs: is 0."),
        ({"batch_size": 0}, "batch_size: is 0."),
        ({"patience": 2}, "patience: nothing was given to validate on."),
        ({"validation": (XOR[:0], ODD[:0])}, "validation: has 0 and 0 examples and targets."),
        ({"validation": (XOR, ODD[:3])}, "validation: has 4 and 3 examples and targets."),
    ],
)
def test_a_fit_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    x, y = two_moons(10)
    network = Network([Dense(2, 2)])
    with pytest.raises(InputError) as error:
        network.fit(x, y, **{"optimizer": Adam(), "epochs": 1, **arguments})
    assert error.value.message.startswith(message)
    with pytest.raises(InputError, match="seed: 'one' is not a whole number"):
        Network([], seed="one")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dtype: is int64"):
        Network([], dtype=np.int64)
    with pytest.raises(InputError, match="y: there are 10 examples and 9 targets"):
        network.fit(x, y[1:], optimizer=Adam(), epochs=1)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_classifier_parts_what_no_line_parts(activation: Any, optimizer: Any) -> None:
    x, y = two_moons(400)
    rate = 0.02 if optimizer == "adam" else 0.1
    model = Classifier(hidden=(16,), activation=activation, optimizer=optimizer, learning_rate=rate, epochs=60, seed=1)
    assert model.fit(x, y + 5).score(*(two_moons(400, 1)[0], two_moons(400, 1)[1] + 5)) > 0.95
    assert model.classes_.tolist() == [5, 6]
    assert np.allclose(model.predict_proba(x).sum(axis=1), 1)
    assert np.array_equal(model.predict(x), model.classes_[model.predict_proba(x).argmax(axis=1)])
    assert model.transform(x).shape == (400, 16)
    assert Classifier(hidden=(), epochs=60, learning_rate=0.02).fit(x, y).score(x, y) < 0.95


def test_logistic_regression_agrees_with_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 4))
    y = (x @ random.standard_normal((4, 3)) + random.gumbel(size=(300, 3))).argmax(axis=1)
    theirs = linear_model.LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(x, y)
    model = Classifier(hidden=(), learning_rate=0.1, batch_size=300, epochs=600).fit(x, y)
    assert np.abs(model.predict_proba(x) - theirs.predict_proba(x)).max() < 0.01


def test_parts_of_the_data_one_after_another() -> None:
    x, y = two_moons(300)
    model = Classifier(hidden=(16,), learning_rate=0.02, seed=2)
    model.partial_fit(x[:10], np.zeros(10), classes=[0, 1])
    for _ in range(40):
        for start in range(0, 300, 100):
            model.partial_fit(x[start : start + 100], y[start : start + 100])
    assert model.score(x, y) > 0.97
    with pytest.raises(InputError) as error:
        model.partial_fit(x[:2], [0, 2])
    assert error.value.message == "y[1]: is 2, none of the classes. Those are 0, 1."
    with pytest.raises(InputError, match="classes: are others than in the first call"):
        model.partial_fit(x, y, classes=[0, 1, 2])


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        ([3, 3], None, "y: holds a single class. Give two or more."),
        ([3, 3], [3], "classes: holds a single class. Give two or more."),
        ([3, 4], [3, 5], "y[1]: is 4, none of the classes. Those are 3, 5."),
    ],
)
def test_a_first_part_that_is_wrong_leaves_nothing(y: list[int], classes: list[int] | None, message: str) -> None:
    model = Classifier(hidden=())
    with pytest.raises(InputError) as error:
        model.partial_fit([[0.0], [1.0]], y, classes=classes)
    assert error.value.message == message
    assert not model.fitted


def test_a_fit_that_cannot_be_leaves_what_was_learned() -> None:
    x, y = two_moons(20)
    model = Classifier(hidden=(3,), epochs=1, patience=1, validation=0.9).fit(x, y)
    before = model.predict_proba(x)
    for rows, labels in ((x, y * 0), (x[:2, :1], [4, 5])):
        with pytest.raises(InputError):
            model.fit(rows, labels)
        assert np.array_equal(model.predict_proba(x), before)


def test_labels_may_be_truths() -> None:
    x, y = two_moons(20)
    model = Classifier(hidden=(), epochs=1)
    assert np.array_equal(model.fit(x, y == 1).predict_proba(x), model.fit(x, y).predict_proba(x))


def test_a_saved_classifier_is_the_same(tmp_path: Path) -> None:
    x, y = two_moons(100)
    model = Classifier(hidden=(8, 4), dropout=0.1, epochs=3, patience=2, seed=5).fit(x, y)
    model.save(tmp_path / "moons")
    loaded = Classifier.load(tmp_path / "moons")
    assert loaded.settings() == model.settings()
    assert np.array_equal(loaded.predict_proba(x), model.predict_proba(x))
    other = Classifier(hidden=(8, 5), epochs=1).fit(x, y)
    other.save(tmp_path / "other")
    (tmp_path / "other" / "estimator.json").replace(tmp_path / "moons" / "estimator.json")
    with pytest.raises(DamagedError, match="has other arrays"):
        Classifier.load(tmp_path / "moons")


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("settings", "hidden", [10**6, 10**6], "the settings ask for 1000006000002"),
        ("settings", "hidden", [10**15], "the settings ask for"),
        ("learned", "0.bias", [0, 0], "the arrays hold"),
        ("learned", "classes_", [1, 0], "classes_: are not in ascending order"),
        ("learned", "classes_", [[0], [1]], "classes_: has the shape (2, 1)"),
    ],
)
def test_a_file_cannot_ask_for_more_than_it_holds(
    part: str, name: str, value: Any, message: str, tmp_path: Path
) -> None:
    Classifier(hidden=(3,), epochs=1).fit(*two_moons(20)).save(tmp_path / "moons")
    path, arrays = tmp_path / "moons" / "estimator.json", load_file(tmp_path / "moons" / "parameters.safetensors")
    description = json.loads(path.read_text(encoding="utf-8"))
    description[part][name] = value
    description["shapes"].pop(name, None)
    arrays.pop(name, None)
    path.write_text(json.dumps(description), encoding="utf-8")
    save_file(arrays, tmp_path / "moons" / "parameters.safetensors")
    with pytest.raises(DamagedError, match=re.escape(message)):
        Classifier.load(tmp_path / "moons")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 5}, "hidden: is no list of widths. Write (64,) for one layer of 64 units."),
        ({"hidden": (0,)}, "hidden: is 0. It must be at least 1."),
        ({"activation": "swish"}, "activation: is 'swish'. Choose one of: tanh, relu, sigmoid."),
        ({"optimizer": "lion"}, "optimizer: is 'lion'. Choose one of: adam, sgd."),
        ({"dropout": 1}, "dropout: is 1. It must be less than 1."),
        ({"learning_rate": 0}, "learning_rate: is 0. It must be more than 0."),
        ({"patience": 0}, "patience: is 0. It must be at least 1."),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number."),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Classifier(**settings)
    assert error.value.message == message


def test_data_that_is_wrong() -> None:
    x, y = two_moons(10)
    model = Classifier(epochs=1).fit(x, y)
    holes = x.copy()
    holes[3, 1] = np.nan
    for call, message in [
        (lambda: model.fit(x[:, 0], y), "x: has the shape (10,), not (examples, features)."),
        (lambda: model.fit(holes, y), "x[3, 1]: is not a number."),
        (lambda: model.fit(x * 1e30, y), "x[0, 0]: is "),
        (lambda: model.predict(x * 1e30), "x[0, 0]: is "),
        (lambda: model.fit(x, y[:9]), "y: has the shape (9,), not (10,)."),
        (lambda: model.fit(x, y - 1), "y["),
        (lambda: model.fit(x, y * 0), "y: holds a single class."),
        (lambda: model.predict(x[:, :1]), "x: has the shape (10, 1), not (examples, 2)."),
        (lambda: model.score(x, y + 1), "y["),
        (lambda: Classifier(patience=1, validation=0.99).fit(x[:2], [0, 1]), "validation: leaves nothing to train on."),
        (lambda: Classifier().predict(x), "this Classifier has learned nothing yet."),
    ]:
        with pytest.raises(InputError) as error:
            call()
        assert error.value.message.startswith(message)


def test_the_classifier_is_the_network_it_is_made_of() -> None:
    x, y = two_moons(50)
    model = Classifier(hidden=(6,), activation="tanh", epochs=2, seed=9).fit(x, y)
    network = Network([Dense(2, 6), Tanh(), Dense(6, 2)], seed=9)
    network.fit(x, y, optimizer=Adam(1e-3), epochs=2)
    assert np.array_equal(network.outputs(x), model.decision_function(x))
    assert network.mean_loss(x, y) == pytest.approx(softmax_cross_entropy(model.decision_function(x), y)[0], abs=1e-6)


def test_a_classifier_begins_with_the_layers_it_is_given() -> None:
    x, y = np.eye(3), [0, 1, 1]
    first = (np.full((3, 2), 0.25), [0.5, -0.5])
    model = Classifier(hidden=(2,), epochs=1, learning_rate=1e-12).fit(x, y, beginning=[first])
    np.testing.assert_allclose(model.network_.parameters["0.weight"], first[0], atol=1e-6)
    np.testing.assert_allclose(model.network_.parameters["0.bias"], first[1], atol=1e-6)


@pytest.mark.parametrize(
    ("beginning", "message"),
    [
        ([], "beginning: holds 0 layers, and there are 1 hidden ones"),
        ([(np.ones((2, 2)), [0, 0])], r"beginning\[0\]\[0\]: has the shape \(2, 2\), not \(3, 2\)"),
        ([(np.ones((3, 2)), [0])], r"beginning\[0\]\[1\]: has the shape \(1,\), not \(2,\)"),
    ],
)
def test_layers_of_other_shapes_are_refused(beginning: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Classifier(hidden=(2,)).fit(np.eye(3), [0, 1, 1], beginning=beginning)
