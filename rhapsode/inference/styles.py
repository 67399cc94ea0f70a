"""Sets of sampling values by what they are good for, as people speak of them.

rhapsode generate runs/mytext "Once" --style creative --temperature 1.0

A style sets what it names; whatever is given beside it is stronger.
"""

from __future__ import annotations

from typing import Any, Literal

Style = Literal["factual", "balanced", "creative", "code", "chat"]

STYLES: dict[Style, dict[str, Any]] = {
    # Nearly always the likeliest token; the little that is left keeps long answers from going round in circles.
    "factual": {"temperature": 0.3, "top_p": 0.9, "repetition_penalty": 1.05},
    "balanced": {"temperature": 0.8, "top_p": 0.95},
    # At a high temperature min-p cuts where the model is sure, and leaves it free where it is not (Nguyen et al. 2024).
    "creative": {"temperature": 1.2, "top_p": 1.0, "min_p": 0.05},
    # Chen et al. 2021, section 3.3: the best for a single attempt. Code repeats itself rightly: no penalty.
    "code": {"temperature": 0.2, "top_p": 0.95},
    "chat": {"temperature": 0.7, "top_p": 0.9, "frequency_penalty": 0.1},
}
"""What each style sets; everything else stays as `Sampling` has it."""
