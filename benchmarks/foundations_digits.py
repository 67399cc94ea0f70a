"""Features and deep belief networks on the 1,797 digits of scikit-learn, each also shifted by a pixel four ways.

    python benchmarks/foundations_digits.py [--seeds 10] [--pictures docs/pictures]

1. The example of scikit-learn's documentation, "Restricted Boltzmann Machine features for digit classification": 100
   features, then logistic regression, by our machine and by BernoulliRBM in turn. The split is the example's, which
   lets shifts of one digit into both parts; and one by digits, which does not. The logistic regression is
   scikit-learn's for all, with the example's C of 6000; the example's tolerance of 1 stops it before it begins in
   scikit-learn 1.9 (10 % right), so that the default is taken.
2. A deep belief network that learned from all training digits, then from 1, 5, 10 or 100 % of their labels, beside the
   same network from random weights, and beside one of ReLUs. Split by digits; each labelled digit comes with its
   shifts; all take as many steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import BernoulliRBM
from threadpoolctl import threadpool_limits

from rhapsode.base.machine import processor
from rhapsode.foundations.dbn import DeepBeliefNetwork
from rhapsode.foundations.demonstrations.dbn import SHARES, label_curve, labelled
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.network import Classifier
from rhapsode.foundations.page import Page
from rhapsode.foundations.rbm import RestrictedBoltzmannMachine

Split = tuple[Array, Array, Array, Array]
"""Examples to learn from and to test on, then the labels of both, as scikit-learn gives them."""

FEATURES: dict[str, Callable[[int], RestrictedBoltzmannMachine | BernoulliRBM]] = {
    "scikit-learn's BernoulliRBM": lambda seed: BernoulliRBM(
        n_components=100, learning_rate=0.06, n_iter=10, random_state=seed
    ),
    "ours, persistent chains": lambda seed: RestrictedBoltzmannMachine(hidden=100, seed=seed),
    "ours, CD-1": lambda seed: RestrictedBoltzmannMachine(hidden=100, persistent=False, seed=seed),
}

HIDDEN = (200, 200)
STEPS, BATCH, SIGMOID_RATE = 2000, 32, 0.01
DEEP, TWIN, RELU = "deep belief network", "the same from random weights", "ReLUs from random weights"


def shifted(pictures: Array) -> Array:
    """(pictures, 5, 64): each (8, 8) picture as it is, and moved by a pixel left, up, right and down."""
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1)))
    moves = ((1, 1), (1, 2), (2, 1), (1, 0), (0, 1))
    return np.stack([padded[:, y : y + 8, x : x + 8] for y, x in moves], axis=1).reshape(len(pictures), 5, 64)


def features(x: Array, y: Array, seeds: int) -> None:
    """x is (digits, 5, 64)."""
    digits = train_test_split(x, y, test_size=0.2, random_state=0)
    all_x, all_y = x.swapaxes(0, 1).reshape(-1, 64), np.tile(y, 5)
    splits: dict[str, Split] = {
        "the example's split": tuple(train_test_split(all_x, all_y, test_size=0.2, random_state=0)),
        "split by digits": (
            *(part.reshape(-1, 64) for part in digits[:2]),
            *(np.repeat(part, 5) for part in digits[2:]),
        ),
    }
    print(f"\n{'logistic regression on':34}{'right':>9}{'+-':>7}{'RBM, s':>9}{'whole, s':>10}   {seeds} seeds")
    for name, (train, test, train_y, test_y) in splits.items():
        print(name)
        print(f"{'  pixels':34}{100 * _logistic(train, train_y).score(test, test_y):8.2f} %")
        found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in FEATURES}
        for seed in range(seeds):
            for kind, make in FEATURES.items():
                began = time.perf_counter()
                rbm = make(seed).fit(train)
                middle = time.perf_counter()
                right = _logistic(rbm.transform(train), train_y).score(rbm.transform(test), test_y)
                found[kind].append((right, middle - began, time.perf_counter() - began))
        for kind, rows in found.items():
            right, fit, whole = np.array(rows).T
            error = right.std(ddof=1) / np.sqrt(seeds)
            print(
                f"  {kind:32}{100 * right.mean():8.2f} %{100 * error:7.2f}{np.median(fit):9.2f}{np.median(whole):10.2f}"
            )


def _logistic(x: Array, y: Array) -> LogisticRegression:
    return LogisticRegression(solver="newton-cg", C=6000, max_iter=500).fit(x, y)


def labels(x: Array, y: Array, seeds: int, pictures: Path | None) -> None:
    """x is (digits, 5, 64)."""
    found: dict[str, Array] = {kind: np.empty((seeds, len(SHARES))) for kind in (DEEP, TWIN, RELU)}
    began = time.perf_counter()
    for seed in range(seeds):
        train, test, train_y, test_y = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
        deep = DeepBeliefNetwork(hidden=HIDDEN, pre_training={"epochs": 60}, seed=seed)
        deep.pre_train(train.reshape(-1, 64))
        for place, share in enumerate(SHARES):
            some = labelled(train_y, share, seed=seed)
            examples, answers = train[some].reshape(-1, 64), np.repeat(train_y[some], 5)
            epochs = max(1, round(STEPS / np.ceil(len(examples) / BATCH)))
            common = {"epochs": epochs, "batch_size": BATCH}
            deep.fine_tuning = {"learning_rate": SIGMOID_RATE, **common}
            networks = {
                DEEP: deep.fine_tune(examples, answers),
                TWIN: Classifier(hidden=HIDDEN, activation="sigmoid", learning_rate=SIGMOID_RATE, seed=seed, **common),
                RELU: Classifier(hidden=HIDDEN, activation="relu", learning_rate=0.001, seed=seed, **common),
            }
            for kind, network in networks.items():
                if kind != DEEP:
                    network.fit(examples, answers)
                found[kind][seed, place] = network.score(test.reshape(-1, 64), np.repeat(test_y, 5))
    print(f"\nlayers of {HIDDEN}, {seeds} seeds, {(time.perf_counter() - began) / seeds:.0f} s a seed")
    print(f"{'right, with so many labels':34}" + "".join(f"{100 * share:>13.0f} %" for share in SHARES))
    for kind, right in found.items():
        cells = [f"{100 * np.mean(each):8.1f} +- {_error(each):.1f}" for each in right.T]
        print(f"{kind:34}" + "".join(f"{cell:>15}" for cell in cells))
    difference = found[DEEP] - found[TWIN]
    cells = [f"{100 * np.mean(each):+8.1f} +- {_error(each):.1f}" for each in difference.T]
    print(f"{'gained by pre-training':34}" + "".join(f"{cell:>15}" for cell in cells))
    if pictures is not None:
        caption = "Digits read rightly, by how many have a label. Dots are single seeds, lines their means."
        Page("", "").figure(label_curve(found), caption, name="shares").write_pictures(pictures, prefix="dbn-")


def _error(values: Array) -> float:
    """The standard error of the mean, in percent."""
    return float(100 * values.std(ddof=1) / np.sqrt(len(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="of NumPy and of scikit-learn")
    parser.add_argument("--pictures", type=Path, help="a folder for the drawing of 2.")
    parser.add_argument("--only", choices=("features", "labels"))
    a = parser.parse_args()
    threadpool_limits(a.threads)
    print(f"{processor()}, threads: {a.threads}, numpy {np.__version__}")
    pictures, y = load_digits(return_X_y=True)
    x = shifted((pictures / 16).reshape(-1, 8, 8).astype(np.float32))
    if a.only != "labels":
        features(x, y, a.seeds)
    if a.only != "features":
        labels(x, y, a.seeds, a.pictures)


if __name__ == "__main__":
    main()
