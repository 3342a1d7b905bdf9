"""The usual small GPT in a bare PyTorch loop: what the time of `hfgen train gpt` to a loss is measured against.

It is GPT-2 (Radford et al. 2019) with the settings of tutorials that train on characters of Shakespeare with a CPU: 4
layers of 128 features and 4 heads, a context of 64, and 2,000 steps of AdamW with 12 windows each; learned positions,
LayerNorm, GELU, tied embeddings, no biases and no dropout. The rate rises to 1e-3 in 100 steps and falls to 1e-4 along
a cosine. The precision is fp32. `training.tools.gpt` runs it.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..measuring.runs import answer_task


@dataclass(frozen=True)
class Setting:
    """Of the model and its training; the defaults are those of the tutorials.

    Attributes:
        layers, width, heads, context: of the model.
        batch_size: windows in a step.
        steps, warmup: of the training.
        rate, last_rate: of AdamW, at its peak and at the end.
        weight_decay: of the matrices.
        clip: longest gradient.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 64
    batch_size: int = 12
    steps: int = 2000
    warmup: int = 100
    rate: float = 1e-3
    last_rate: float = 1e-4
    weight_decay: float = 0.1
    clip: float = 1.0


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, setting: Setting):
        super().__init__()
        width = setting.width
        self.heads = setting.heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width, False), nn.Linear(width, width, False)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width, False), nn.Linear(4 * width, width, False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.attention_in(self.attention_norm(x)).chunk(3, dim=2)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class BareGPT(nn.Module):
    """Token ids (batch, length) -> logits (batch, length, vocab_size)."""

    def __init__(self, vocab_size: int, setting: Setting):
        super().__init__()
        self.tokens, self.positions = (nn.Embedding(n, setting.width) for n in (vocab_size, setting.context))
        self.blocks = nn.Sequential(*(Block(setting) for _ in range(setting.layers)))
        self.norm = nn.LayerNorm(setting.width, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                is_added = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * setting.layers) if is_added else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


def read_text(path: str | Path) -> tuple[Tensor, Tensor, int]:
    """Returns the characters of the first nine tenths of a text and of the rest, as ids, and the number of kinds."""
    text = Path(path).read_text(encoding="utf-8")
    kinds = {character: index for index, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([kinds[character] for character in text])
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:], len(kinds)


@torch.no_grad()
def evaluate(model: nn.Module, ids: Tensor, context: int, batch_size: int = 128) -> float:
    """Returns the mean cross-entropy of all ids but the first, in nats, from windows without overlap."""
    whole = (len(ids) - 1) // context * context
    parts = [(ids[:whole].view(-1, context), ids[1 : whole + 1].view(-1, context))] if whole else []
    if whole < len(ids) - 1:
        parts.append((ids[None, whole:-1], ids[None, whole + 1 :]))
    total = 0.0
    for inputs, labels in parts:
        for rows, targets in zip(inputs.split(batch_size), labels.split(batch_size)):
            total += F.cross_entropy(model(rows).flatten(0, 1), targets.flatten(), reduction="sum").item()
    return total / (len(ids) - 1)


def rate_at(step: int, setting: Setting) -> float:
    """The learning rate of a step, counted from 0."""
    if step < setting.warmup:
        return setting.rate * (step + 1) / (setting.warmup + 1)
    share = (step - setting.warmup) / (setting.steps - setting.warmup)
    return setting.last_rate + 0.5 * (1 + math.cos(math.pi * share)) * (setting.rate - setting.last_rate)


def train(path: str | Path, target: float, seed: int, setting: Setting, first_look: float = 0.5) -> dict[str, Any]:
    """Trains the model; evaluations in the middle are not part of any time, but the last one is.

    Args:
        path: of the text.
        target: loss whose time is taken.
        seed: of weights and windows.
        setting: of model and training.
        first_look: share of the steps before the first evaluation; from then on, there is one each twentieth.

    Returns:
        loss, num_parameters, steps; seconds of the training and of one evaluation; the losses by step, and
        seconds_to_target: of training until an evaluation found the target, and of that evaluation, or None.
    """
    torch.manual_seed(seed)
    train_ids, eval_ids, vocab_size = read_text(path)
    model = BareGPT(vocab_size, setting)
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    gains = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": setting.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=setting.rate, betas=(0.9, 0.99))
    offsets = torch.arange(setting.context + 1)
    every = max(1, setting.steps // 20)
    losses: dict[int, float] = {}
    seconds, seconds_to_target = 0.0, None
    for step in range(setting.steps):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, setting)
        starts = torch.randint(len(train_ids) - setting.context, (setting.batch_size, 1))
        windows = train_ids[starts + offsets]
        logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
        optimizer.step()
        seconds += time.perf_counter() - started
        done = step + 1
        if done == setting.steps or (done % every == 0 and done >= first_look * setting.steps):
            started = time.perf_counter()
            losses[done] = evaluate(model, eval_ids, setting.context)
            of_evaluation = time.perf_counter() - started
            if seconds_to_target is None and losses[done] <= target:
                seconds_to_target = seconds + of_evaluation
    return {"loss": losses[setting.steps], "losses": losses, "steps": setting.steps, "seconds_trained": seconds,
            "seconds_of_evaluation": of_evaluation, "seconds_to_target": seconds_to_target,
            "num_parameters": sum(weight.numel() for weight in model.parameters()),
            "threads": torch.get_num_threads()}  # fmt: skip


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Trains as the task says; adds the seconds that the process had taken by then, for imports above all."""
    import psutil

    started = psutil.Process().create_time()
    setting = Setting(**task["setting"])
    before = time.time() - started
    found = train(task["path"], task["target"], task["seed"], setting)
    return {**found, "seconds_of_start": before, "setting": asdict(setting)}


if __name__ == "__main__":
    answer_task(__doc__, measure)
