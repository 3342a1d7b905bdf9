"""The optimizers, the limit of the gradient, the learning rate as a function of progress, and the moving average of
the weights."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, get_scheduler

from .config.flags import RunArguments
from .distributed.fsdp import named_tensors
from .muon import MuonWithAdamW, as_matrix


# A convolution is left to AdamW if its weight, as a matrix, has fewer rows or columns.
MIN_CONVOLUTION = 32
# The norms of the gradient whose median says how long a gradient usually is: at most, and at least.
MAX_NORMS, MIN_NORMS = 100, 5


def build_optimizer(
    module: nn.Module, run: RunArguments, learning_rate: float, muon_dtype: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """Builds the optimizer of a module's parameters that require a gradient; Muon multiplies in `muon_dtype`.

    Biases, gains of normalizations and embeddings are not decayed. Muon takes the weights of linear layers, except the
    one that ends in logits over a vocabulary, and those of convolutions between features.
    """
    betas = (run.adam_beta1, run.adam_beta2)
    parameters = [p for p in module.parameters() if p.requires_grad]
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    matrices = _hidden_weights(module) if run.optimizer == "muon" else []
    chosen = {id(p) for p in matrices}
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings | chosen]
    plain = [p for p in parameters if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": run.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if matrices:
        return MuonWithAdamW(matrices, groups, learning_rate, run.weight_decay, betas, run.muon_momentum, muon_dtype)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def _hidden_weights(module: nn.Module) -> list[Tensor]:
    models = [m for m in module.modules() if isinstance(m, PreTrainedModel)]
    to_logits = {id(output.weight) for model in models if (output := model.get_output_embeddings()) is not None}
    linear = [m for m in module.modules() if isinstance(m, nn.Linear) and id(m.weight) not in to_logits]
    convolutions = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) and _is_hidden(m)]
    return [layer.weight for layer in (*linear, *convolutions) if layer.weight.requires_grad]


def _is_hidden(convolution: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """False for the layers at both ends of a network, which have few channels on one side, and for grouped ones."""
    return convolution.groups == 1 and min(as_matrix(convolution.weight).shape) >= MIN_CONVOLUTION


def learning_rate_schedule(name: str, warmup_ratio: float) -> Callable[[float], float]:
    """Returns a function from the run's progress in [0, 1] to the factor on the learning rate.

    A function of progress rather than of the step serves runs whose length is given in seconds, and has no state.
    """
    resolution = 100_000
    warmup = round(warmup_ratio * resolution)
    # The last fifth, or what a long warmup leaves of it.
    decay = {"num_decay_steps": min(resolution // 5, resolution - warmup)} if name == "warmup_stable_decay" else None
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    (factor,) = get_scheduler(name, dummy, warmup, resolution, scheduler_specific_kwargs=decay).lr_lambdas
    return lambda progress: float(factor(progress * resolution))


class GradientLimit:
    """The norm that the next gradient is clipped to.

    Norms are recorded as they were before clipping, so a lasting change of the gradient moves the limit.

    Args:
        norm: largest norm; 0 for no such limit.
        ratio: largest multiple of the median of the last norms; 0 for no such limit.

    Attributes:
        norms: the last ones, which a checkpoint holds; empty without a ratio.
    """

    def __init__(self, norm: float, ratio: float):
        self.norm, self.ratio = norm or math.inf, ratio
        self.norms: deque[float] = deque(maxlen=MAX_NORMS)

    def next(self) -> float:
        """Returns the limit; infinity for none."""
        if len(self.norms) < MIN_NORMS:
            return self.norm
        # A loss that was flat for a while, with gradients of 0, must not stay so for ever.
        return min(self.norm, self.ratio * statistics.median(self.norms) or math.inf)

    def record(self, norm: Tensor) -> None:
        """Takes the norm of a gradient into account, if it is finite."""
        if self.ratio and math.isfinite(value := float(norm)):
            self.norms.append(value)


class EMA:
    """The exponential moving average of a model's weights, and of its buffers.

    Args:
        model: followed by `update`; its parameters and buffers must stay the same tensors from now on.
        copy: a copy of it that is to hold the average, sharded if the model is.
        decay: share of the average that is kept in each update; smaller at first, because the initial weights would
            otherwise stay in the average for long.
        prefixes: the average covers what has a name that begins with one of these; everything else is copied.
    """

    def __init__(self, model: PreTrainedModel, copy: PreTrainedModel, decay: float, prefixes: Iterable[str] = ("",)):
        self.decay = decay
        self.model = copy.eval().requires_grad_(False)
        pairs = list(zip(named_tensors(self.model).items(), named_tensors(model).values()))
        averaged = [
            (mean, value)
            for (name, mean), value in pairs
            if name.startswith(tuple(prefixes)) and mean.is_floating_point()
        ]
        if not averaged:
            raise ValueError(f"prefixes must contain the beginning of a weight's name, got {', '.join(prefixes)}.")
        self._means, self._values = [mean for mean, _ in averaged], [value for _, value in averaged]
        chosen = {id(mean) for mean in self._means}
        self._copied = [(mean, value) for (_, mean), value in pairs if id(mean) not in chosen]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average with the weights after a step, counted from 1."""
        decay = min(self.decay, step / (step + 9))
        torch._foreach_lerp_(self._means, [value.detach() for value in self._values], 1 - decay)

    @torch.no_grad()
    def updated_model(self) -> PreTrainedModel:
        """Returns the averaged model, after copying everything that is not averaged."""
        for copied, value in self._copied:
            copied.copy_(value)
        return self.model
