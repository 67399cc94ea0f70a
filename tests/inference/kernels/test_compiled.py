"""What is compiled is kept, found again, and never a reason to fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core import config

from rhapsode.inference.kernels import compiled as module

from .whole import computed, ended, start

ONE_KERNEL = """
from rhapsode.inference.kernels import compiled
from rhapsode.inference.kernels.program import padded
assert padded(5, 8) == 8 and padded(16, 8) == 16
print(sum(padded.stats.cache_hits.values()), compiled.is_kept("program.padded"))
"""
FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
"""


def ran(folder: Path, before: str = "") -> str:
    """What a new process says of one kernel: how often it was found compiled before, and whether it is kept now."""
    words = [sys.executable, "-c", before + ONE_KERNEL]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder), "LOCALAPPDATA": str(folder), "PYTHONWARNINGS": "error"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="macOS has one folder for what programs keep")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the kernel is kept."""
    folder = tmp_path_factory.mktemp("caches")
    assert ran(folder) == "0 True"
    return folder


def test_what_is_compiled_is_kept(kept: Path) -> None:
    assert ran(kept) == "1 True"
    (folder,) = (kept / "rhapsode").iterdir()
    if os.name == "posix":
        assert folder.stat().st_mode & 0o077 == 0  # code that is run: nobody else may write it
    assert not list(folder.rglob("*.tmp*"))


def test_where_nothing_can_be_kept_it_is_compiled_each_time(tmp_path: Path) -> None:
    """Root may write anywhere; but a folder cannot be made where a file is."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder", encoding="utf-8")
    assert ran(in_the_way) == "0 False"
    assert in_the_way.read_text(encoding="utf-8") == "not a folder"


@pytest.mark.skipif(os.name != "posix", reason="the system has no limit for files")
def test_a_full_disk_is_no_harm(tmp_path: Path) -> None:
    assert ran(tmp_path, FULL_DISK) == "0 False"


@pytest.mark.parametrize(("suffix", "left"), [(".nbi", b""), (".nbi", None), (".nbc", None)])
def test_a_damaged_file_is_made_anew(tmp_path: Path, kept: Path, suffix: str, left: bytes | None) -> None:
    """It is empty, or ends too early."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.rglob(f"*padded*{suffix}")
    path.write_bytes(path.read_bytes()[:40] if left is None else left)
    assert ran(tmp_path) == "0 True"
    assert ran(tmp_path) == "1 True"


def test_other_sources_have_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function's own file is all that Numba looks at; what it calls may stand in another one."""
    monkeypatch.setattr(module, "caches", lambda: tmp_path / "caches")
    find = module.kept_in.__wrapped__
    here = find()
    sources = tmp_path / "kernels"
    sources.mkdir()
    for path in Path(module.__file__).parent.glob("*.py"):
        (sources / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(module, "__file__", str(sources / "compiled.py"))
    assert find() == here
    with (sources / "vectors.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    changed = find()
    monkeypatch.setattr(config, "BOUNDSCHECK", 1 if config.BOUNDSCHECK is None else None)
    assert len({here, changed, find()}) == 3


def test_who_has_no_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module, "caches", homeless)
    assert module.kept_in.__wrapped__() is None


@pytest.mark.slow
@pytest.mark.parametrize("others", [["float32"], ["int8"]])
def test_two_processes_that_compile_at_once(tmp_path: Path, others: list[str]) -> None:
    """The same functions, for the same or other arrays."""
    words = [["float32"], others]
    environment = {"XDG_CACHE_HOME": str(tmp_path / "caches"), "LOCALAPPDATA": str(tmp_path / "caches")}
    for _ in range(2):  # compiled, then found
        outs = [tmp_path / f"{number}.npz" for number in range(2)]
        processes = [start(out, some, environment) for out, some in zip(outs, words, strict=True)]
        for process, out, some in zip(processes, outs, words, strict=True):
            found = ended(process, out)
            for name, right in computed(some).items():
                np.testing.assert_array_equal(found[name], right, err_msg=name)
