"""The deep belief network: restricted Boltzmann machines, each on top of the one before, then a classifier of them all.

    rhapsode foundations dbn

Layers learn one after another, without labels: the first learns the examples, the next what the hidden units of the
first make of them, and so on. What was learned can be sampled from: the top two layers are a restricted Boltzmann
machine, and from it the way leads down. Or it is where a network with labels begins: each layer's weights are copied
into one of sigmoid units, and errors are propagated backwards from there. Source: Hinton, Osindero, Teh, "A fast
learning algorithm for deep belief nets", Neural Computation 18 (2006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import InputError, nearest, shown
from rhapsode.foundations.binary_units import draw
from rhapsode.foundations.estimator import Array, Estimator, check_number
from rhapsode.foundations.network import Classifier
from rhapsode.foundations.rbm import RestrictedBoltzmannMachine


class DeepBeliefNetwork(Estimator):
    """A stack of restricted Boltzmann machines, and the classifier that begins with their weights.

    Args:
        hidden: the width of each hidden layer, from the examples up.
        visible: "binary" or "gaussian", the examples' units (`RestrictedBoltzmannMachine`).
        pre_training: settings of every machine of the stack: `learning_rate`, `epochs`, `batch_size`, `steps`,
            `persistent`.
        fine_tuning: settings of the classifier (`Classifier`): `learning_rate` (0.01 if not given, for sigmoid units
            pass on a quarter of an error at most), `epochs`, `dropout`, `patience`, ...
        seed: of all random numbers.

    Attributes:
        rbms_: the machines, from the examples up.
        classifier_: the `Classifier` of sigmoid units, after fine-tuning.
    """

    learned: ClassVar[tuple[str, ...]] = ("rbms_",)

    rbms_: list[RestrictedBoltzmannMachine]
    classifier_: Classifier

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (100, 100),
        visible: Literal["binary", "gaussian"] = "binary",
        pre_training: Mapping[str, Any] | None = None,
        fine_tuning: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if not isinstance(hidden, (list, tuple)) or not hidden:
            raise InputError("is no list of widths", where="hidden", todo="Write (64,) for one layer of 64 units.")
        self.hidden = tuple(check_number("hidden", width, least=1, whole=True) for width in hidden)
        self.visible = visible
        ours = {"hidden", "visible", "activation", "seed"}
        self.pre_training = _settings("pre_training", pre_training, RestrictedBoltzmannMachine, ours)
        self.fine_tuning = {"learning_rate": 0.01} | _settings("fine_tuning", fine_tuning, Classifier, ours)
        self._machine(0)  # it knows what its settings may be

    def fit(self, x: npt.ArrayLike, y: npt.ArrayLike | None = None) -> Self:
        """`pre_train` from the beginning; where there are labels, `fine_tune` then.

        Args:
            x: (examples, visible).
            y: (examples,), whole numbers, or None.

        Raises:
            InputError: an argument is not that; the message names it.
        """
        self.pre_train(x)
        return self if y is None else self.fine_tune(x, y)

    def pre_train(self, x: npt.ArrayLike) -> Self:
        """Learn layer after layer from `x` (examples, visible), which need no labels; each layer from the beginning.

        Raises:
            InputError: `x` holds what the visible units cannot be.
        """
        rbms, examples = [], x
        for layer in range(len(self.hidden)):
            rbms.append(self._machine(layer).fit(examples))
            examples = rbms[-1].transform(examples)
        self.rbms_ = rbms
        self.__dict__.pop("classifier_", None)
        return self

    def fine_tune(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Train a classifier that begins with the weights of the stack, which keeps its own.

        Args:
            x: (examples, visible); fewer than there were for `pre_train` will do.
            y: (examples,), whole numbers.

        Raises:
            InputError: an argument is not that, or the stack has learned nothing yet.
        """
        self.check_fitted()
        examples = self.rbms_[0].check_examples(x)
        # a hidden unit takes v / s times W plus c
        layers = [(rbm.weights_ / rbm.variances_[:, None], rbm.hidden_biases_) for rbm in self.rbms_]
        self.classifier_ = self._classifier().fit(examples, y, beginning=layers)
        return self

    def transform(self, x: npt.ArrayLike) -> Array:
        """(examples, width of the top layer): the chances of hidden units, layer after layer, before fine-tuning."""
        self.check_fitted()
        h: Array = self.rbms_[0].transform(x)
        for rbm in self.rbms_[1:]:
            h = rbm.transform(h)
        return h

    def inverse_transform(self, h: npt.ArrayLike) -> Array:
        """(examples, visible): means of the layers below, down from those of the top layer (examples, width)."""
        self.check_fitted()
        down: Array = np.asarray(h)
        for rbm in reversed(self.rbms_):
            down = rbm.inverse_transform(down)
        return down

    def reconstruct(self, x: npt.ArrayLike) -> Array:
        """(examples, visible): `inverse_transform` of `transform`: what of the examples the top layer still knows."""
        return self.inverse_transform(self.transform(x))

    def sample(self, count: int, *, steps: int = 1000, seed: int | None = None) -> Array:
        """Dreams: Gibbs sampling in the top two layers, then once down.

        Args:
            count: of chains, each of which gives one.
            steps: of each chain, from a random start.
            seed: of this sampling, if not the network's.

        Returns:
            (count, visible): the means of the visible units.
        """
        self.check_fitted()
        states, means = self.rbms_[-1].sample(count, steps=steps, seed=self.seed if seed is None else seed)
        random = self.random("dbn down", seed=seed)
        for rbm in self.rbms_[-2::-1]:
            means = rbm.inverse_transform(states)
            states = draw(means, random)
        return means

    def predict(self, x: npt.ArrayLike) -> Array:
        """(examples,): the most probable label of each row of `x` (examples, visible)."""
        return self._tuned().predict(x)

    def predict_proba(self, x: npt.ArrayLike) -> Array:
        """(examples, classes): the probability of each class, in the order of `classifier_.classes_`."""
        return self._tuned().predict_proba(x)

    def score(self, x: npt.ArrayLike, y: npt.ArrayLike) -> float:
        """The share of `x` (examples, visible) whose predicted label is that of `y` (examples,)."""
        return self._tuned().score(x, y)

    def _machine(self, layer: int) -> RestrictedBoltzmannMachine:
        return RestrictedBoltzmannMachine(
            hidden=self.hidden[layer],
            visible=self.visible if layer == 0 else "binary",
            seed=int(self.random("dbn layer", layer).integers(2**63)),
            **self.pre_training,
        )

    def _classifier(self) -> Classifier:
        return Classifier(hidden=self.hidden, activation="sigmoid", seed=self.seed, **self.fine_tuning)

    def _tuned(self) -> Classifier:
        self.check_fitted()
        if not hasattr(self, "classifier_"):
            raise InputError("this DeepBeliefNetwork has seen no labels yet", todo="Call fine_tune first.")
        return self.classifier_

    def _state(self) -> dict[str, Any]:
        parts: dict[str, Estimator] = {f"rbm{layer}": rbm for layer, rbm in enumerate(self.rbms_)}
        if hasattr(self, "classifier_"):
            parts["classifier"] = self.classifier_
        return {f"{part}.{name}": value for part, of in parts.items() for name, value in of._state().items()}

    def _restore(self, state: Mapping[str, Any]) -> None:
        parts: dict[str, dict[str, Any]] = {f"rbm{layer}": {} for layer in range(len(self.hidden))}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = value
        classifier = parts.pop("classifier", None)
        if len(parts) != len(self.hidden):
            raise InputError(f"holds {len(parts)} machines, and the settings say {len(self.hidden)}")
        self.rbms_ = [self._machine(layer) for layer in range(len(self.hidden))]
        for values, rbm in zip(parts.values(), self.rbms_, strict=True):
            rbm._restore(values)
        if classifier is not None:
            self.classifier_ = self._classifier()
            self.classifier_._restore(classifier)


def _settings(where: str, given: Mapping[str, Any] | None, of: type[Estimator], ours: set[str]) -> dict[str, Any]:
    """Settings for estimators of the kind `of`, except those that are `ours` to choose.

    Raises:
        InputError: there is no such setting, or it cannot be that.
    """
    if given is not None and not isinstance(given, Mapping):
        raise InputError("are no settings by name", where=where, todo='Write {"epochs": 20}.')
    chosen, names = dict(given or {}), of().settings().keys() - ours
    for name in chosen.keys() - names:
        raise InputError(f"{shown(name)} is no setting of it", where=where, todo=nearest(str(name), names))
    of(**chosen)
    return chosen
