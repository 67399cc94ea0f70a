"""Who computes a model's steps: the kernels where they can, torch everywhere else.

why_not = refused(source); step = kernel_step(source, blocks=100)
"""

from __future__ import annotations

import os
import platform
from functools import cache

import torch

from rhapsode.base.errors import InputError
from rhapsode.base.progress import note
from rhapsode.inference.cache_type import CacheType
from rhapsode.inference.step import Step
from rhapsode.model.decoder import Decoder
from rhapsode.model.packed import PackedModel

SWITCH = "RHAPSODE_KERNELS"
"""Set to 0 in the environment, kernels are not used."""
NEEDED = ("avx2", "fma", "f16c")
"""What they need of a processor, by LLVM's names."""


@cache
def refused_by_machine() -> str | None:
    """Why kernels cannot run on this machine; None where they can."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"kernels are for x86-64 processors, not {platform.machine()}"
    try:
        from rhapsode.inference.kernels.vectors import features
    except ImportError as error:
        return f"Numba cannot be imported ({error})"
    missing = [name for name in NEEDED if not features().get(name)]
    return f"the processor has no {', '.join(missing)}" if missing else None


def refused(source: Decoder | PackedModel, device: torch.device | str = "cpu") -> str | None:
    """Why kernels cannot compute the steps of a model; None where they can.

    Args:
        device: where a packed model is wanted; a decoder is where it is.
    """
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if isinstance(source, Decoder):
        device = source.embedding.weight.device
        if source.embedding.weight.dtype != torch.float32:
            return "the weights are not in fp32"
    if torch.device(device).type != "cpu":
        return f"the model is on {device}"
    why = refused_by_machine()
    if why is None:
        from rhapsode.inference.kernels.layout import unsupported

        why = unsupported(source.config)
    return why


def kernel_step(source: Decoder | PackedModel, blocks: int, cache_type: CacheType = "float32") -> Step:
    """The step of a model that is not refused; says so where it must first be compiled."""
    from rhapsode.inference.kernels.compiled import is_kept
    from rhapsode.inference.kernels.step import KernelStep

    if not is_kept("program.run"):
        note("compiling for this processor, once: half a minute or less")
    step = KernelStep(source, blocks, cache_type=cache_type)
    step.warm_up()
    return step


def check_cache_type(cache_type: CacheType, why: str) -> None:
    """Refuse what torch's steps do not keep."""
    if cache_type != "float32":
        raise InputError(f"a cache in {cache_type} is for the kernels, and {why}", todo="Leave --cache-type out.")
