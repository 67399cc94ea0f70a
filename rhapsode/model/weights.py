"""Between our parameters and the tensors of a family's files: names, and the layouts in which files keep them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rhapsode.model.config import ModelConfig
from rhapsode.model.families import FAMILIES

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

Shapes = Mapping[str, tuple[int, ...]]
"""Of our parameters, by name."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file, and the parameters that are in it."""

    name: str
    parts: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Of the parts."""
    layout: str = "plain"
    """As in `Packed`; plain: the tensor is the parameter."""
    heads: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """What the file must hold."""
        first = self.shapes[0]
        rows = sum(shape[0] for shape in self.shapes)
        if self.layout == "vector":
            return (1, rows)
        if len(first) == 1:
            return (rows,)
        return (*first[1:], rows) if self.layout == "columns" else (rows, *first[1:])

    def unpack(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each part's name and values, out of the file's tensor."""
        sizes = [shape[0] for shape in self.shapes]
        if self.layout == "heads":
            by_head = tensor.view(self.heads, len(sizes), -1, *tensor.shape[1:])
            pieces = tuple(by_head[:, part].reshape(-1, *tensor.shape[1:]) for part in range(len(sizes)))
        elif self.layout == "columns" and tensor.dim() == 2:
            pieces = tuple(piece.T.contiguous() for piece in torch.split(tensor, sizes, dim=1))
        else:
            pieces = torch.split(tensor.view(sum(sizes), *self.shapes[0][1:]), sizes)
        yield from zip(self.parts, pieces, strict=True)

    def pack(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The file's tensor."""
        pieces = [parameters[part].detach() for part in self.parts]
        if self.layout == "heads":
            rest = pieces[0].shape[1:]
            return torch.stack([piece.view(self.heads, -1, *rest) for piece in pieces], dim=1).reshape(-1, *rest)
        if self.layout == "columns" and pieces[0].dim() == 2:
            return torch.cat([piece.T for piece in pieces], dim=1)
        tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return tensor.view(self.shape).contiguous()


def stored_tensors(config: ModelConfig, shapes: Shapes) -> list[Stored]:
    """The tensors that a whole model's files hold, in the order of our parameters.

    Args:
        shapes: of the model's parameters; a tied head is not among them.
    """
    family = FAMILIES[config.family]
    modules = dict(family.modules) | (dict(family.variant(config)) if family.variant else {})
    packed_by_part = {part: packed for packed in family.packed for part in packed.parts}
    found: dict[str, Stored] = {}
    for name in shapes:
        pattern, numbers = _pattern(name)
        module, _, leaf = pattern.rpartition(".")
        if packed := packed_by_part.get(pattern):
            theirs = packed.name.format(**numbers)
            found[theirs] = Stored(theirs, (name,), (shapes[name],), packed.layout)
        elif packed := packed_by_part.get(module):
            theirs = f"{packed.name.format(**numbers)}.{leaf}"
            parts = tuple(f"{part.format(**numbers)}.{leaf}" for part in packed.parts)
            found[theirs] = Stored(theirs, parts, tuple(shapes[part] for part in parts), packed.layout, config.heads)
        else:
            theirs = modules[pattern] if pattern in modules else f"{modules[module]}.{leaf}"
            found[theirs.format(**numbers)] = Stored(theirs.format(**numbers), (name,), (shapes[name],))
    if not config.has_head:  # published under the names of the model alone
        found = {name.removeprefix(family.prefix): stored for name, stored in found.items()}
        return [Stored(name, old.parts, old.shapes, old.layout, old.heads) for name, old in found.items()]
    return list(found.values())


def _pattern(name: str) -> tuple[str, dict[str, int]]:
    """A parameter's name with {layer} and {expert} for its numbers, and these."""
    numbers = dict(zip(("layer", "expert"), map(int, _NUMBER.findall(name)), strict=False))
    kinds = iter(numbers)
    return _NUMBER.sub(lambda _: "{" + next(kinds) + "}", name), numbers
