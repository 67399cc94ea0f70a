"""Rhapsode: from text of your own to a language model you own, on the machine you have.

rhapsode train mytext.txt --minutes 10
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhapsode.inference.language_model import load as load
    from rhapsode.training.run import train as train

__version__ = "0.1.0"
__all__ = ["__version__", "load", "train"]

_PUBLIC = {"load": "rhapsode.inference.language_model", "train": "rhapsode.training.run"}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: only who trains or loads a model pays for it.
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'rhapsode' has no attribute {name!r}")
