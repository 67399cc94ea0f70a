"""Workers in processes of their own that take turns, so that peers meet the same machine and none slows another."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path


class Worker:
    """A script that answers each line it is sent with one: most with a number of seconds.

    Args:
        script: its path.
        arguments: its command line.
        threads: what OMP_NUM_THREADS says to it.
    """

    def __init__(self, script: Path, *arguments: str, threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.seconds: list[float] = []

    def ask(self, line: str) -> str:
        """Send it a line; returns the line that it answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return answer.removesuffix("\n")

    def turn(self, *, counted: bool = True) -> float:
        """Let it work once; returns its seconds."""
        seconds = float(self.ask(""))
        if counted:
            self.seconds.append(seconds)
        return seconds

    def median(self) -> float:
        return statistics.median(self.seconds)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def rounds(workers: list[Worker], count: int) -> None:
    """One uncounted turn each, then `count` rounds in which each has its turn."""
    for worker in workers:
        worker.turn(counted=False)
    for _ in range(count):
        for worker in workers:
            worker.turn()
    for worker in workers:
        worker.close()
