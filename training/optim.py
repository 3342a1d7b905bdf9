"""Optimizers, the learning rate as a function of progress, and the moving average of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, get_scheduler

from .config.flags import RunArguments
from .distributed.fsdp import named_tensors


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for matrices, AdamW for all else, as one.

    One optimizer, because gradient scaling, clipping and checkpoints then need not know that there are two. Muon's
    update is scaled to the size of AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so that both share a
    learning rate. As with torch's fused optimizers, an attribute `found_inf`, (), that is not 0 makes a step change
    nothing, and the device decides it alone.
    """

    def __init__(self, matrices: list[Tensor], others: list[dict[str, Any]], lr: float, weight_decay: float,
                 betas: tuple[float, float]):  # fmt: skip
        self._muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("MuonWithAdamW takes no closure: compute the loss and its gradient before step().")
        # Loading a state replaces both attributes, so they are handed down anew each time.
        self._muon.state = self._adamw.state = self.state
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.step()
        self._adamw.step()


def build_optimizer(
    module: nn.Module, args: RunArguments, learning_rate: float | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a module's parameters that have a gradient.

    Biases, gains of normalisations and embeddings are not decayed; muon takes the weights of linear layers, without
    the one that ends in logits over a vocabulary.
    """
    lr = args.learning_rate if learning_rate is None else learning_rate
    betas = (args.adam_beta1, args.adam_beta2)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in parameters.values() if p.ndim >= 2 and id(p) not in embeddings]
    plain = [p for p in parameters.values() if p.ndim < 2 or id(p) in embeddings]
    if args.optimizer == "muon":
        matrices = _hidden_matrices(module)
        chosen = {id(p) for p in matrices}
        decayed = [p for p in decayed if id(p) not in chosen]
        if matrices:
            return MuonWithAdamW(matrices, _groups(decayed, plain, args), lr, args.weight_decay, betas)
    return torch.optim.AdamW(_groups(decayed, plain, args), lr=lr, betas=betas, fused=True)


def _groups(decayed: list[nn.Parameter], plain: list[nn.Parameter], args: RunArguments) -> list[dict[str, Any]]:
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _hidden_matrices(module: nn.Module) -> list[Tensor]:
    models = [m for m in module.modules() if isinstance(m, PreTrainedModel)]
    to_logits = {id(output.weight) for model in models if (output := model.get_output_embeddings()) is not None}
    linears = [m for m in module.modules() if isinstance(m, nn.Linear) and id(m.weight) not in to_logits]
    return [linear.weight for linear in linears if linear.weight.requires_grad]


def learning_rate_schedule(name: str, warmup_ratio: float) -> Callable[[float], float]:
    """Progress of the run in [0, 1] -> factor on the learning rate.

    A function of progress, not of the step, serves runs whose length is given in seconds, and leaves nothing to save.
    """
    resolution = 100_000
    warmup = round(warmup_ratio * resolution)
    # The last fifth, or what a long warmup leaves of it.
    specific = (
        {"num_decay_steps": min(resolution // 5, resolution - warmup)} if name == "warmup_stable_decay" else None
    )
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    (factor,) = get_scheduler(name, dummy, warmup, resolution, scheduler_specific_kwargs=specific).lr_lambdas
    return lambda progress: float(factor(progress * resolution))


class EMA:
    """The exponential moving average of a model's weights, and of its buffers.

    Args:
        model: followed by `update`; its parameters and buffers must stay the same tensors from now on.
        copied: a copy of it that is to hold the average, spread over processes if the model is.
        decay: share of the average that stays in each update; smaller during the first ones, which would otherwise
            keep the initial weights alive.
        prefixes: names of what is averaged begin with one of these; everything else is copied.
    """

    def __init__(self, model: PreTrainedModel, copied: PreTrainedModel, decay: float, prefixes: Iterable[str] = ("",)):
        self.decay = decay
        self.model = copied.eval().requires_grad_(False)
        pairs = list(zip(named_tensors(self.model).items(), named_tensors(model).values()))
        averaged = [
            (mean, value)
            for (name, mean), value in pairs
            if name.startswith(tuple(prefixes)) and mean.is_floating_point()
        ]
        if not averaged:
            raise ValueError(f"prefixes: expected the beginning of a weight's name, got {', '.join(prefixes)}")
        self._means, self._values = [mean for mean, _ in averaged], [value for _, value in averaged]
        chosen = {id(mean) for mean in self._means}
        self._copied = [(mean, value) for (_, mean), value in pairs if id(mean) not in chosen]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after a step, counted from 1, into the average."""
        decay = min(self.decay, step / (step + 9))
        torch._foreach_lerp_(self._means, [value.detach() for value in self._values], 1 - decay)

    @torch.no_grad()
    def published(self) -> PreTrainedModel:
        """The averaged model, everything else brought up to date."""
        for copied, value in self._copied:
            copied.copy_(value)
        return self.model
