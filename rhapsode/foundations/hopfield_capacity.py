"""How much a Hopfield network holds: what theory says of random patterns, and the same counted.

    shares = error_shares(units=1000, patterns=138, networks=4, seed=0)
    print(shares.mean(), bit_error(0.138), exact_bit_error(1000, 138))

The load is patterns / units, alpha in the literature. `benchmarks/foundations_hopfield.py` prints both side by side.
"""

from __future__ import annotations

import math

import numpy as np

from rhapsode.base.random import generator
from rhapsode.foundations.estimator import check_number
from rhapsode.foundations.hopfield import Hopfield, Numbers, Rule


def bit_error(load: float) -> float:
    """The share of a stored pattern's units that one update turns over: 1/2 [1 - erf(1 / sqrt(2 load))].

    The other patterns add a random sum to each unit's field, normal with variance `load` where the network is large,
    and turn the unit over where that sum outweighs the pattern's own 1 (Hertz, Krogh and Palmer 1991, section 2.2).
    """
    check_number("load", load, above=0)
    return 0.5 * math.erfc(1 / math.sqrt(2 * load))


def exact_bit_error(units: int, patterns: int) -> float:
    """The same for a network of any size, which `bit_error` is the limit of.

    Times `units`, the field of a unit along its pattern is units - 1 and a sum of (patterns - 1) (units - 1) signs,
    independent of each other as products of different ones are; the unit turns over where that is below zero.
    """
    check_number("units", units, least=1, whole=True)
    check_number("patterns", patterns, least=1, whole=True)
    terms = (patterns - 1) * (units - 1)
    most = (terms - units) // 2  # of +1 among the signs, where the unit turns over
    if most < 0:
        return 0.0
    logarithm = math.lgamma(terms + 1) - math.lgamma(most + 1) - math.lgamma(terms - most + 1) - terms * math.log(2)
    # The fewer, the less likely, each by a factor below the first one here: the sum ends where nothing is left of it.
    enough = math.ceil(40 / math.log((terms - most + 1) / max(1, most)))
    fewer = np.arange(most, max(0, most - enough), -1)
    return math.exp(logarithm) * (1 + float(np.cumprod(fewer / (terms - fewer + 1)).sum()))


def retrieval_curve(points: int = 200) -> tuple[Numbers, Numbers]:
    """The overlap of what a pattern relaxes to with the pattern itself, in a large network with Hebb's weights.

    Amit, Gutfreund and Sompolinsky (1985), without noise: an overlap m = erf(y) solves their equations at the load of
    which sqrt(2 load) = erf(y) / y - 2 / sqrt(pi) exp(-y^2). Beyond the largest such load nothing is retrieved.

    Returns:
        loads from near 0 to the critical one, 0.138, and the overlap at each, both (points,).
    """
    check_number("points", points, least=1, whole=True)
    y = np.linspace(5.0, 0.5, 100_000)
    erf: Numbers = np.vectorize(math.erf)(y)
    loads: Numbers = 0.5 * np.square(erf / y - 2 / math.sqrt(math.pi) * np.exp(-np.square(y)))
    end = int(np.argmax(loads))  # beyond it loads fall again: the solutions there are not stable
    shown = np.unique(np.linspace(0, end, points).astype(np.int64))
    return loads[shown], erf[shown]


def random_patterns(patterns: int, units: int, *, seed: int, network: int = 0) -> Numbers:
    """Patterns (patterns, units) of -1 and +1, each as likely; one set for each number of a network."""
    for name, number in (("patterns", patterns), ("units", units)):
        check_number(name, number, least=1, whole=True)
    check_number("seed", seed, whole=True)
    check_number("network", network, least=0, whole=True)
    bits = generator(seed, "patterns", units, patterns, network).integers(0, 2, (patterns, units))
    return np.where(bits == 1, 1.0, -1.0)


def error_shares(*, units: int, patterns: int, networks: int, seed: int) -> Numbers:
    """The share of units of stored patterns that one update turns over, with Hebb's weights, of each network.

    Units of one network are not quite independent, as pairs of patterns overlap by chance for all units alike: beyond a
    load of 0.1 networks differ by more than the binomial law says. What they differ by is in the numbers themselves.
    """
    check_number("networks", networks, least=1, whole=True)
    shares = []
    for network in range(networks):
        x = random_patterns(patterns, units, seed=seed, network=network)
        shares.append(float(np.mean(Hopfield().fit(x).step(x) != x)))
    return np.array(shares)


def overlaps(
    rule: Rule, *, units: int, patterns: int, flipped: float, states: int, seed: int, network: int = 0
) -> Numbers:
    """The overlap of each of the first patterns with what is recalled when a share of its units was turned over.

    Args:
        flipped: that share, 0 for the patterns themselves.
        states: how many patterns are recalled, at most.

    Returns:
        (min(states, patterns),).
    """
    check_number("flipped", flipped, least=0, most=1)
    check_number("states", states, least=1, whole=True)
    x = random_patterns(patterns, units, seed=seed, network=network)
    memory, wanted = Hopfield(rule=rule, seed=seed).fit(x), x[:states]
    order = np.argsort(generator(seed, "flipped", units, patterns, network).random(wanted.shape), axis=1)
    damaged = np.where(order < round(flipped * units), -wanted, wanted)
    return np.asarray(np.mean(memory.predict(damaged) * wanted, axis=1))
