"""How many steps a run has: fixed by the plan, and corrected on the way so that it ends when it was asked to.

Machines drift by tenths over minutes. What was found at each moment is on the disk before it is used, so that a run
which is killed and resumed repeats it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from rhapsode.base.errors import DamagedError
from rhapsode.base.files import read_json, write_json

LOOKS = 5
"""The clock is looked at each time a fifth of the steps that were left has been done: more often near the end."""

SMALLEST = 0.005
"""Share of the planned steps below which a difference is not worth a correction."""


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
        self.looks: list[tuple[int, float]] = []  # (step, seconds the run had taken), of this process
        self.corrections: list[Correction] = []
        if path.exists():
            try:
                self.corrections = [Correction(int(entry["step"]), int(entry["steps"])) for entry in read_json(path)]
            except (KeyError, TypeError, ValueError, OverflowError):
                raise DamagedError("does not list corrections", where=str(path)) from None

    def steps(self, step: int) -> int:
        """The number of steps of the run, as it stands at `step`."""
        return self._newest(step).steps

    def _newest(self, step: int) -> Correction:
        """The newest correction at `step` or before it."""
        past = [correction for correction in self.corrections if correction.step <= step]
        return max(past, key=lambda correction: correction.step, default=Correction(0, self.planned))

    def look_at_clock(self, step: int, elapsed: float) -> None:
        """Correct the number of steps for the time that is left, if it is time to.

        Call it before the first step of a process, and after each. What an earlier process found at a step is not
        looked at again.

        Args:
            step: steps done.
            elapsed: seconds the run has taken so far.
        """
        if self.seconds is None:
            return
        last = self._newest(step)
        due = last.step + max(1, (last.steps - last.step) // LOOKS)
        if self.looks and last.step < step < due:
            return
        self.looks.append((step, elapsed))
        if len(self.looks) == 1 or step == last.step:  # the process begins, or does again what was done before
            return
        first = self.looks[0][0]
        then, before = max(look for look in self.looks if look[0] <= (first + step) // 2)
        seconds_per_step = (elapsed - before) / (step - then)  # of late, evaluations and checkpoints included
        left = self.seconds - self.reserve - elapsed
        steps = step + max(0, int(left / seconds_per_step))
        if abs(steps - self.steps(step)) <= SMALLEST * self.planned:
            steps = self.steps(step)
        corrections = [*self.corrections, Correction(step, steps)]
        try:
            write_json(self.path, [asdict(correction) for correction in corrections])
        except OSError:
            return  # a full disk: what cannot be kept must not be used
        self.corrections = corrections
