"""Where the commands print their tables, and the bars in them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_IN_FILES = 160
EIGHTHS = " ▏▎▍▌▋▊▉"


def console() -> Console:
    """Standard output: as wide as the terminal, and wide enough for a table where there is none. Text is only text."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH_IN_FILES
    return Console(highlight=False, markup=False, emoji=False, width=width)


def bar(share: float, width: int) -> str:
    """A bar in eighths of a character, of `width` characters where `share` is 1, and of none at 0 and below."""
    whole, eighths = divmod(round(min(max(share, 0.0), 1.0) * width * 8), 8)
    return f"{'█' * whole + (EIGHTHS[eighths] if eighths else ''):<{width}}"
