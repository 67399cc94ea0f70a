"""Where the commands print their tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_IN_FILES = 160


def console() -> Console:
    """Standard output: as wide as the terminal, and wide enough for a table where there is none. Text is only text."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH_IN_FILES
    return Console(highlight=False, markup=False, emoji=False, width=width)
