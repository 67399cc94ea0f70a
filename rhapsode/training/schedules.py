"""The learning rate's share of its peak at every step: constant, cosine, or warm-up, stable, decay.

All three rise linearly over `warmup_steps` first: share (step + 1) / warmup_steps at step 0, 1, ...
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["constant", "cosine", "wsd"]


@dataclass(frozen=True)
class Schedule:
    """A schedule over `steps` steps."""

    name: ScheduleName
    steps: int
    """The horizon."""
    warmup_steps: int
    decay_share: float
    """Part of the horizon over which `wsd` falls, linearly (Hu et al. 2024; Haegele et al. 2024)."""
    final_share: float
    """Share of the peak at the end of the horizon, for `cosine` and `wsd`."""

    def share(self, step: int) -> float:
        """The learning rate of `step` (from 0) over its peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.name == "constant":
            return 1.0
        if self.name == "cosine":
            progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
            return self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        left = max(0, self.steps - step) / max(1.0, self.decay_share * self.steps)
        return self.final_share + (1 - self.final_share) * min(1.0, left)
