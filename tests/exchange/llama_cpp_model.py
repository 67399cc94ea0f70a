"""What llama.cpp computes from a GGUF file, written down plainly in numpy, as a second opinion.

It takes the file, not our model: names, layouts and the order of rotated rows are those that llama.cpp's loader and
graphs have for each architecture. One text, no cache, double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rhapsode.exchange.gguf_file import GgufFile

Array = npt.NDArray[np.float64]

PAIRS_OF_NEIGHBOURS = ("llama",)  # LLAMA_ROPE_TYPE_NORM; all others here have LLAMA_ROPE_TYPE_NEOX


class LlamaCpp:
    """A file's model."""

    def __init__(self, file: GgufFile) -> None:
        self.file, self.name = file, file.metadata.text("general.architecture")
        self.width, self.heads = self.said("embedding_length"), self.said("attention.head_count")
        self.kv_heads = self.said("attention.head_count_kv", self.heads)
        self.head_dim = self.said("attention.key_length", self.width // self.heads)

    def said(self, key: str, default: Any = None) -> Any:
        value = self.file.metadata.get(f"{self.name}.{key}", default)
        assert value is not None, key
        return value

    def tensor(self, name: str) -> Array | None:
        return self.file.tensor(name).astype(np.float64) if name in self.file.tensors else None

    def times(self, x: Array, name: str) -> Array:
        """x (time, in) through a matrix, with its bias if it has one."""
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        assert weight is not None, name
        return x @ weight.T + (0.0 if bias is None else bias)

    def norm(self, x: Array, name: str) -> Array:
        weight, bias = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
        assert weight is not None, name
        if self.name in ("gpt2", "gptneox"):
            x = x - x.mean(-1, keepdims=True)
            return (
                x / np.sqrt((x**2).mean(-1, keepdims=True) + self.said("attention.layer_norm_epsilon")) * weight + bias
            )
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.said("attention.layer_norm_rms_epsilon")) * weight

    def rope(self, x: Array, base: float, scaled: bool) -> Array:
        """x (time, heads, head_dim) turned: ggml_rope_ext."""
        dims = self.said("rope.dimension_count")
        kind, factor = self.said("rope.scaling.type", "linear"), self.said("rope.scaling.factor", 1.0)
        factors = self.tensor("rope_freqs.weight")
        freq_scale = 1.0 / factor if scaled else 1.0
        out = x.copy()
        for time in range(len(x)):
            for pair in range(dims // 2):
                turn = time * base ** (-2.0 * pair / dims) / (1.0 if factors is None else factors[pair])
                angle, size = freq_scale * turn, 1.0
                if kind == "yarn":
                    original = self.said("rope.scaling.original_context_length")
                    low, high = (
                        dims * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(base)) for beta in (32.0, 1.0)
                    )
                    low, high = max(0, math.floor(low)), min(dims - 1, math.ceil(high))
                    ramp = 1 - min(1, max(0, (pair - low) / max(0.001, high - low)))
                    angle = angle * (1 - ramp) + turn * ramp
                    size = 1.0 + 0.1 * math.log(factor)
                pairs = (2 * pair, 2 * pair + 1) if self.name in PAIRS_OF_NEIGHBOURS else (pair, pair + dims // 2)
                a, b = x[time, :, pairs[0]], x[time, :, pairs[1]]
                out[time, :, pairs[0]] = (a * math.cos(angle) - b * math.sin(angle)) * size
                out[time, :, pairs[1]] = (a * math.sin(angle) + b * math.cos(angle)) * size
        return out

    def attention(self, x: Array, layer: int) -> Array:
        block, time = f"blk.{layer}", len(x)
        if f"{block}.attn_qkv.weight" in self.file.tensors:
            q, k, v = np.split(self.times(x, f"{block}.attn_qkv"), 3, axis=-1)
        else:
            q, k, v = (self.times(x, f"{block}.attn_{part}") for part in "qkv")
        if self.name == "olmo2":
            q, k = self.norm(q, f"{block}.attn_q_norm"), self.norm(k, f"{block}.attn_k_norm")
        q = q.reshape(time, self.heads, self.head_dim)
        k, v = (part.reshape(time, self.kv_heads, self.head_dim) for part in (k, v))
        if self.name in ("qwen3", "qwen3moe", "gemma3"):
            q, k = self.norm(q, f"{block}.attn_q_norm"), self.norm(k, f"{block}.attn_k_norm")
        local = self.name == "gemma3" and (layer + 1) % 6 != 0
        if self.name != "gpt2":
            base = 10_000.0 if local else self.said("rope.freq_base", 10_000.0)
            q, k = self.rope(q, base, not local), self.rope(k, base, not local)
        row, column = np.arange(time)[:, None], np.arange(time)[None]
        seen = column <= row
        if local:
            seen &= row - column < self.said("attention.sliding_window")
        mixed = np.zeros_like(q)
        for head in range(self.heads):
            other = head // (self.heads // self.kv_heads)
            scores = np.where(seen, q[:, head] @ k[:, other].T / math.sqrt(self.head_dim), -np.inf)
            mixed[:, head] = softmax(scores) @ v[:, other]
        return self.times(mixed.reshape(time, -1), f"{block}.attn_output")

    def feed_forward(self, x: Array, layer: int) -> Array:
        block = f"blk.{layer}"
        if self.name == "qwen3moe":
            return self.experts(x, block)
        up = self.times(x, f"{block}.ffn_up")
        act = {"gpt2": gelu_tanh, "gemma3": gelu_tanh, "gptneox": gelu}.get(self.name, silu)
        if self.name in ("gpt2", "gptneox"):
            return self.times(act(up), f"{block}.ffn_down")
        return self.times(act(self.times(x, f"{block}.ffn_gate")) * up, f"{block}.ffn_down")

    def experts(self, x: Array, block: str) -> Array:
        gate, up, down = (self.tensor(f"{block}.ffn_{part}_exps.weight") for part in ("gate", "up", "down"))
        assert gate is not None and up is not None and down is not None
        chances = softmax(self.times(x, f"{block}.ffn_gate_inp"))
        out = np.zeros_like(x)
        for place, row in enumerate(x):
            chosen = np.argsort(-chances[place])[: self.said("expert_used_count")]
            for expert in chosen:
                share = chances[place, expert] / chances[place, chosen].sum()
                out[place] += share * (down[expert] @ (silu(gate[expert] @ row) * (up[expert] @ row)))
        return out

    def logits(self, ids: list[int]) -> Array:
        """(time, vocabulary)."""
        table = self.tensor("token_embd.weight")
        assert table is not None
        x = table[ids]
        if self.name == "gemma3":
            x = x * math.sqrt(self.width)
        if (places := self.tensor("position_embd.weight")) is not None:
            assert len(places) == self.said("context_length")
            x = x + places[: len(ids)]
        for layer in range(self.said("block_count")):
            x = self.block(x, layer)
        x = self.norm(x, "output_norm")
        head = self.tensor("output.weight")
        assert head is not None or self.name not in ("gptneox", "olmo2")  # whose loaders want one
        return x @ (table if head is None else head).T

    def block(self, x: Array, layer: int) -> Array:
        block = f"blk.{layer}"

        def norm(name: str) -> Callable[[Array], Array]:
            return lambda x: self.norm(x, f"{block}.{name}")

        if self.name == "olmo2":
            x = x + norm("post_attention_norm")(self.attention(x, layer))
            return x + norm("post_ffw_norm")(self.feed_forward(x, layer))
        mixed = self.attention(norm("attn_norm")(x), layer)
        if self.name == "gemma3":
            x = x + norm("post_attention_norm")(mixed)
            return x + norm("post_ffw_norm")(self.feed_forward(norm("ffn_norm")(x), layer))
        if self.name == "gptneox" and self.said("use_parallel_residual"):
            return x + mixed + self.feed_forward(norm("ffn_norm")(x), layer)
        x = x + mixed
        return x + self.feed_forward(norm("ffn_norm")(x), layer)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
