"""The room stands on `rhapsode.base` alone, and its chapters show pictures that are there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import rhapsode.foundations

ROOM = Path(rhapsode.foundations.__file__).parent
CHAPTERS = sorted((ROOM.parents[1] / "docs").glob("foundations*.md"))
LIBRARIES = {"numpy", "matplotlib", "jinja2", "markupsafe", "numba", "safetensors"}


def imported(source: str) -> set[str]:
    """The modules that a module names in its imports, wherever they stand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            found.add(node.module)
    return found


def test_it_stands_on_the_base_alone() -> None:
    modules = sorted(ROOM.rglob("*.py"))
    assert len(modules) > 15
    for path in modules:
        for name in imported(path.read_text(encoding="utf-8")):
            first, *rest = name.split(".")
            ours = first == "rhapsode" and rest[:1] in ([], ["base"], ["foundations"])
            assert ours or first in LIBRARIES | sys.stdlib_module_names, f"{path.name} imports {name}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_what_a_chapter_points_at_is_there(chapter: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", chapter.read_text(encoding="utf-8")):
        assert (chapter.parent / target).is_file(), f"{chapter.name} points at {target}"
