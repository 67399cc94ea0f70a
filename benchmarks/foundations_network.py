"""What the networks of `rhapsode.foundations` compute, how well they learn and how fast, beside torch and scikit-learn.

python benchmarks/foundations_network.py

1. The largest gap of every layer's gradients to torch's autograd, and to central differences.
2. XOR from 100 seeds, beginning with small weights and with large ones.
3. Seconds for an epoch, beside the same network in torch: the two take turns.
4. The 1,797 digits of scikit-learn, beside its MLPClassifier: the same network, optimizer and split, five seeds.
5. The next word of the plays, beside counts, three seeds (minutes; left out with --quick).
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from rhapsode.base.machine import prepare, processor
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.layers import (
    GELU,
    Attention,
    Dense,
    Embedding,
    Flatten,
    Layer,
    LayerNorm,
    ReLU,
    Sigmoid,
    Tanh,
    squared_error,
    transformer_block,
)
from rhapsode.foundations.network import SGD, Adam, Classifier, Network, gradient_check
from rhapsode.foundations.next_word import CountedWords, NextWord, bundled_text, words_of

Parameters = dict[str, Tensor]


def attention(x: Tensor, p: Parameters, heads: int, causal: bool, prefix: str = "") -> Tensor:
    q, k, v = (
        F.linear(x, p[f"{prefix}{name}.weight"].mT, p[f"{prefix}{name}.bias"])
        .unflatten(-1, (heads, -1))
        .transpose(1, 2)
        for name in ("query", "key", "value")
    )
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
    return F.linear(mixed, p[f"{prefix}output.weight"].mT, p[f"{prefix}output.bias"])


def block(x: Tensor, p: Parameters) -> Tensor:
    width = x.shape[-1]
    x = x + attention(F.layer_norm(x, (width,), p["0.0.weight"], p["0.0.bias"]), p, 2, True, "0.1.")
    hidden = F.gelu(F.layer_norm(x, (width,), p["1.0.weight"], p["1.0.bias"]) @ p["1.1.weight"] + p["1.1.bias"])
    return x + hidden @ p["1.3.weight"] + p["1.3.bias"]


LAYERS: dict[str, tuple[list[Layer], Callable[[Tensor, Parameters], Tensor]]] = {
    "dense": ([Dense(16, 24)], lambda x, p: x @ p["0.weight"] + p["0.bias"]),
    "tanh": ([Tanh()], lambda x, _: torch.tanh(x)),
    "sigmoid": ([Sigmoid()], lambda x, _: torch.sigmoid(x)),
    "relu": ([ReLU()], lambda x, _: torch.relu(x)),
    "gelu": ([GELU()], lambda x, _: F.gelu(x)),
    "layer norm": ([LayerNorm(16)], lambda x, p: F.layer_norm(x, (16,), p["0.weight"], p["0.bias"])),
    "attention": (
        [Attention(16, 4)],
        lambda x, p: attention(x, {name[2:]: value for name, value in p.items()}, 4, False),
    ),
    "causal attention": (
        [Attention(16, 4, causal=True)],
        lambda x, p: attention(x, {name[2:]: value for name, value in p.items()}, 4, True),
    ),
    "transformer block": (transformer_block(16, 2, 32), block),
}


def gradients() -> None:
    print(f"\n{'gradients of':24}{'gap to autograd':>18}{'to differences':>18}")
    for name, (layers, reference) in LAYERS.items():
        network = Network(layers, loss=squared_error, dtype=np.float64)
        random = np.random.default_rng(0)
        for parameter in network.parameters.values():
            parameter[...] += 0.1 * random.standard_normal(parameter.shape)
        x = random.standard_normal((3, 7, 16))
        target = random.standard_normal(network.forward(x).shape)
        _, gradient = squared_error(network.forward(x), target)
        x_gradient = network.backward(gradient)
        p = {key: torch.tensor(value, requires_grad=True) for key, value in network.parameters.items()}
        their_x = torch.tensor(x, requires_grad=True)
        (0.5 * (reference(their_x, p) - torch.tensor(target)).square().sum() / len(x)).backward()
        pairs = [(x_gradient, their_x.grad), *((network.gradients[key], p[key].grad) for key in p)]
        gap = max(float(np.abs(ours - theirs.numpy()).max()) for ours, theirs in pairs)
        differences = (
            gradient_check(network, x, target)
            if network.parameters
            else gradient_check(Network([Dense(16, 16), *layers], loss=squared_error, dtype=np.float64), x, target)
        )
        print(f"{name:24}{gap:18.1e}{differences:18.1e}")


def xor(seeds: int = 100) -> None:
    x, y = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32), np.array([[0], [1], [1], [0]], np.float32)
    print("\nXOR with two hidden units and one output")
    for beginning, gain in {"small weights": 0.5, "four times as large": 2.0}.items():
        solved = 0
        for seed in range(seeds):
            network = Network([Dense(2, 2, gain=gain), Tanh(), Dense(2, 1, gain=gain)], loss=squared_error, seed=seed)
            network.fit(x, y, optimizer=SGD(0.2, momentum=0.9), epochs=600, batch_size=4)
            solved += bool((np.abs(network.forward(x) - y) < 0.25).all())
        print(f"{beginning:40}{solved} of {seeds} seeds")


def epochs(rounds: int) -> None:
    random = np.random.default_rng(0)
    cases: dict[str, tuple[list[Layer], nn.Module, Array, Array, int]] = {
        "64-100-10, batches of 32": (
            [Dense(64, 100), ReLU(), Dense(100, 10)],
            nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)),
            random.random((3200, 64), np.float32),
            random.integers(10, size=3200),
            32,
        ),
        "256-512-512-10, batches of 128": (
            [Dense(256, 512), ReLU(), Dense(512, 512), ReLU(), Dense(512, 10)],
            nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)),
            random.random((6400, 256), np.float32),
            random.integers(10, size=6400),
            128,
        ),
        "next word, 2000 words, batches of 256": (
            [Embedding(2000, 48), Flatten(), Dense(192, 128), Tanh(), Dense(128, 2000)],
            nn.Sequential(nn.Embedding(2000, 48), nn.Flatten(), nn.Linear(192, 128), nn.Tanh(), nn.Linear(128, 2000)),
            random.integers(2000, size=(12800, 4)),
            random.integers(2000, size=12800),
            256,
        ),
    }
    print(f"\n{'an epoch of':40}{'rhapsode':>11}{'torch':>9}{'ratio':>8}   medians of {rounds}, seconds")
    for name, (layers, module, x, y, batch) in cases.items():
        network, ours = Network(layers), Adam()
        theirs = torch.optim.Adam(module.parameters())
        their_x, their_y = torch.tensor(x), torch.tensor(y)

        def torch_epoch(
            module: nn.Module = module,
            optimizer: torch.optim.Optimizer = theirs,
            x: Tensor = their_x,
            y: Tensor = their_y,
            batch: int = batch,
        ) -> None:
            for rows in torch.randperm(len(x)).split(batch):
                optimizer.zero_grad()
                F.cross_entropy(module(x[rows]), y[rows]).backward()
                optimizer.step()

        seconds: tuple[list[float], list[float]] = ([], [])
        for turn in range(rounds + 1):
            start = time.perf_counter()
            network.fit(x, y, optimizer=ours, epochs=1, batch_size=batch)
            middle = time.perf_counter()
            torch_epoch()
            if turn:
                seconds[0].append(middle - start)
                seconds[1].append(time.perf_counter() - middle)
        mine, other = (statistics.median(each) for each in seconds)
        ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
        print(f"{name:40}{mine:11.3f}{other:9.3f}{ratio:8.2f}")


def digits() -> None:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    print(f"\n{'1,797 digits, half to learn from':40}{'right':>9}{'from':>9}{'to':>9}{'seconds':>10}")
    scores: dict[str, list[float]] = {"rhapsode Classifier": [], "scikit-learn MLPClassifier": []}
    seconds: dict[str, list[float]] = {name: [] for name in scores}
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(x))
        train, test = order[: len(x) // 2], order[len(x) // 2 :]
        models = {
            "rhapsode Classifier": Classifier(hidden=(64,), epochs=60, seed=seed),
            "scikit-learn MLPClassifier": MLPClassifier(
                (64,), alpha=0, batch_size=32, max_iter=60, n_iter_no_change=60, tol=0, random_state=seed
            ),
        }
        for name, model in models.items():
            start = time.perf_counter()
            model.fit(x[train], y[train])
            seconds[name].append(time.perf_counter() - start)
            scores[name].append(float(model.score(x[test], y[test])))
    for name, found in scores.items():
        right = f"{statistics.mean(found):9.2%}{min(found):9.2%}{max(found):9.2%}"
        print(f"{name:40}{right}{statistics.median(seconds[name]):10.2f}")


def next_word() -> None:
    text = bundled_text()
    cut, end = (text.index("\n\n", int(len(text) * share)) for share in (0.90, 0.95))
    parts = text[:cut], text[cut:end], text[end:]
    perplexities, taken = [], []
    for seed in range(3):
        start = time.perf_counter()
        model = NextWord(dimension=48, dropout=0.2, epochs=5, seed=seed).fit(parts[0])
        taken.append(time.perf_counter() - start)
        perplexities.append(model.perplexity(parts[2]))
    ids = [model.ids(words_of(part)) for part in parts]
    counts = CountedWords(ids[0], ids[1], len(model.words_)).perplexity(ids[2])
    words = len(ids[0]) * 5 / statistics.median(taken)
    found = ", ".join(f"{each:.1f}" for each in perplexities)
    print(f"\nPerplexity of the last twentieth of the plays, {len(model.words_):,} words")
    print(f"{'counts of one, two and three words':40}{counts:.1f}\n{'network, three seeds':40}{found}")
    print(f"{words:,.0f} words a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of NumPy and of torch")
    parser.add_argument("--quick", action="store_true", help="without the next word")
    a = parser.parse_args()
    prepare("cpu", a.threads)
    threadpool_limits(a.threads)
    warnings.filterwarnings("ignore", module="sklearn")  # that more epochs would fit the training digits better still
    print(f"{processor()}, threads: {a.threads}, numpy {np.__version__}, torch {torch.__version__}")
    gradients()
    xor()
    epochs(a.rounds)
    digits()
    if not a.quick:
        next_word()


if __name__ == "__main__":
    main()
