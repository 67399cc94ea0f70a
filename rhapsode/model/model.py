"""The three kinds of transformer under one name."""

from __future__ import annotations

from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.encoder import Encoder
from rhapsode.model.encoder_decoder import EncoderDecoder

Model = Decoder | Encoder | EncoderDecoder


def new_model(config: ModelConfig) -> Model:
    """A model of this shape; its weights are zero or one until they are filled."""
    if config.kind == "decoder":
        return Decoder(config)
    return Encoder(config) if config.kind == "encoder" else EncoderDecoder(config)
