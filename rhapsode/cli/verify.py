"""`rhapsode verify FOLDER`: whether a run, checkpoint, model, corpus or token store is undamaged."""

from __future__ import annotations

from pathlib import Path


def verify(folder: Path, /) -> None:
    """Check that a run, checkpoint, model, corpus or token store is undamaged.

    Every byte is read: digests are compared, shapes and settings checked. Exits with 2 when something is damaged.

        rhapsode verify runs/mytext

    Parameters
    ----------
    folder: Path
        A run folder, or one of the folders inside it, or a model or corpus anywhere.
    """
    from rich.table import Table
    from rich.text import Text

    from rhapsode.base.errors import DamagedError
    from rhapsode.base.progress import Progress
    from rhapsode.cli.console import console
    from rhapsode.training.verify import parts_of
    from rhapsode.training.verify import verify as verified

    parts = parts_of(folder)
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in ("state", "kind", "name", "told"):
        table.add_column(overflow="fold")
    damaged = 0
    with Progress("verifying", len(parts), "parts") as progress:
        for finding in verified(parts):
            damaged += not finding.good
            state = Text("good", "green") if finding.good else Text("DAMAGED", "bold red")
            name = finding.path.relative_to(folder) if finding.path != folder else folder
            table.add_row(state, Text(finding.kind), Text(str(name)), Text(finding.told))
            progress.advance()
    console().print(table)
    if damaged:
        raise DamagedError(
            f"{damaged} of {len(parts)} parts {'is' if damaged == 1 else 'are'} damaged",
            where=str(folder),
            todo="`rhapsode train --resume` goes on from the newest checkpoint that is good.",
        )
