"""`rhapsode report RUN`: the page that shows how a run went."""

from __future__ import annotations

from pathlib import Path


def report(run: Path, /) -> None:
    """Make RUN/report.html, one page without any network, from the run's records.

        rhapsode report runs/mytext

    Parameters
    ----------
    run: Path
        A run folder, finished or not.
    """
    from rhapsode.report.report import write_report

    print(write_report(run))
