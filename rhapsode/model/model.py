"""The three kinds of transformer under one name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.encoder import Encoder
from rhapsode.model.encoder_decoder import EncoderDecoder
from rhapsode.model.weights import Shapes

Model = Decoder | Encoder | EncoderDecoder


def new_model(config: ModelConfig) -> Model:
    """A model of this shape; its weights are zero or one until they are filled."""
    if config.kind == "decoder":
        return Decoder(config)
    return Encoder(config) if config.kind == "encoder" else EncoderDecoder(config)


class _Undrawn(TorchFunctionMode):
    """Leaves out the normal numbers that torch fills embeddings with: to draw them where there is no memory to draw
    them to, it imports its compiler, for two seconds."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        return options["tensor"] if function is nn.init.normal_ else function(*arguments, **options)


def weightless(config: ModelConfig) -> Model:
    """A model of this shape whose parameters have shapes and no numbers."""
    with torch.device("meta"), _Undrawn():
        return new_model(config)


def filled(
    config: ModelConfig, weights: Callable[[Shapes], Iterator[tuple[str, Tensor]]], device: torch.device | str = "cpu"
) -> Model:
    """A model of this shape that takes weights over, without a copy where they are on the device already.

    Args:
        weights: gives the value of each parameter of these shapes, by name, in fp32.
    """
    model = weightless(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, tensor in weights(shapes):
        module, _, leaf = name.rpartition(".")
        owner = model.get_submodule(module)
        learned = owner.get_parameter(leaf).requires_grad
        setattr(owner, leaf, nn.Parameter(tensor.to(device), requires_grad=learned))
    # Setting a parameter undoes the sharing of it.
    if isinstance(model, EncoderDecoder) and config.shared_embeddings:
        model.decoder_embedding = model.embedding
    if config.has_head and config.tied_embeddings:
        last = model.decoder_embedding if isinstance(model, EncoderDecoder) else model.embedding
        model.head.weight = last.weight
    return model.eval()
