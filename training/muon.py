"""The Muon optimizer: momentum, orthogonalized (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

torch.optim.Muon multiplies in bf16 on every device, one matrix after the other. Here the caller chooses the precision,
because processors without bf16 instructions are ten times slower at it, and matrices of one shape are multiplied
together.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from .distributed.fsdp import laid_out_like


# Polar Express (Amsel et al. 2025, https://arxiv.org/abs/2505.16932): the odd polynomials a x + b x^3 + c x^5 whose
# composition is closest to 1 on [0.003, 0.99], within 0.2. (torch's five steps of one polynomial are within 0.32.)
POLAR_EXPRESS = (
    (8.38367, -24.7659, 18.3571),
    (4.04342, -3.0114, 0.569512),
    (3.50557, -2.62665, 0.525719),
    (2.49012, -1.83428, 0.436835),
)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Returns the nearest matrices with orthonormal rows or columns, approximately: U V^T of G = U S V^T.

    Args:
        matrices: (batch, rows, columns), in the precision in which to multiply.
    """
    x = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    rows, columns = x.shape[-2:]
    # The polynomials were fitted with a margin of 1 %, because rounding can push a singular value beyond 1.
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if columns >= 2 * rows and x.dtype != torch.bfloat16:
        # A long matrix is only needed at both ends: x_k = p_k(x x^T) x, and p_k is as small as x x^T. bf16 is too
        # coarse for it: x x^T has the squares of the singular values.
        x = _polynomial_of_gram(x @ x.mT) @ x
    else:
        for a, b, c in POLAR_EXPRESS:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if matrices.shape[-2] <= matrices.shape[-1] else x.mT


def _polynomial_of_gram(gram: Tensor) -> Tensor:
    """The composition of the polynomials as one matrix, (batch, rows, rows), given x x^T of the same shape.

    All of these matrices are polynomials of one symmetric matrix, so they commute.
    """
    product: Tensor | None = None
    for index, (a, b, c) in enumerate(POLAR_EXPRESS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if index < len(POLAR_EXPRESS) - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for matrices and AdamW for all else.

    It is one optimizer so that gradient scaling, clipping and checkpoints need not know that there are two. Muon's
    update is scaled to the size of AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so both share a
    learning rate.

    Args:
        matrices: optimized by Muon; sharded or not. Weights of convolutions are read as matrices.
        others: parameter groups of AdamW.
        lr: the learning rate of both.
        weight_decay: decoupled, of the matrices.
        betas: of AdamW.
        momentum: of Muon, the share of the average of past gradients that is kept at each step.
        dtype: in which the matrices are multiplied.
    """

    def __init__(
        self,
        matrices: list[Tensor],
        others: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        momentum: float,
        dtype: torch.dtype,
    ):
        self.momentum, self.dtype = momentum, dtype
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, fused=True)
        muon = {"params": matrices, "lr": lr, "weight_decay": weight_decay}
        super().__init__([muon, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("closure must be None, got a function. Compute loss and gradient before step().")
        self._step_muon(self.param_groups[0])
        # Loading a state replaces both attributes, so they are handed down at every step.
        self._adamw.state, self._adamw.param_groups = self.state, self.param_groups[1:]
        self._adamw.step()

    def _step_muon(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        updates = torch._foreach_lerp(gradients, momenta, self.momentum)  # Nesterov's

        by_shape: dict[torch.Size, list[int]] = {}
        for index, parameter in enumerate(parameters):
            by_shape.setdefault(parameter.shape, []).append(index)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for shape, indices in by_shape.items():
            whole = torch.stack([as_matrix(_whole(updates[index])).to(self.dtype) for index in indices])
            orthogonal = orthogonalize(whole).float().unflatten(2, shape[1:])
            # The root mean square of AdamW's updates is about 0.2.
            rate = 0.2 * math.sqrt(max(whole.shape[1:])) * group["lr"]
            chosen = [parameters[index] for index in indices]
            torch._foreach_add_(
                chosen, [laid_out_like(update, p) for update, p in zip(orthogonal, chosen)], alpha=-rate
            )


def as_matrix(weight: Tensor) -> Tensor:
    """A weight as a matrix: that of a convolution has a row for each entry of its first dimension."""
    return weight.flatten(1)


def _whole(tensor: Tensor) -> Tensor:
    """A gradient as one tensor. Every process gets the rows that the others hold."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
