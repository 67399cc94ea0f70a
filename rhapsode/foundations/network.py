"""Feed-forward networks: layers one after another, learning by propagating errors backwards; and a classifier of them.

network = Network([Dense(2, 8), Tanh(), Dense(8, 2)], seed=1)
network.fit(x, labels, optimizer=Adam(0.01), epochs=50)
network.forward(x)                                        # logits (examples, 2)

Classifier(hidden=(64,), seed=1).fit(x, labels).score(x, labels)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.base.random import generator
from rhapsode.foundations.estimator import Array, Bar, Estimator, check_array, check_choice, check_number
from rhapsode.foundations.layers import (
    Dense,
    Dropout,
    Embedding,
    Layer,
    ReLU,
    Sigmoid,
    Tanh,
    named,
    softmax,
    softmax_cross_entropy,
)

Loss = Callable[[Array, Array], tuple[float, Array]]
"""Outputs and targets to the loss and its gradient by the outputs: `softmax_cross_entropy`, `squared_error`."""

EVALUATED_AT_ONCE = 4096  # examples

ACTIVATIONS: dict[str, tuple[type[Layer], float]] = {
    "tanh": (Tanh, 1.0),
    "relu": (ReLU, math.sqrt(2)),
    "sigmoid": (Sigmoid, 4.0),  # its slope at 0 is a quarter of tanh's
}
"""By name: the layer, and the gain of the weights before it."""


class Optimizer(Protocol):
    """What changes parameters, in place, by their gradients."""

    def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        """One step; both mappings have the same names in every call."""
        ...


class SGD:
    """w <- w - learning_rate * v, with the velocity v <- momentum * v + gradient (Polyak 1964).

    Args:
        momentum: 0 is plain gradient descent.
        weight_decay: matrices lose this share of themselves times the learning rate at each step; biases do not.
    """

    def __init__(self, learning_rate: float, *, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.learning_rate = check_number("learning_rate", learning_rate, above=0)
        self.momentum = check_number("momentum", momentum, least=0, below=1)
        self.weight_decay = check_number("weight_decay", weight_decay, least=0)
        self._velocity: dict[str, Array] = {}

    def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        for name, parameter in parameters.items():
            _decay(parameter, self.learning_rate * self.weight_decay)
            change = gradients[name]
            if self.momentum:
                velocity = self._velocity.setdefault(name, np.zeros_like(parameter))
                velocity *= self.momentum
                velocity += change
                change = velocity
            np.subtract(parameter, self.learning_rate * change, out=parameter)


class Adam:
    """Steps of about the learning rate in every direction (Kingma and Ba 2015).

    m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, and w <- w - learning_rate m^ / (sqrt(v^) + epsilon)
    with m^ = m / (1 - beta1^t) and v^ = v / (1 - beta2^t), as m and v begin at 0. The decay is that of AdamW
    (Loshchilov and Hutter 2019).

    Args:
        weight_decay: as of `SGD`.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.learning_rate = check_number("learning_rate", learning_rate, above=0)
        self.beta1 = check_number("beta1", beta1, least=0, below=1)
        self.beta2 = check_number("beta2", beta2, least=0, below=1)
        self.epsilon = check_number("epsilon", epsilon, above=0)
        self.weight_decay = check_number("weight_decay", weight_decay, least=0)
        self._steps = 0
        self._moments: dict[str, tuple[Array, Array]] = {}

    def step(self, parameters: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        self._steps += 1
        first, second = 1 - self.beta1**self._steps, 1 - self.beta2**self._steps
        for name, parameter in parameters.items():
            gradient = gradients[name]
            if name not in self._moments:
                self._moments[name] = np.zeros_like(parameter), np.zeros_like(parameter)
            m, v = self._moments[name]
            m += (1 - self.beta1) * (gradient - m)
            v += (1 - self.beta2) * (gradient * gradient - v)
            _decay(parameter, self.learning_rate * self.weight_decay)
            change = (self.learning_rate / first) * m / (np.sqrt(v / second) + self.epsilon)
            np.subtract(parameter, change, out=parameter)


@dataclass
class History:
    """What happened in one `fit`."""

    loss: list[float] = field(default_factory=list)
    """The mean training loss of each epoch, as it was met (with dropout, before each step)."""
    validation_loss: list[float] = field(default_factory=list)
    """Of each epoch's end, where there is something to validate on."""
    best_epoch: int = 0
    """The epoch, counted from 1, whose parameters were kept."""


class Network:
    """Layers one after another, and a loss.

    Args:
        layers: each takes what the one before it gives.
        loss: of the outputs of the last and the targets.
        seed: of the initial parameters, the order of examples, and dropout.
        dtype: of the parameters and of all that is computed, float32 or float64.

    Raises:
        InputError: the seed is no whole number, or the dtype another one.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        loss: Loss = softmax_cross_entropy,
        seed: int = 0,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.layers, self.loss, self.dtype = list(layers), loss, np.dtype(dtype)
        self.seed: int = check_number("seed", seed, whole=True)
        if self.dtype not in (np.float32, np.float64):
            raise InputError(f"is {self.dtype}", where="dtype", todo="Choose float32 or float64.")
        self.epochs = 0
        for number, layer in enumerate(self.layers):
            layer.initialize(generator(self.seed, "parameters", number), self.dtype)

    @property
    def parameters(self) -> dict[str, Array]:
        """Of all layers, those of layer N as `N.name`: the arrays themselves, to be changed in place."""
        return named(self.layers, "parameters")

    @property
    def gradients(self) -> dict[str, Array]:
        """Those of the last backward pass, under the names of the parameters."""
        return named(self.layers, "gradients")

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        """The outputs of the last layer; with `random`, as in training (`Layer.forward`)."""
        for layer in self.layers:
            x = layer.forward(x, random)
        return x

    def backward(self, gradient: Array) -> Array:
        """From the gradient by the outputs to that by the inputs; those of the parameters are in `gradients` then."""
        for layer in reversed(self.layers):
            gradient = layer.backward(gradient)
        return gradient

    def loss_and_gradients(self, x: Array, y: Array, random: np.random.Generator | None = None) -> float:
        """The loss of some examples; the gradients of the parameters are in `gradients` then."""
        loss, gradient = self.loss(self.forward(x, random), y)
        self.backward(gradient)
        return loss

    def outputs(self, x: Array) -> Array:
        """`forward` a few thousand examples at a time."""
        parts = [self.forward(self._inputs(x[rows])) for rows in _slices(len(x), EVALUATED_AT_ONCE)]
        return np.concatenate(parts)

    def mean_loss(self, x: Array, y: Array) -> float:
        """The loss over all examples, without dropout."""
        sums = [
            self.loss(self.forward(self._inputs(x[rows])), self._targets(y[rows]))[0] * len(y[rows])
            for rows in _slices(len(x), EVALUATED_AT_ONCE)
        ]
        return sum(sums) / len(x)

    def fit(
        self,
        x: Array,
        y: Array,
        *,
        optimizer: Optimizer,
        epochs: int,
        batch_size: int = 32,
        validation: tuple[Array, Array] | None = None,
        patience: int | None = None,
    ) -> History:
        """Learn from mini-batches, each epoch in a new order. Called again, it goes on where it stopped.

        Interrupted, it leaves what it has learned so far, of the best epoch where there is something to validate on.

        Args:
            x: (examples, ...).
            y: (examples, ...), what the loss compares the outputs with.
            validation: examples to validate on after each epoch: the parameters of the best epoch are kept.
            patience: stop when that many epochs in a row were no better than the best before them.

        Raises:
            InputError: `x` and `y` differ in length, or there is `patience` and nothing to validate on.
            NotFiniteError: the loss or a parameter is no number any more: the learning rate is too large. The network
                is as it was after its best epoch then, or before.
        """
        epochs = check_number("epochs", epochs, least=1, whole=True)
        batch_size = check_number("batch_size", batch_size, least=1, whole=True)
        if not len(x) or len(x) != len(y):
            raise InputError(f"there are {len(x)} examples and {len(y)} targets", where="y", todo="Give one for each.")
        if patience is not None and validation is None:
            raise InputError("nothing was given to validate on", where="patience", todo="Give validation=(x, y).")
        if validation is not None and not 0 < len(validation[0]) == len(validation[1]):
            lengths = " and ".join(str(len(part)) for part in validation)
            raise InputError(f"has {lengths} examples and targets", where="validation", todo="Give one for each.")
        before = {name: parameter.copy() for name, parameter in self.parameters.items()}
        history, best, kept = History(), math.inf, {}
        with Bar("fitting", epochs * len(x), "examples") as bar, np.errstate(over="ignore", invalid="ignore"):
            try:
                for epoch in range(1, epochs + 1):
                    history.loss.append(self._epoch(x, y, optimizer, batch_size, bar))
                    if validation is None:
                        history.best_epoch = epoch
                        continue
                    history.validation_loss.append(self.mean_loss(*validation))
                    if history.validation_loss[-1] < best:
                        best, history.best_epoch = history.validation_loss[-1], epoch
                        kept = {name: parameter.copy() for name, parameter in self.parameters.items()}
                    elif patience is not None and epoch - history.best_epoch >= patience:
                        break
                if not all(np.isfinite(parameter).all() for parameter in self.parameters.values()):
                    what, where = "a parameter is no number any more", f"epoch {self.epochs}"
                    raise NotFiniteError(what, where=where, todo="Lower the learning rate.")
            except NotFiniteError:
                kept = kept or before
                raise
            finally:
                if kept:
                    self.set_parameters(kept)
        return history

    def set_parameters(self, values: Mapping[str, Array]) -> None:
        """Copy `values` into the parameters.

        Raises:
            InputError: the names or the shapes are not those of the parameters.
        """
        parameters = self.parameters
        if values.keys() != parameters.keys():
            raise InputError("are not those of this network", where="names of parameters")
        for name, parameter in parameters.items():
            if values[name].shape != parameter.shape:
                raise InputError(f"has the shape {values[name].shape}, not {parameter.shape}", where=name)
        for name, parameter in parameters.items():
            parameter[...] = values[name]

    def _epoch(self, x: Array, y: Array, optimizer: Optimizer, batch_size: int, bar: Bar) -> float:
        order = generator(self.seed, "order", self.epochs).permutation(len(x))
        random = generator(self.seed, "dropout", self.epochs)
        parameters, total = self.parameters, 0.0
        for batch, rows in enumerate(_slices(len(x), batch_size)):
            chosen = order[rows]
            loss = self.loss_and_gradients(self._inputs(x[chosen]), self._targets(y[chosen]), random)
            if not math.isfinite(loss):
                where = f"epoch {self.epochs + 1}, batch {batch + 1}"
                raise NotFiniteError("the loss is no number any more", where=where, todo="Lower the learning rate.")
            optimizer.step(parameters, self.gradients)
            total += loss * len(chosen)
            bar.advance(len(chosen), loss=f"{loss:.3f}")
        self.epochs += 1
        return total / len(x)

    def _inputs(self, x: Array) -> Array:
        ids = bool(self.layers) and isinstance(self.layers[0], Embedding)
        return x if ids else x.astype(self.dtype, copy=False)

    def _targets(self, y: Array) -> Array:
        return y.astype(self.dtype, copy=False) if y.dtype.kind == "f" else y


def gradient_check(network: Network, x: Array, y: Array, *, step: float = 1e-5, seed: int | None = None) -> float:
    """How far the gradients are from central differences: the largest gap, as a share of the larger of the two and 1.

    Every parameter is moved by `step` both ways; (loss after - loss before) / (2 step) is exact up to step^2 and to
    rounding, which float64 keeps near 1e-10.

    Args:
        network: of float64; it is as before when this ends.
        seed: of dropout, the same in every pass; without it there is none.

    Raises:
        InputError: the network is not of float64.
    """
    if network.dtype != np.float64:
        raise InputError(f"is of {network.dtype}", where="network", todo="Make it with dtype=np.float64.")

    def random() -> np.random.Generator | None:
        return None if seed is None else generator(seed, "gradient check")

    network.loss_and_gradients(x, y, random())
    worst, gradients = 0.0, {name: gradient.copy() for name, gradient in network.gradients.items()}
    for name, parameter in network.parameters.items():
        for place in np.ndindex(parameter.shape):
            value, losses = parameter[place], []
            for moved in (value + step, value - step):
                parameter[place] = moved
                losses.append(network.loss(network.forward(x, random()), y)[0])
            parameter[place] = value
            measured, derived = (losses[0] - losses[1]) / (2 * step), float(gradients[name][place])
            worst = max(worst, abs(measured - derived) / max(1.0, abs(measured), abs(derived)))
    return worst


class Classifier(Estimator):
    """A network of dense layers that tells classes apart.

    Args:
        hidden: the width of each hidden layer; () is logistic regression.
        activation: "relu", "tanh" or "sigmoid", after each hidden layer.
        dropout: the share of hidden units left out in training.
        optimizer: "adam" or "sgd".
        learning_rate: of the optimizer.
        momentum: of "sgd".
        weight_decay: of the optimizer.
        batch_size: examples in a step.
        epochs: times each example is seen, at most.
        patience: stop when so many epochs in a row were no better on the validation examples; None never stops.
        validation: the share of the examples to validate on, where there is `patience`; they are not trained on.
        seed: of all random numbers.

    Attributes:
        classes_: (classes,), the labels in ascending order.
        network_: the `Network`; its parameters are float32.
        history_: the `History` of the last `fit`.
    """

    learned = ("classes_", "network_")

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (100,),
        activation: Literal["relu", "tanh", "sigmoid"] = "relu",
        dropout: float = 0.0,
        optimizer: Literal["adam", "sgd"] = "adam",
        learning_rate: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        batch_size: int = 32,
        epochs: int = 100,
        patience: int | None = None,
        validation: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if not isinstance(hidden, (list, tuple)):
            raise InputError("is no list of widths", where="hidden", todo="Write (64,) for one layer of 64 units.")
        self.hidden = tuple(check_number("hidden", width, least=1, whole=True) for width in hidden)
        self.activation = check_choice("activation", activation, list(ACTIVATIONS))
        self.dropout = check_number("dropout", dropout, least=0, below=1)
        self.optimizer = check_choice("optimizer", optimizer, ("adam", "sgd"))
        self.learning_rate = check_number("learning_rate", learning_rate, above=0)
        self.momentum = check_number("momentum", momentum, least=0, below=1)
        self.weight_decay = check_number("weight_decay", weight_decay, least=0)
        self.batch_size = check_number("batch_size", batch_size, least=1, whole=True)
        self.epochs = check_number("epochs", epochs, least=1, whole=True)
        self.patience = patience if patience is None else check_number("patience", patience, least=1, whole=True)
        self.validation = check_number("validation", validation, above=0, below=1)

    def fit(
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        beginning: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]] | None = None,
    ) -> Self:
        """Learn from scratch.

        Args:
            x: (examples, features), finite numbers; of size about 1 they are learned best.
            y: (examples,), whole numbers, of two classes or more.
            beginning: of each hidden layer the weights (inputs, outputs) and biases (outputs,) to begin with, in place
                of random ones: those of restricted Boltzmann machines, for one (`rhapsode.foundations.dbn`).

        Raises:
            InputError: an argument is not that; the message names it.
        """
        examples, labels = self._examples(x, y)
        classes = _classes("y", labels)
        first_layers = self._beginning(examples.shape[1], beginning)
        targets, validation = _places(labels, classes), None
        if self.patience is not None:
            kept = max(1, round(self.validation * len(examples)))
            order = self.random("validation").permutation(len(examples))
            if kept == len(examples):
                raise InputError("leaves nothing to train on", where="validation", todo="Give more examples.")
            validation = examples[order[:kept]], targets[order[:kept]]
            examples, targets = examples[order[kept:]], targets[order[kept:]]
        self.classes_ = classes
        self._build(examples.shape[1])
        dense = (layer for layer in self.network_.layers if isinstance(layer, Dense))
        for layer, (weights, biases) in zip(dense, first_layers, strict=False):  # the last layer is drawn at random
            layer.parameters["weight"][...], layer.parameters["bias"][...] = weights, biases
        self.history_ = self._fit(examples, targets, self.epochs, validation)
        return self

    def partial_fit(self, x: npt.ArrayLike, y: npt.ArrayLike, classes: npt.ArrayLike | None = None) -> Self:
        """One more epoch over these examples.

        Args:
            x: (examples, features).
            y: (examples,).
            classes: all labels there will be, needed in the first call only; without it those of `y`.

        Raises:
            InputError: an argument is not that, there is a single class, a label is none of the classes, or those are
                others than in the first call; the message names it.
        """
        examples, labels = self._examples(x, y)
        if classes is None:
            known = self.classes_ if self.fitted else _classes("y", labels)
        else:
            known = _classes("classes", check_array("classes", classes, ("classes",), "whole"))
            if self.fitted and not np.array_equal(known, self.classes_):
                raise InputError("are others than in the first call", where="classes", todo="Leave them out.")
        targets = _places(labels, known)
        if self.fitted:
            examples = self._features(examples)
        else:
            self.classes_ = known
            self._build(examples.shape[1])
        self.history_ = self._fit(examples, targets, 1, None)
        return self

    def decision_function(self, x: npt.ArrayLike) -> Array:
        """The logits (examples, classes) of `x` (examples, features)."""
        self.check_fitted()
        return self.network_.outputs(self._features(x))

    def predict_proba(self, x: npt.ArrayLike) -> Array:
        """The probability of each class: (examples, classes), in the order of `classes_`."""
        return softmax(self.decision_function(x))

    def predict(self, x: npt.ArrayLike) -> Array:
        """The most probable label of each of `x` (examples, features): (examples,)."""
        self.check_fitted()
        result: Array = self.classes_[self.decision_function(x).argmax(axis=1)]
        return result

    def transform(self, x: npt.ArrayLike) -> Array:
        """What the last hidden layer makes of `x` (examples, features): (examples, width)."""
        self.check_fitted()
        features = self._features(x).astype(np.float32)
        for layer in self.network_.layers[:-1]:
            features = layer.forward(features)
        return features

    def score(self, x: npt.ArrayLike, y: npt.ArrayLike) -> float:
        """The share of `x` (examples, features) whose predicted label is that of `y` (examples,)."""
        self.check_fitted()
        examples, labels = self._examples(x, y)
        targets = _places(labels, self.classes_)
        return float((targets == self.decision_function(examples).argmax(axis=1)).mean())

    def _examples(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:
        examples = check_array("x", x, ("examples", "features"), "moderate")
        return examples, check_array("y", y, (len(examples),), "whole")

    def _beginning(
        self, inputs: int, given: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]] | None
    ) -> list[tuple[Array, Array]]:
        if given is None:
            return []
        if len(given) != len(self.hidden):
            told = f"holds {len(given)} layers, and there are {len(self.hidden)} hidden ones"
            raise InputError(told, where="beginning", todo="Give weights and biases of each.")
        return [
            (
                check_array(f"beginning[{number}][0]", weights, shape, "moderate"),
                check_array(f"beginning[{number}][1]", biases, shape[1:], "moderate"),
            )
            for number, ((weights, biases), shape) in enumerate(
                zip(given, pairwise((inputs, *self.hidden)), strict=True)
            )
        ]

    def _features(self, x: npt.ArrayLike) -> Array:
        return check_array("x", x, ("examples", self.network_.layers[0].parameters["weight"].shape[0]), "moderate")

    def _build(self, inputs: int) -> None:
        layers: list[Layer] = []
        activation, gain = ACTIVATIONS[self.activation]
        for width in self.hidden:
            layers += [Dense(inputs, width, gain=gain), activation()]
            if self.dropout:
                layers.append(Dropout(self.dropout))
            inputs = width
        layers.append(Dense(inputs, len(self.classes_)))
        self.network_ = Network(layers, seed=self.seed)
        self._optimizer: Optimizer = (
            Adam(self.learning_rate, weight_decay=self.weight_decay)
            if self.optimizer == "adam"
            else SGD(self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)
        )

    def _fit(self, x: Array, y: Array, epochs: int, validation: tuple[Array, Array] | None) -> History:
        return self.network_.fit(
            x,
            y,
            optimizer=self._optimizer,
            epochs=epochs,
            batch_size=self.batch_size,
            validation=validation,
            patience=self.patience if validation else None,
        )

    def _state(self) -> dict[str, Any]:
        return {"classes_": self.classes_, "epochs": self.network_.epochs, **self.network_.parameters}

    def _restore(self, state: Mapping[str, Any]) -> None:
        values = dict(state)
        classes = check_array("classes_", values.pop("classes_"), ("classes",), "whole")
        if not np.all(np.diff(classes) > 0):
            raise InputError("are not in ascending order", where="classes_")
        epochs = check_number("epochs", values.pop("epochs"), least=0, whole=True)
        first = check_array("0.weight", values.get("0.weight", ()), ("inputs", "outputs"))
        check_size(values, (first.shape[0], *self.hidden, len(classes)))
        self.classes_ = classes
        self._build(first.shape[0])
        self.network_.set_parameters(
            {name: check_array(name, value, np.shape(value)) for name, value in values.items()}
        )
        self.network_.epochs = epochs


def check_size(values: Mapping[str, npt.ArrayLike], widths: Sequence[int], more: int = 0) -> None:
    """Before dense layers between `widths` are made: settings of a file may ask for more than there is memory.

    Raises:
        InputError: `values` hold another count of numbers than such layers and `more`.
    """
    needed = more + sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))
    held = sum(np.size(value) for value in values.values())
    if held != needed:
        raise InputError(f"the arrays hold {held} numbers, and the settings ask for {needed}")


def _classes(name: str, labels: Array) -> Array:
    """The different ones of `labels`, in ascending order.

    Raises:
        InputError: all are alike.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise InputError("holds a single class", where=name, todo="Give two or more.")
    return classes


def _places(labels: Array, classes: Array) -> Array:
    """Where each label stands among the `classes`.

    Raises:
        InputError: one is none of them.
    """
    known = np.isin(labels, classes)
    if not known.all():
        place = int(np.flatnonzero(~known)[0])
        choices = ", ".join(str(label) for label in classes[:20])
        raise InputError(f"is {labels[place]}, none of the classes", where=f"y[{place}]", todo=f"Those are {choices}.")
    return np.searchsorted(classes, labels)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


def _decay(parameter: Array, share: float) -> None:
    if share and parameter.ndim > 1:
        parameter *= 1 - share
