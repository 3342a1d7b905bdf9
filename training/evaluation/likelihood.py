"""The importance-weighted likelihood of all images, estimated in a given time.

The bound IW-K = E[log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)], z_k ~ q(z|x) (Burda et al. 2015,
https://arxiv.org/abs/1509.00519) takes K passes through the decoder for each image. What more samples add to a bound
differs less between images than the bound itself, and the less, the more samples there are already. So IW-1000 is
estimated in levels (Giles 2008, "Multilevel Monte Carlo path simulation"): as

    IW-1  +  (IW-10 - IW-1)  +  (IW-100 - IW-10)  +  (IW-1000 - IW-100),

where IW-1 is averaged over all images, and each difference over a random subset of them, which is smaller the more
samples it takes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ..distributed.processes import Processes
from ..objective import Metrics, Steps
from ..randomness import derive_seed


# Ratio between the samples of two levels.
FACTOR = 10
# A standard deviation over fewer images would say little.
FEWEST_IMAGES = 16
# Blocks that each process times; the first one also pays for memory and generated code.
TIMED_BLOCKS = 4
# Of the time, to plan with; the rest is for what the timed blocks do not show.
SHARE_PLANNED = 0.9
# Decoded at once: fits in the cache of a processor, keeps a GPU busy.
BLOCK_ON_CPU, BLOCK_ON_GPU = 1024, 4096

ReadImages = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class ImportanceSampler(Protocol):
    """A model of images whose likelihood can be estimated."""

    def log_importance_weights(
        self,
        pixel_values: Tensor,
        num_samples: int,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        chunk_size: int = 1024,
    ) -> Tensor:
        """Returns log p(x|z) + log p(z) - log q(z|x) in nats, (num_samples, batch), of samples z ~ q(z|x)."""
        ...


@dataclass(frozen=True)
class Level:
    """A part of the estimate: IW-K_0 of all images, or the difference between two bounds on a subset of them.

    Attributes:
        num_samples: K_l.
        num_images: in the subset.
        group_size: samples whose mean weight is all that is kept, a divisor of num_samples. In a difference, it is the
            K_{l-1} of the level before.
    """

    num_samples: int
    num_images: int
    group_size: int

    def bounds(self, log_weights: Tensor) -> Tensor:
        """IW-group_size of every group of samples, float64, (groups, images)."""
        return log_mean_exp(log_weights.double().unflatten(0, (-1, self.group_size)), dim=1)


def round_samples(num_samples: int) -> int:
    """Rounds K up to a multiple of ten, so that there is a level below it; 0 stays 0."""
    return math.ceil(num_samples / FACTOR) * FACTOR


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    return values.logsumexp(dim) - math.log(values.shape[dim])


def plan_levels(num_images: int, num_samples: int, affordable: float) -> list[Level]:
    """Returns the levels of an estimate that costs no more than a number of samples, if there is one.

    The samples of the levels are the powers of ten that divide K, and K. The first level, of all images, is the
    highest that leaves half of the time to those above it, or K if there is time for that. Each of those above takes
    twice as long as the one below it, and so has about a fifth as many images.

    These ratios are fixed: if they depended on what is measured, the estimate would be biased. The best numbers of
    images are in proportion to sqrt(variance / cost). The variance of the differences was 5.2, 1.5 and 0.95 nats^2 for
    a VAE after 40 s of training, 2.4, 0.6 and 0.14 for a better one, and 2.1, 0.6 and 0.3 for a Ladder VAE. With the
    best numbers for each of them, its standard error would be 2 % smaller at most.

    Whatever the time, every image gets a sample and 16 images get all of them.

    Args:
        num_images: in the evaluation split.
        num_samples: K, a multiple of ten.
        affordable: number of passes through the decoder that there is time for. Encoding an image counts as one more.
    """
    counts = [FACTOR**power for power in range(10) if FACTOR**power < num_samples and num_samples % FACTOR**power == 0]
    counts.append(num_samples)

    def cost(count: int) -> int:
        return num_images * (count + 1)

    if cost(num_samples) <= affordable:
        return [Level(num_samples, num_images, num_samples // FACTOR)]
    first = max((count for count in counts[:-1] if cost(count) <= affordable / 2), default=1)
    counts = [count for count in counts if count >= first]
    share = (affordable - cost(first)) / (2 ** (len(counts) - 1) - 1)
    levels = [Level(first, num_images, first)]
    for power, (below, count) in enumerate(pairwise(counts)):
        images = int(2**power * share / (count + 1))
        levels.append(Level(count, min(num_images, max(FEWEST_IMAGES, images)), below))
    return levels


def combine(bounds: list[Tensor], num_images: int) -> tuple[float, float]:
    """Returns the estimated mean of IW-K over all images, and its standard error, in nats.

    The standard error is that of the estimate around the expectation of IW-K averaged over these N images. It does not
    include how much another test set would differ. Levels have their own subsets and samples, so their errors are
    independent, and variances add. That of the mean over n images is

        (1 - n/N) / n * (variance over the images of the subset) + 1/N * (mean variance from an image's samples),

    as for any draw without replacement of numbers that are noisy themselves. The latter variance is that of the groups
    of the second level for the first level, and else from the jackknife over groups.

    If a few images have much larger differences than the others, as with a model that fits them badly, subsets without
    such images give an error that is too small: two standard errors then cover less than 95 % of cases.

    Args:
        bounds: of each level, what [`Level.bounds`] returns for the images of its subset.
        num_images: N.
    """
    first, *others = bounds
    noise = others[0].var(0) if others else jackknife_variance(log_mean_exp, first)
    estimate, variance = log_mean_exp(first).mean(), noise.mean() / num_images
    for groups in others:
        differences, noise = gain_from_joining(groups), jackknife_variance(gain_from_joining, groups)
        count = len(differences)
        estimate = estimate + differences.mean()
        variance = variance + (1 - count / num_images) * differences.var() / count + noise.mean() / num_images
    return float(estimate), float(variance.sqrt())


def gain_from_joining(groups: Tensor) -> Tensor:
    """How much higher the bound from all samples of an image is than those of its groups are on average, (images,)."""
    return log_mean_exp(groups) - groups.mean(0)


def jackknife_variance(statistic: Callable[[Tensor], Tensor], groups: Tensor) -> Tensor:
    """The variance of a statistic over repetitions with other samples, (images,), from leaving out each group in turn.

    It does without the variance of the weights, which may be infinite, and on average it is not too small (Efron &
    Stein 1981, "The jackknife estimate of variance").
    """
    count = len(groups)
    without = torch.stack([statistic(torch.cat([groups[:i], groups[i + 1 :]])) for i in range(count)])
    return without.var(0, correction=0) * (count - 1)


class LikelihoodEstimator:
    """Estimates the mean of IW-K over all images in a given time; a [`training.objective.Estimator`].

    The first images of the last level show what a sample costs on this machine, in the slowest process if there are
    several; that determines the sizes of the levels. Given the sizes, the estimate repeats: images are taken in an
    order, and their samples drawn from seeds, that depend on nothing else.

    Args:
        model: draws the samples.
        read: returns the pixels of images and, for a conditional model, their labels, given their indices.
        num_images: in the evaluation split.
        num_samples: K, a multiple of ten.
        max_seconds: for the whole estimate; 0 for no limit, and so the plain IW-K of all images.
        seed: of the run.
        processes: of the run; each measures its share of the images.
        device: of this process.
        autocast: the precision in which the model runs. Weights and sums over samples are in float32 and float64.
        clock: in seconds.
    """

    def __init__(
        self,
        model: ImportanceSampler,
        read: ReadImages,
        num_images: int,
        num_samples: int,
        max_seconds: float,
        seed: int,
        processes: Processes,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if num_samples < FACTOR or num_samples % FACTOR:
            raise ValueError(f"num_samples must be a multiple of {FACTOR}, got {num_samples}. Round it up.")
        self.model, self.read = model, read
        self.num_images, self.num_samples = num_images, num_samples
        self.max_seconds, self.seed = max_seconds, seed
        self.processes, self.device, self.autocast, self.clock = processes, device, autocast, clock
        self.block = BLOCK_ON_CPU if device.type == "cpu" else BLOCK_ON_GPU
        self.levels: list[Level] = []
        self.seconds = 0.0
        self._bounds: list[list[Tensor]] = []

    def steps(self) -> Steps:
        """Does the work of this process in pieces; see [`training.objective.Estimator`]."""
        started = self.clock()
        timed = self._blocks(self.num_samples, self.num_images)[: TIMED_BLOCKS * self.processes.count]
        log_weights, costs = [], []
        for index in self._own(timed):
            yield 0.0
            if index is not None:
                before = self.clock()
                log_weights.append(self._weigh(timed[index], self.num_samples, index))
                costs.append((self.clock() - before) / log_weights[-1].numel())
        cost = yield statistics.mean(costs[1:] or costs or [0.0])

        self.levels = self._plan(cost, sum(map(len, timed)))
        for level in self.levels:
            is_timed = level.num_samples == self.num_samples
            bounds = [level.bounds(values) for values in log_weights] if is_timed else []
            blocks = self._blocks(level.num_samples, level.num_images)
            for index in self._own(blocks, start=len(timed) if is_timed else 0):
                yield 0.0
                if index is not None:
                    bounds.append(level.bounds(self._weigh(blocks[index], level.num_samples, index)))
            self._bounds.append(bounds)
        self.seconds = self.clock() - started

    def result(self) -> Metrics:
        """Returns the metric nll, and in the details how it was measured. Collective call, after the steps of all."""
        of_processes = self.processes.gather(self._bounds)
        bounds = [torch.cat([block for blocks in of_level for block in blocks], 1) for of_level in zip(*of_processes)]
        estimate, error = combine(bounds, self.num_images)
        first, last = self.levels[0], self.levels[-1]
        others = self.num_images - last.num_images
        details = {
            **({"nll_standard_error": error} if math.isfinite(error) else {}),
            "nll_samples": last.num_samples,
            "nll_images": last.num_images,
            "nll_other_images": others,
            "nll_other_samples": first.num_samples if others else 0,
            "nll_seconds": round(self.seconds, 1),
        }
        return Metrics({"nll": -estimate}, details=details)

    def _plan(self, cost: float, timed_images: int) -> list[Level]:
        """The levels for a cost in seconds per sample; images that were timed have all samples already."""
        affordable = math.inf
        if self.max_seconds and cost:
            affordable = SHARE_PLANNED * self.max_seconds / cost * self.processes.count
        *others, last = plan_levels(self.num_images, self.num_samples, affordable)
        return [*others, replace(last, num_images=max(last.num_images, timed_images))]

    def _blocks(self, num_samples: int, num_images: int) -> tuple[Tensor, ...]:
        """The indices of a level's images, in blocks whose samples are decoded together."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "likelihood", "order", num_samples))
        order = torch.randperm(self.num_images, generator=generator)
        return order[:num_images].split(max(1, self.block // num_samples))

    def _own(self, blocks: Sequence[Tensor], start: int = 0) -> Iterator[int | None]:
        """Yields the numbers of the blocks that are this process's, and None in a round without one: every process
        takes part in as many rounds."""
        for first in range(start, len(blocks), self.processes.count):
            index = first + self.processes.rank
            yield index if index < len(blocks) else None

    def _weigh(self, rows: Tensor, num_samples: int, block: int) -> Tensor:
        """Log-weights of samples of some images, (samples, images), on the CPU."""
        pixels, labels = self.read(rows)
        generator = torch.Generator(self.device)
        generator.manual_seed(derive_seed(self.seed, "likelihood", num_samples, block))
        with self.autocast():
            weights = self.model.log_importance_weights(pixels, num_samples, labels, generator, self.block)
        return weights.float().cpu()
