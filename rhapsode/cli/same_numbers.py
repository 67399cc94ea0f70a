"""The transformer of `rhapsode.model` for `rhapsode foundations attention`: the numbers of that page go through it too.

The room of the foundations may not import it, so it is handed in. NumPy in, NumPy out, in double precision.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from rhapsode.foundations.layers import EPSILON
from rhapsode.model.attention import Sight, explicit_attention, fast_attention
from rhapsode.model.config import ModelConfig
from rhapsode.model.stack import Block

Numbers = npt.NDArray[np.float64]

PARTS = {
    "0.0": "attention_norm",
    **{f"0.1.{name}": f"attention.{name}" for name in ("query", "key", "value", "output")},
    "1.0": "feed_forward_norm",
    "1.1": "feed_forward.up",
    "1.3": "feed_forward.down",
}
"""The parts of a block: there, and here."""


class ModelTransformer:
    """What the page compares with (`rhapsode.foundations.demonstrations.attention.Transformer`)."""

    name = "rhapsode.model"

    def attend(self, query: Numbers, key: Numbers, value: Numbers, scale: float) -> dict[str, Numbers]:
        """By the attention that writes its weights down, and by torch's fused one, which is what models run on."""
        q, k, v = (torch.from_numpy(array)[None, None] for array in (query, key, value))  # (1, 1, time, width)
        ways = {"explicit_attention": explicit_attention, "fast_attention": fast_attention}
        return {
            f"{self.name}, {name}": attend(q, k, v, Sight(None, causal=False), scale)[0][0, 0].numpy()
            for name, attend in ways.items()
        }

    def block(self, parameters: Mapping[str, Numbers], x: Numbers, heads: int, *, causal: bool) -> dict[str, Numbers]:
        """By the block that every model here is made of, with layer norms before its parts and GELU, as in GPT-2."""
        time, width = x.shape
        config = ModelConfig(
            vocabulary_size=1,
            hidden_size=width,
            layers=1,
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            intermediate_size=parameters["1.1.bias"].size,
            context_length=time,
            norm="layer",
            norm_epsilon=EPSILON,
            norm_bias=True,
            positions="learned",
            query_bias=True,
            output_bias=True,
            gated=False,
            activation="gelu",
            feed_forward_bias=True,
        )
        block = Block(config, 0, 0, cross=False).double()
        weights = {}
        for name, array in parameters.items():
            part, _, kind = name.rpartition(".")
            # Dense layers there are (inputs, outputs), torch's are (outputs, inputs).
            weights[f"{PARTS[part]}.{kind}"] = torch.from_numpy(np.ascontiguousarray(array.T))
        block.load_state_dict(weights)
        hidden, sight = torch.from_numpy(x)[None], Sight(None, causal=causal)  # (1, time, width)
        with torch.no_grad():
            normed = block.attention_norm(hidden)
            read, _ = block.attention(normed, sight, None, None, False)
            after = hidden + read
            parts = {
                "norm": normed,
                "attention": read,
                "after attention": after,
                "feed-forward": block.feed_forward(block.feed_forward_norm(after)),
                "output": block(hidden, sight, None, None, None, None, False)[0],
            }
        return {name: part[0].numpy() for name, part in parts.items()}
