"""What a family is: how its configuration and its tensors' names map to ours, and what is particular to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rhapsode.base.errors import InputError
from rhapsode.model.config import (
    Activation,
    DynamicScaling,
    Kind,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    Rope,
    YarnScaling,
)
from rhapsode.model.fields import Fields


@dataclass(frozen=True)
class Packed:
    """Several of our parameters that a file keeps in one tensor, or one that it keeps in another layout.

    `parts` are our modules, or one of our parameters. Layouts of a weight, of (out, in) matrices:
    rows: one below another; columns: transposed, side by side; heads: as rows, but head by head, each head's parts
    together; vector: one vector with a 1 before its length.
    """

    name: str
    parts: tuple[str, ...]
    layout: Literal["rows", "columns", "heads", "vector"]


@dataclass(frozen=True)
class Family:
    """One public family of models."""

    name: str
    """`model_type` in its configuration."""
    kind: Kind
    architectures: tuple[str, ...]
    """Names of its whole model; the first is the one we write."""
    traits: Mapping[str, Any]
    """Fields of ModelConfig that make the family, and the defaults of those that its files choose."""
    modules: Mapping[str, str]
    """Our module, or parameter -> theirs; {layer} and {expert} stand for numbers."""
    read: Callable[[Fields], dict[str, Any]]
    """The fields of ModelConfig that a configuration sets, beyond the traits."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """The configuration that describes a shape, without what is common to all families."""
    packed: tuple[Packed, ...] = ()
    variant: Callable[[ModelConfig], Mapping[str, str]] | None = None
    """More of `modules`, where names depend on the shape."""
    prefix: str = "model."
    """What names begin with in files of the whole model, and not in files of the model without its head."""
    headless: str | None = None
    """The architecture without its head, where models of it are published for their hidden states."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Parts of names, and what files by others have in their place."""
    scaled_embeddings: bool = False
    """Whether new models multiply their token embeddings by sqrt(hidden_size)."""
    unused: tuple[str, ...] = ()
    """Ends of the names of tensors that files may hold and that nothing needs: buffers, and copies of tied weights."""

    def config(self, *sizes: int, **fields: Any) -> ModelConfig:
        """A shape of this family: its traits, the sizes in the order of ModelConfig, and what is given by name."""
        return ModelConfig(*sizes, **{"family": self.name, "kind": self.kind, **self.traits, **fields})  # type: ignore[arg-type]

    def new(self, **wanted: Any) -> ModelConfig:
        """A shape of this family, as a file of its form describes it.

        Raises:
            InputError: such a file cannot say one of the values wanted.
        """
        values = {"model_type": self.name, **self.write(self.config(**wanted))}
        described = self.config(**self.read(Fields(values, f"a new {self.name} model")))
        for field, value in wanted.items():
            if (found := getattr(described, field)) != value:
                raise InputError(
                    f"the family {self.name} cannot have {field} {value}; with the other sizes it is {found}",
                    where="model shape",
                    todo="Choose another --family, or leave it to the family.",
                )
        return described


SILU = {"silu": "silu", "swish": "silu"}
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
WRITTEN: dict[Activation, str] = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}


def read_rope(fields: Fields, context: int, *, theta: str = "rope_theta", default: float = 10_000.0) -> Rope:
    """Rotary positions, as files say them today (`rope_parameters`) or until 2025 (`rope_theta`, `rope_scaling`).

    Args:
        context: the context length, which some scalings start from.
        theta: the name of the field with the base.
        default: the base where there is none.
    """
    fields.any(theta), fields.any("rope_scaling")
    today = fields.object("rope_parameters")
    if today is not None:
        return _read_rope(today, context, today.number("rope_theta", default))
    base = fields.number(theta, default)
    scaling = fields.object("rope_scaling")
    return Rope(base) if scaling is None else _read_rope(scaling, context, base)


def _read_rope(fields: Fields, context: int, theta: float) -> Rope:
    """The rotary positions that one object describes."""
    share = fields.number("partial_rotary_factor", 1.0)
    key = "rope_type" if "rope_type" in fields else "type"
    kinds = {name: name for name in ("default", "linear", "dynamic", "yarn", "llama3")}
    kind = fields.choice(key, kinds, "default")
    if kind == "default":
        return Rope(theta, share)
    factor = fields.number("factor")
    if kind == "linear":
        return Rope(theta, share, LinearScaling(factor))
    if kind == "dynamic":
        return Rope(theta, share, DynamicScaling(factor))
    original = fields.size("original_max_position_embeddings", context)
    if kind == "llama3":
        low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
        if high <= low:
            raise fields.wrong("high_freq_factor", f"must be above low_freq_factor, {low:g}", high)
        return Rope(theta, share, Llama3Scaling(factor, low, high, original))
    attention = fields.number("attention_factor") if "attention_factor" in fields else None
    if attention is None and "mscale" in fields and "mscale_all_dim" in fields:
        grown = 0.1 * max(0.0, _logarithm(factor))
        attention = (grown * fields.number("mscale") + 1) / (grown * fields.number("mscale_all_dim") + 1)
    yarn = YarnScaling(
        factor,
        original,
        fields.number("beta_fast", 32.0),
        fields.number("beta_slow", 1.0),
        attention,
        fields.flag("truncate", True),
    )
    return Rope(theta, share, yarn)


def _logarithm(factor: float) -> float:
    import math

    return math.log(factor)


def write_scaling(rope: Rope) -> dict[str, Any] | None:
    """The `rope_scaling` field; None where there is no scaling."""
    scaling = rope.scaling
    if scaling is None:
        return None
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, DynamicScaling):
        return {"rope_type": "dynamic", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    values: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
    }
    return values if scaling.attention_factor is None else values | {"attention_factor": scaling.attention_factor}


def read_windows(fields: Fields, layers: int, window: int, default: tuple[bool, ...]) -> tuple[int, ...]:
    """The window of each layer, 0 where it sees everything, from `layer_types`, else by `default` (True: a window)."""
    types = fields.several("layer_types", layers)
    if types is not None:
        known = {"full_attention": False, "sliding_attention": True}
        for kind in types:
            if kind not in known:
                raise fields.wrong("layer_types", f"must be of {' and '.join(known)}", kind)
        default = tuple(known[kind] for kind in types)
    return tuple(window if slides else 0 for slides in default) if any(default) else ()
