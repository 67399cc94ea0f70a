"""How every parameter starts, and which optimizer group it belongs to: one table, spelled out."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from rhapsode.base.random import generator
from rhapsode.model.config import ModelConfig
from rhapsode.model.model import Model

Group = Literal["matrix", "embedding", "head", "gain"]

EMBEDDINGS = ("embedding", "decoder_embedding", "positions", "token_types", "relative_bias")
OUT_OF_A_BLOCK = ("output.weight", "down.weight")


def group_of(name: str) -> Group:
    """The optimizer group of a parameter, by its name in the model."""
    module, _, leaf = name.rpartition(".")
    last = module.rpartition(".")[2]
    if leaf == "bias" or last.endswith("norm"):
        return "gain"
    if last in EMBEDDINGS:
        return "embedding"
    return "head" if name == "head.weight" else "matrix"


def standard_deviation(name: str, parameter: nn.Parameter, config: ModelConfig) -> float:
    """The spread a parameter starts with, around zero; around one for the gains of norms.

    | parameter                       | spread                | why                                                    |
    |---------------------------------|-----------------------|--------------------------------------------------------|
    | into a block (query ... up)     | 1 / sqrt(inputs)      | keeps the scale of normed inputs                       |
    | query, scores scaled otherwise  | the same, made up for | scores start as small as with 1 / sqrt(head_dim)       |
    | out of a block (output, down)   | 0                     | every block starts as the identity (Zhang et al. 2019) |
    | embeddings, tied, of a decoder  | 1 / hidden            | a token's logit for itself is 1: loss log(vocabulary)  |
    | embeddings, tied and scaled     | 1 / sqrt(hidden)      | times the scale 1, as sinusoids (Vaswani et al. 2017)  |
    | embeddings, tied, of an encoder | 0.02                  | well above the norm's epsilon (Devlin et al. 2019)     |
    | embeddings, untied              | 1                     | the residual stream starts as wide as normed input     |
    | biases by distance              | 0                     | at first all distances are alike                       |
    | head, untied                    | 0                     | the first prediction is uniform                        |
    | gains and biases                | 0                     | norms begin as norms                                   |
    """
    if group_of(name) == "gain" or name.endswith("relative_bias.weight"):
        return 0.0
    if group_of(name) == "embedding":
        if not config.tied_embeddings:
            return 1.0
        if config.kind == "decoder":
            return 1.0 / config.hidden_size
        return 0.02 if config.embedding_scale == 1.0 else 1.0 / math.sqrt(config.hidden_size)
    if name == "head.weight" or name.endswith(OUT_OF_A_BLOCK):
        return 0.0
    spread = 1.0 / math.sqrt(parameter.shape[1])
    if name.endswith("query.weight") and config.qk_norm == "none":
        spread /= config.scale(config.towers[0]) * math.sqrt(config.head_dim)
    return spread


def initialise(model: Model, seed: int) -> None:
    """Fill all parameters; the same seed gives the same model on every machine and device."""
    config = model.config
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            is_gain = name.endswith("norm.weight") and not config.norm_unit_offset
            parameter.fill_(1.0 if is_gain else 0.0)
            spread = standard_deviation(name, parameter, config)
            if spread > 0.0:
                shape = tuple(parameter.shape)
                values = generator(seed, "initialisation", index).standard_normal(shape, dtype="float32")
                parameter.copy_(torch.from_numpy(values).mul_(spread))
