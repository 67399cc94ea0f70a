"""Digits made on the spot: the same for the same seed, all kinds of them, and good to learn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.foundations.digits import FONTS, UNSEEN, make_digits
from rhapsode.foundations.network import Classifier


@given(st.integers(1, 40), st.integers(4, 20), st.integers(0, 10**6))
@settings(max_examples=20)
def test_pictures_and_labels(count: int, size: int, seed: int) -> None:
    x, y = make_digits(count, size=size, seed=seed)
    assert x.shape == (count, size * size)
    assert x.dtype == np.float32
    assert y.shape == (count,)
    assert x.min() >= 0
    assert x.max() <= 1
    assert set(y) <= set(range(10))
    again, labels = make_digits(count, size=size, seed=seed)
    assert np.array_equal(x, again)
    assert np.array_equal(y, labels)


def test_seeds_and_fonts_make_a_difference() -> None:
    x, y = make_digits(500, seed=1)
    other, _ = make_digits(500, seed=2)
    serif, same = make_digits(500, seed=1, fonts=UNSEEN)
    assert not np.array_equal(x, other)
    assert not np.array_equal(x, serif)
    assert np.array_equal(y, same)
    assert (np.bincount(y, minlength=10) > 25).all()


def test_digits_are_in_the_middle_and_upright() -> None:
    for fonts in (FONTS, UNSEEN):
        x, y = make_digits(2000, size=16, fonts=fonts, noise=0)
        pictures = x.reshape(-1, 16, 16)
        edge = np.concatenate([pictures[:, 0], pictures[:, -1], pictures[:, :, 0], pictures[:, :, -1]], axis=1)
        assert edge.mean() < 0.02, "digits are cut off"
        assert 0.1 < pictures.mean() < 0.35
        mean = np.stack([pictures[y == digit].mean(axis=0) for digit in range(10)])
        assert (mean[7, :8].sum() > mean[7, 8:].sum()) and (mean[6, 8:].sum() > mean[6, :8].sum())
        assert mean[0, 7:9, 7:9].mean() < 0.5 < mean[1, 4:12, 7:9].mean() + 0.1


def test_a_network_learns_them_in_fonts_it_has_not_seen() -> None:
    x, y = make_digits(2000, seed=1)
    model = Classifier(hidden=(64,), learning_rate=3e-3, epochs=15).fit(x, y)
    seen, unseen = (model.score(*make_digits(1000, seed=2, fonts=fonts)) for fonts in (FONTS, UNSEEN))
    assert seen > 0.95
    assert 0.6 < unseen < seen
    scrambled = np.random.default_rng(0).permutation(y)
    assert Classifier(hidden=(64,), epochs=3).fit(x, scrambled).score(*make_digits(1000, seed=2)) < 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count: is 0. It must be at least 1."),
        ({"count": 5, "size": 3}, "size: is 3. It must be at least 4."),
        ({"count": 5, "noise": -1}, "noise: is -1. It must be at least 0."),
        ({"count": 5, "fonts": ["Comic Sans"]}, "fonts: are Comic Sans. Choose some of FONTS and UNSEEN."),
        ({"count": 5, "fonts": [3, []]}, "fonts: are 3, []. Choose some of FONTS and UNSEEN."),
        ({"count": 5, "fonts": "cmr10"}, "fonts: is 'cmr10' and no list. Give a list of FONTS and UNSEEN."),
        ({"count": 5, "seed": 1.5}, "seed: 1.5 is not a whole number."),
        ({"count": 5, "noise": 1e18}, "noise: is 1e+18. It must be at most 10."),
        ({"count": 5, "fonts": []}, "fonts: are none. Choose some of FONTS and UNSEEN."),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        make_digits(**arguments)
    assert error.value.message == message
