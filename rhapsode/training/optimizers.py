"""Optimizers: SGD with momentum and AdamW are torch's; Muon is here, with AdamW for what is not a hidden matrix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rhapsode.base.errors import DamagedError, MismatchError
from rhapsode.model.initialization import Group, group_of
from rhapsode.model.model import Model
from rhapsode.training.settings import TrainSettings

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""(a, b, c) of x -> a x + b x^3 + c x^5, the best for each step in turn (Amsel et al. 2025, algorithm 1)."""


def orthogonalise(matrices: Tensor, steps: int = len(POLAR_EXPRESS)) -> Tensor:
    """The nearest orthogonal matrices, roughly: all singular values near 1.

    Args:
        matrices: (count, rows, columns); not changed.

    Returns:
        (count, rows, columns).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # (count, short, long)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = x @ x.mT  # (count, short, short)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), with decoupled weight decay.

    The step of a (rows, columns) matrix is scaled by sqrt(max(1, rows / columns)), so that one learning rate serves
    all shapes and widths. Matrices of one shape are orthogonalised together.
    """

    def __init__(self, parameters: list[Tensor], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is part of torch's interface and unused."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in parameters])
                updates = orthogonalise(updates)
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average: Tensor = state["momentum_buffer"]
        average.lerp_(gradient, 1.0 - momentum)
        return gradient.lerp(average, momentum)  # Nesterov: look one step ahead


class Optimizers:
    """The optimizers of one model, with their learning rates moved together by the schedule."""

    def __init__(self, model: Model, settings: TrainSettings) -> None:
        groups: dict[Group, list[tuple[str, Tensor]]] = defaultdict(list)
        learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name, parameter in learned.items():
            groups[group_of(name)].append((name, parameter))
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in learned.items()}
        self.parts = _parts(groups, settings)
        for part in self.parts:
            for group in part.param_groups:
                group["peak"] = group["lr"]

    def set_share(self, share: float) -> None:
        """Set every learning rate to `share` of its peak."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * share

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state(self) -> dict[str, Tensor]:
        """All optimizer state as named tensors: `parameter/what`."""
        tensors = {}
        for part in self.parts:
            for parameter, state in part.state.items():
                for what, value in state.items():
                    if isinstance(value, Tensor):
                        tensors[f"{self.names[parameter]}/{what}"] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            MismatchError: the tensors belong to other parameters.
            DamagedError: a tensor has the wrong shape.
        """
        by_name: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            name, _, what = key.rpartition("/")
            by_name[name][what] = value
        if unknown := set(by_name) - set(self.names.values()):
            raise MismatchError(f"optimizer state for unknown parameters: {', '.join(sorted(unknown))}")
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    for what, value in by_name[self.names[parameter]].items():
                        if what != "step" and value.shape != parameter.shape:
                            raise DamagedError(f"optimizer state {what} of {self.names[parameter]} has a wrong shape")
                        part.state[parameter][what] = value.to(parameter.device, copy=True)  # not mapped from the file


def _parts(groups: dict[Group, list[tuple[str, Tensor]]], settings: TrainSettings) -> list[torch.optim.Optimizer]:
    def tensors(*names: Group) -> list[Tensor]:
        return [parameter for name in names for _, parameter in groups[name]]

    def adamw(parameter_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        betas = (settings.adam_beta1, settings.adam_beta2)
        filled = [group for group in parameter_groups if group["params"]]
        return torch.optim.AdamW(filled, lr=settings.learning_rate, betas=betas, eps=settings.adam_epsilon, fused=True)

    decayed = {"weight_decay": settings.weight_decay}
    plain = {"weight_decay": 0.0}
    if settings.optimizer == "muon":
        muon = Muon(
            tensors("matrix"),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        others = [
            {"params": tensors("embedding"), "lr": settings.embedding_learning_rate, **plain},
            {"params": tensors("head"), "lr": settings.head_learning_rate, **plain},
            {"params": tensors("gain"), "lr": settings.head_learning_rate, **plain},
        ]
        return [muon, adamw(others)]
    shares = [{"params": tensors("matrix", "embedding", "head"), **decayed}, {"params": tensors("gain"), **plain}]
    if settings.optimizer == "adamw":
        return [adamw(shares)]
    return [torch.optim.SGD(shares, lr=settings.learning_rate, momentum=settings.momentum)]
