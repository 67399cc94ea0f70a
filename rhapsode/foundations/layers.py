"""Layers of a network, each with its forward pass and the backward pass derived by hand, in NumPy.

    dense = Dense(3, 2).initialize(generator(0, "weights"))
    y = dense.forward(x)                     # (examples, 2) from (examples, 3)
    x_gradient = dense.backward(y_gradient)  # and the gradients of its parameters in dense.gradients

`forward` keeps what `backward` needs; `backward` is given the gradient of a loss by the layer's output and returns
that by its input (the chain rule: Rumelhart, Hinton and Williams 1986). Axes that are not named are examples: every
layer but `Attention` and `Flatten` takes any number of them in front. `network.py` puts layers together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import InputError
from rhapsode.foundations.estimator import Array, check_number

EPSILON = 1e-5
"""Added to the variance by `LayerNorm`, as by torch's."""

_erf = np.frompyfunc(math.erf, 1, 1)  # NumPy has none


class Layer(ABC):
    """What every layer has: parameters, the gradients of the last backward pass, and the two passes.

    `parameters` and `gradients` hold arrays of the same shapes under the same names. Who changes parameters does it
    in place: `layer.parameters["weight"][...] = new`.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}

    def initialize(self, random: np.random.Generator, dtype: npt.DTypeLike = np.float32) -> Self:
        """Draw the parameters anew. A layer without parameters has nothing to draw."""
        return self

    @abstractmethod
    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        """The output for `x`; with `random`, as in training, where dropout draws from it."""

    @abstractmethod
    def backward(self, gradient: Array) -> Array:
        """The gradient by the input, of the loss whose gradient by the output of the last `forward` this is."""


class Dense(Layer):
    """y = x W + b.

    Parameters: `weight` (inputs, outputs), and `bias` (outputs,) unless there is none. The weights are drawn evenly
    between -l and l. With `gain` 1, l = sqrt(6 / (inputs + outputs)) keeps the size of signals and of gradients on
    their way through tanh (Glorot and Bengio 2010); ReLU, which lets half of them through, wants sqrt(2) (He et al.
    2015).

    Args:
        gain: the weights are this many times as large.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.inputs = check_number("inputs", inputs, least=1, whole=True)
        self.outputs = check_number("outputs", outputs, least=1, whole=True)
        self.bias, self.gain = bias, check_number("gain", gain, above=0)

    def initialize(self, random: np.random.Generator, dtype: npt.DTypeLike = np.float32) -> Self:
        limit = self.gain * math.sqrt(6 / (self.inputs + self.outputs))
        self.parameters["weight"] = random.uniform(-limit, limit, (self.inputs, self.outputs)).astype(dtype)
        if self.bias:
            self.parameters["bias"] = np.zeros(self.outputs, dtype)
        return self

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        """(..., inputs) -> (..., outputs)."""
        _check_width("Dense", x, self.inputs)
        self._x = x
        y: Array = x @ self.parameters["weight"]
        return y + self.parameters["bias"] if self.bias else y

    def backward(self, gradient: Array) -> Array:
        """(..., outputs) -> (..., inputs): dL/dW = x' g, dL/db = sum of g, dL/dx = g W'."""
        rows = gradient.reshape(-1, self.outputs)
        self.gradients["weight"] = self._x.reshape(-1, self.inputs).T @ rows
        if self.bias:
            self.gradients["bias"] = rows.sum(axis=0)
        x_gradient: Array = gradient @ self.parameters["weight"].T
        return x_gradient


class Tanh(Layer):
    """y = tanh(x), dL/dx = g (1 - y^2)."""

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        self._y: Array = np.tanh(x)
        return self._y

    def backward(self, gradient: Array) -> Array:
        result: Array = gradient * (1 - self._y * self._y)
        return result


class Sigmoid(Layer):
    """y = 1 / (1 + exp(-x)), dL/dx = g y (1 - y): the mean of a binary unit of a Boltzmann machine."""

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        self._y = sigmoid(x)
        return self._y

    def backward(self, gradient: Array) -> Array:
        result: Array = gradient * self._y * (1 - self._y)
        return result


class ReLU(Layer):
    """y = max(0, x), dL/dx = g where x > 0."""

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        self._positive = x > 0
        return x * self._positive

    def backward(self, gradient: Array) -> Array:
        return gradient * self._positive


class GELU(Layer):
    """y = x P(x) with the normal distribution P(x) = (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016), exactly.

    dL/dx = g (P(x) + x p(x)) with its density p(x) = exp(-x^2 / 2) / sqrt(2 pi).
    """

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        self._x = x
        self._share: Array = (0.5 + 0.5 * np.asarray(_erf(x * math.sqrt(0.5)), np.float64)).astype(x.dtype)
        return x * self._share

    def backward(self, gradient: Array) -> Array:
        density = np.exp(-0.5 * self._x * self._x) * (1 / math.sqrt(2 * math.pi))
        return gradient * (self._share + self._x * density)


class Dropout(Layer):
    """In training, set each value to 0 with probability `rate` and make the others 1 / (1 - rate) times as large.

    So the expected value stays what it is without (Srivastava et al. 2014).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_number("rate", rate, least=0, below=1)

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        self._scale: Array | None = None
        if random is None or self.rate == 0:
            return x
        kept = random.random(x.shape, dtype=np.float32) >= self.rate
        self._scale = kept.astype(x.dtype) / (1 - self.rate)
        return x * self._scale

    def backward(self, gradient: Array) -> Array:
        return gradient if self._scale is None else gradient * self._scale


class LayerNorm(Layer):
    """Each example to mean 0 and variance 1 over its last axis, then times a learned gain plus a learned bias.

    y = w n + b with n = (x - mean) / sqrt(variance + 1e-5) (Ba, Kiros and Hinton 2016). Parameters: `weight` and
    `bias`, both (width,). With h = g w: dL/dx = (h - mean(h) - n mean(h n)) / sqrt(variance + 1e-5).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = check_number("width", width, least=1, whole=True)

    def initialize(self, random: np.random.Generator, dtype: npt.DTypeLike = np.float32) -> Self:
        self.parameters["weight"], self.parameters["bias"] = np.ones(self.width, dtype), np.zeros(self.width, dtype)
        return self

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        """(..., width) -> (..., width)."""
        _check_width("LayerNorm", x, self.width)
        centred = x - x.mean(axis=-1, keepdims=True)
        self._inverse = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + EPSILON)
        self._normal: Array = centred * self._inverse
        result: Array = self._normal * self.parameters["weight"] + self.parameters["bias"]
        return result

    def backward(self, gradient: Array) -> Array:
        normal = self._normal
        self.gradients["weight"] = (gradient * normal).reshape(-1, self.width).sum(axis=0)
        self.gradients["bias"] = gradient.reshape(-1, self.width).sum(axis=0)
        h = gradient * self.parameters["weight"]
        common = h.mean(axis=-1, keepdims=True) + normal * (h * normal).mean(axis=-1, keepdims=True)
        result: Array = (h - common) * self._inverse
        return result


class Embedding(Layer):
    """A learned vector for each of a vocabulary: row `id` of `weight` (vocabulary, dimension)."""

    def __init__(self, vocabulary: int, dimension: int) -> None:
        super().__init__()
        self.vocabulary = check_number("vocabulary", vocabulary, least=1, whole=True)
        self.dimension = check_number("dimension", dimension, least=1, whole=True)

    def initialize(self, random: np.random.Generator, dtype: npt.DTypeLike = np.float32) -> Self:
        weight = random.normal(size=(self.vocabulary, self.dimension)) / math.sqrt(self.dimension)
        self.parameters["weight"] = weight.astype(dtype)
        return self

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        """Ids (...) -> (..., dimension).

        Raises:
            InputError: an id is not in the vocabulary.
        """
        if x.dtype.kind not in "iu" or (x.size and (x.min() < 0 or x.max() >= self.vocabulary)):
            raise InputError("an id is none of the vocabulary", where="x", todo=f"Give 0 to {self.vocabulary - 1}.")
        self._ids = x
        return self.parameters["weight"][x]

    def backward(self, gradient: Array) -> Array:
        """The gradients of an id's places add up in its row. Ids have no gradient: zeros are returned."""
        self.gradients["weight"] = np.zeros_like(self.parameters["weight"])
        np.add.at(self.gradients["weight"], self._ids, gradient)
        return np.zeros(self._ids.shape, gradient.dtype)


class Flatten(Layer):
    """(examples, ...) -> (examples, all the rest): the vectors of a window, side by side."""

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        self._shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, gradient: Array) -> Array:
        return gradient.reshape(self._shape)


class Attention(Layer):
    """Multi-head attention (Vaswani et al. 2017): each place takes from all, or from those up to it if `causal`.

    Of each head, out of its part of q = x Wq + bq, k and v: softmax(q k' / sqrt(head_dim)) v; the heads side by side,
    times `output.weight` plus `output.bias`. Parameters: NAME`.weight` (width, width) and NAME`.bias` (width,), with
    NAME `query`, `key`, `value` and `output`. The weights of the last forward pass stay in `weights`
    (examples, heads, to, from).
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.width = check_number("width", width, least=1, whole=True)
        self.heads, self.causal = check_number("heads", heads, least=1, whole=True), causal
        if self.width % self.heads:
            raise InputError(f"is {width}, no multiple of heads ({heads})", where="width", todo="Make it one.")
        self._dense = {name: Dense(width, width, bias=bias) for name in ("query", "key", "value", "output")}

    def initialize(self, random: np.random.Generator, dtype: npt.DTypeLike = np.float32) -> Self:
        for name, dense in self._dense.items():
            dense.initialize(random, dtype)
            self.parameters |= {f"{name}.{part}": array for part, array in dense.parameters.items()}
        return self

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        """(examples, time, width) -> (examples, time, width)."""
        if x.ndim != 3:
            raise InputError(f"has the shape {x.shape}, not (examples, time, {self.width})", where="x")
        self._q, self._k, self._v = (self._split(self._dense[name].forward(x)) for name in ("query", "key", "value"))
        mixed, self.weights = scaled_dot_product_attention(self._q, self._k, self._v, causal=self.causal)
        return self._dense["output"].forward(self._join(mixed))

    def backward(self, gradient: Array) -> Array:
        """With a = softmax(s): dL/dv = a' g, dL/da = g v', dL/ds = a (dL/da - sum of a dL/da); q and k share s."""
        g = self._split(self._dense["output"].backward(gradient))  # (examples, heads, time, head_dim)
        a_gradient = g @ self._v.swapaxes(-1, -2)  # (examples, heads, to, from)
        s = self.weights * (a_gradient - (a_gradient * self.weights).sum(axis=-1, keepdims=True))
        s /= math.sqrt(g.shape[-1])
        parts = {"query": s @ self._k, "key": s.swapaxes(-1, -2) @ self._q, "value": self.weights.swapaxes(-1, -2) @ g}
        x_gradient = sum(self._dense[name].backward(self._join(part)) for name, part in parts.items())
        for name, dense in self._dense.items():
            self.gradients |= {f"{name}.{part}": array for part, array in dense.gradients.items()}
        return np.asarray(x_gradient)

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)  # (examples, heads, time, head_dim)

    def _join(self, x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], self.width)


class Residual(Layer):
    """y = x + f(x), with f the layers one after another: gradients pass it undiminished (He et al. 2016).

    Parameters: those of layer N as `N.name`.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = list(layers)

    def initialize(self, random: np.random.Generator, dtype: npt.DTypeLike = np.float32) -> Self:
        for layer in self.layers:
            layer.initialize(random, dtype)
        self.parameters = named(self.layers, "parameters")
        return self

    def forward(self, x: Array, random: np.random.Generator | None = None) -> Array:
        y = x
        for layer in self.layers:
            y = layer.forward(y, random)
        if y.shape != x.shape:
            raise InputError(f"the layers of a residual block made {y.shape} of {x.shape}", where="layers")
        return x + y

    def backward(self, gradient: Array) -> Array:
        inner = gradient
        for layer in reversed(self.layers):
            inner = layer.backward(inner)
        self.gradients = named(self.layers, "gradients")
        return gradient + inner


def transformer_block(width: int, heads: int, hidden: int, *, causal: bool = True) -> list[Layer]:
    """A block of a transformer for (examples, time, width): x + attention(norm(x)), then x + feed-forward(norm(x))."""
    return [
        Residual([LayerNorm(width), Attention(width, heads, causal=causal)]),
        Residual([LayerNorm(width), Dense(width, hidden), GELU(), Dense(hidden, width)]),
    ]


def scaled_dot_product_attention(
    query: Array, key: Array, value: Array, *, causal: bool = False, scale: float | None = None
) -> tuple[Array, Array]:
    """softmax(q k' scale) v (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (..., to, head_dim).
        key: (..., from, head_dim).
        value: (..., from, value_dim).
        causal: place t takes from places up to t only.
        scale: 1 / sqrt(head_dim) unless given.

    Returns:
        What was taken (..., to, value_dim), and the weights (..., to, from), which sum to 1 over the last axis.
    """
    scores = query @ key.swapaxes(-1, -2) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if causal:
        later = np.triu(np.ones(scores.shape[-2:], dtype=bool), k=1)
        scores = np.where(later, -np.inf, scores)
    weights = softmax(scores)
    return weights @ value, weights


def softmax(scores: Array) -> Array:
    """exp(s) / sum of exp(s) over the last axis. Scores may be -inf, but not all of a row."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Array = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without an overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """The mean of -log softmax(logits)[label] in nats, and its gradient: (softmax(logits) - [label]) / count.

    Args:
        logits: (..., classes).
        labels: (...), whole numbers below classes.

    Raises:
        InputError: a label is none of the classes, or there are not as many labels as rows.
    """
    classes = logits.shape[-1]
    if labels.shape != logits.shape[:-1] or labels.dtype.kind not in "iu":
        raise InputError(f"has the shape {labels.shape} of {labels.dtype} for logits {logits.shape}", where="labels")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError("holds a label that is none of the classes", where="labels", todo=f"Give 0 to {classes - 1}.")
    rows, flat = logits.reshape(-1, classes), labels.reshape(-1)
    shifted = rows - rows.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=-1, keepdims=True)
    picked = np.arange(len(flat)), flat
    loss = float((np.log(sums[:, 0]) - shifted[picked]).mean(dtype=np.float64))
    gradient = exponentials / (sums * len(flat))
    gradient[picked] -= 1 / len(flat)
    return loss, gradient.reshape(logits.shape)


def squared_error(outputs: Array, targets: Array) -> tuple[float, Array]:
    """The mean over examples of half the squared distance to the target, and its gradient (y - t) / examples.

    Args:
        outputs: (examples, ...).
        targets: of the same shape.

    Raises:
        InputError: the shapes differ.
    """
    if outputs.shape != targets.shape:
        raise InputError(f"has the shape {targets.shape}, not {outputs.shape}", where="targets")
    difference = outputs - targets
    loss = 0.5 * float((difference * difference).sum(dtype=np.float64)) / len(outputs)
    return loss, difference / len(outputs)


def named(layers: Sequence[Layer], what: str) -> dict[str, Array]:
    """The "parameters" or "gradients" of several layers: those of layer N as `N.name`."""
    return {f"{n}.{name}": array for n, layer in enumerate(layers) for name, array in getattr(layer, what).items()}


def _check_width(layer: str, x: Array, width: int) -> None:
    if not x.ndim or x.shape[-1] != width:
        raise InputError(f"{layer} has {width} inputs and was given the shape {x.shape}", where="x")
