"""What Hopfield networks hold: errors of one update beside the formula, retrieval beside the theory, rules compared.

    python benchmarks/foundations_hopfield.py [--networks 4] [--many 40] [--states 20] [--seed 0]

The formula is that of infinitely large networks; the law of finite ones is known as well, and with forty networks the
two can be told apart at N = 1000. Ends with 1 if an error rate is more than three standard errors from the formula.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import numpy as np
from rich.table import Table

from rhapsode.base.machine import processor
from rhapsode.cli.console import console
from rhapsode.foundations.hopfield import Hopfield
from rhapsode.foundations.hopfield_capacity import (
    bit_error,
    error_shares,
    exact_bit_error,
    overlaps,
    random_patterns,
    retrieval_curve,
)
from rhapsode.foundations.modern_hopfield import ModernHopfield

UNITS = 1000
LOADS = (0.05, 0.10, 0.138, 0.185, 0.37)
LEAST_ERRORS = 10
"""Rare errors are looked for in as many networks as it takes to expect so many."""


def table(title: str, *headings: str) -> Table:
    made = Table(title=title)
    for heading in headings:
        made.add_column(heading, justify="right")
    return made


def errors(networks: int, many: int, seed: int) -> tuple[Table, float]:
    """One update of every stored pattern; and the largest distance of few networks from the formula."""
    shown = table(
        f"Share of the units of stored patterns that one update turns over, N = {UNITS}",
        "load",
        "formula",
        "networks",
        "share",
        "standard error",
        "off by",
        "exact law",
        "networks",
        "share",
        "standard error",
        "off by",
        "formula off by",
    )
    furthest = 0.0
    for load in LOADS:
        patterns, formula = round(load * UNITS), bit_error(load)
        few = max(networks, math.ceil(LEAST_ERRORS / (formula * patterns * UNITS)))
        shares = error_shares(units=UNITS, patterns=patterns, networks=max(few, many), seed=seed)
        # Few networks: the error of independent units. Many: what the networks differ by, which is more.
        error, exact = math.sqrt(formula * (1 - formula) / (few * patterns * UNITS)), exact_bit_error(UNITS, patterns)
        off = (shares[:few].mean() - formula) / error
        true_error = shares.std(ddof=1) / math.sqrt(len(shares))
        furthest = max(furthest, abs(off))
        shown.add_row(
            f"{load:.3f}",
            f"{formula:.3e}",
            str(few),
            f"{shares[:few].mean():.3e}",
            f"{error:.1e}",
            f"{off:+.1f}",
            f"{exact:.3e}",
            str(len(shares)),
            f"{shares.mean():.3e}",
            f"{true_error:.1e}",
            f"{(shares.mean() - exact) / true_error:+.1f}",
            f"{(shares.mean() - formula) / true_error:+.1f}",
        )
    return shown, furthest


def retrieval(states: int, networks: int, seed: int) -> Table:
    """Where stored patterns relax to, and how many stay near: Hebb's rule, three sizes, and the theory."""
    sizes = (250, 500, 1000, 2000)
    headings = [f"N = {units}" for units in sizes]
    shown = table(
        "Overlap of what a stored pattern relaxes to with itself, and the share that stays above 0.9",
        "load",
        "theory",
        *headings,
    )
    theory_loads, theory = retrieval_curve()
    for load in (0.05, 0.10, 0.12, 0.13, 0.135, 0.138, 0.142, 0.15, 0.16, 0.18, 0.20, 0.25):
        cells = []
        for units in sizes:
            found = np.concatenate(
                [
                    overlaps(
                        "hebbian",
                        units=units,
                        patterns=round(load * units),
                        flipped=0,
                        states=states,
                        seed=seed,
                        network=network,
                    )
                    for network in range(networks)
                ]
            )
            cells.append(f"{found.mean():.3f} {100 * np.mean(found > 0.9):3.0f} %")
        known = load <= theory_loads[-1]
        shown.add_row(f"{load:.3f}", f"{np.interp(load, theory_loads, theory):.3f}" if known else "none", *cells)
    return shown


def rules(states: int, seed: int) -> Table:
    """Patterns with a tenth of their units turned over, recalled by each rule."""
    units = 256
    shown = table(
        f"Overlap after recall, a tenth of the units turned over at the start, N = {units}",
        "load",
        "hebbian",
        "storkey",
        "pseudo-inverse",
    )
    for load in (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.40, 0.50, 0.60, 0.80):
        found = [
            overlaps(rule, units=units, patterns=round(load * units), flipped=0.1, states=states, seed=seed).mean()
            for rule in ("hebbian", "storkey", "pseudo-inverse")
        ]
        shown.add_row(f"{load:.2f}", *(f"{overlap:.3f}" for overlap in found))
    return shown


def modern(seed: int) -> Table:
    """Random patterns in 64 units, six of them turned over, by both networks; shares recalled without an error."""
    shown = table(
        "Patterns recalled without an error in one update, 64 units, 6 of them turned over at the start",
        "patterns",
        "Hopfield 1982",
        "modern, beta 1",
        "modern, beta 1/8",
    )
    for patterns in (5, 10, 100, 1000, 10_000):
        x = random_patterns(patterns, 64, seed=seed)
        order = np.argsort(np.random.default_rng(seed).random(x.shape), axis=1)
        damaged = np.where(order < 6, -x, x)
        found = [
            Hopfield().fit(x).step(damaged),
            np.sign(ModernHopfield(beta=1).fit(x).predict(damaged)),
            np.sign(ModernHopfield(beta=1 / 8).fit(x).predict(damaged)),
        ]
        shown.add_row(f"{patterns:,}", *(f"{100 * np.mean((states == x).all(axis=1)):.1f} %" for states in found))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=4, help="for each load")
    parser.add_argument("--many", type=int, default=40, help="for the exact law")
    parser.add_argument("--states", type=int, default=20, help="recalled in each network")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    print(processor())
    output, start = console(), time.monotonic()
    shown, furthest = errors(a.networks, a.many, a.seed)
    output.print(shown)
    output.print(retrieval(a.states, a.networks, a.seed))
    output.print(rules(a.states, a.seed))
    output.print(modern(a.seed))
    print(f"{time.monotonic() - start:.0f} s")
    if furthest > 3:
        sys.exit(f"an error rate is {furthest:.1f} standard errors from the formula")


if __name__ == "__main__":
    main()
