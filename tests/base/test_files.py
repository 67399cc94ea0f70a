"""Files that are written whole or not at all: nothing but a file is ever replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rhapsode.base.errors import InputError
from rhapsode.base.files import new_file, write_atomically


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_stays(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "there"
    if kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target.symlink_to("/dev/null")
    with pytest.raises(InputError, match="there: is no file"):
        write_atomically(target, "text")
    with pytest.raises(InputError, match="there: is no file"), new_file(target, replace=True) as temporary:
        temporary.write_text("text")
    assert not target.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
