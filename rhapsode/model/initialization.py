"""How every parameter starts, and which optimizer group it belongs to: one table, spelled out."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from rhapsode.base.random import generator
from rhapsode.model.decoder import Decoder

Group = Literal["matrix", "embedding", "head", "gain"]


def group_of(name: str) -> Group:
    """The optimizer group of a parameter, by its name in the decoder."""
    if name.endswith("norm.weight"):
        return "gain"
    if name == "embedding.weight":
        return "embedding"
    if name == "head.weight":
        return "head"
    return "matrix"


def standard_deviation(name: str, parameter: nn.Parameter, tied: bool) -> float:
    """The spread a parameter starts with.

    | parameter                     | spread                | why                                                     |
    |-------------------------------|-----------------------|---------------------------------------------------------|
    | into a block (query ... up)   | 1 / sqrt(inputs)      | keeps the scale of normed inputs                        |
    | out of a block (output, down) | 0                     | every block starts as the identity (Zhang et al. 2019)  |
    | embedding, tied               | 1 / hidden            | a token's logit for itself is 1: loss log(vocabulary)   |
    | embedding, untied             | 1                     | the residual stream starts at the scale of normed input |
    | head, untied                  | 0                     | the first prediction is uniform                         |
    """
    if name == "embedding.weight":
        return 1.0 / parameter.shape[1] if tied else 1.0
    if name == "head.weight" or name.endswith(("output.weight", "down.weight")):
        return 0.0
    return 1.0 / math.sqrt(parameter.shape[1])


def initialise(model: Decoder, seed: int) -> None:
    """Fill all parameters; the same seed gives the same model on every machine and device."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            if group_of(name) == "gain":
                parameter.fill_(1.0)
                continue
            spread = standard_deviation(name, parameter, model.config.tied_embeddings)
            if spread == 0.0:
                parameter.zero_()
                continue
            values = generator(seed, "initialisation", index).standard_normal(tuple(parameter.shape), dtype="float32")
            parameter.copy_(torch.from_numpy(values).mul_(spread))
