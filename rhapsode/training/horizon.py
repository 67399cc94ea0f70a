"""How many steps a run has: fixed by the plan, and corrected on the way so that it ends when it was asked to.

Machines drift by tenths over minutes. Each correction is on the disk before it is used, so that a run which is killed
and resumed repeats it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from rhapsode.base.errors import DamagedError
from rhapsode.base.files import read_json, write_json

MOMENTS = (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.85, 0.92, 0.97)
"""Shares of the planned steps after which the clock is looked at."""


@dataclass(frozen=True)
class Correction:
    """From `step` on, the run has `steps` steps."""

    step: int
    steps: int


class Horizon:
    """The run's number of steps, as known at each step.

    Args:
        path: the file that keeps the corrections.
        steps: the planned number.
        seconds: what the run may take in all; None when the number of steps is fixed.
        reserve: seconds to keep for what comes after the last step.
    """

    def __init__(self, path: Path, steps: int, seconds: float | None, reserve: float) -> None:
        self.path, self.planned, self.seconds, self.reserve = path, steps, seconds, reserve
        self.moments = {max(2, round(steps * share)) for share in MOMENTS} if seconds is not None else set()
        self.corrections: list[Correction] = []
        if path.exists():
            try:
                self.corrections = [Correction(**entry) for entry in read_json(path)]
            except TypeError:
                raise DamagedError("does not list corrections", where=str(path)) from None

    def steps(self, step: int) -> int:
        """The number of steps of the run, as it stands at `step`."""
        for correction in reversed(self.corrections):
            if correction.step <= step:
                return correction.steps
        return self.planned

    def look_at_clock(self, step: int, elapsed: float, seconds_per_step: float) -> None:
        """At the set moments, correct the number of steps for the time that is left.

        Args:
            step: steps done.
            elapsed: seconds the run has taken so far.
            seconds_per_step: of late, evaluations and checkpoints included.
        """
        if step not in self.moments or self.seconds is None or any(past.step == step for past in self.corrections):
            return
        left = self.seconds - self.reserve - elapsed
        steps = step + max(1, int(left / seconds_per_step))
        if abs(steps - self.steps(step)) > 0.005 * self.planned:
            self.corrections.append(Correction(step, steps))
            write_json(self.path, [asdict(correction) for correction in self.corrections])
