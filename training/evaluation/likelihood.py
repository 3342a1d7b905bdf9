"""The importance-weighted likelihood of all images, estimated in a given time.

The bound IW-K = E[log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x)], z_k ~ q(z|x) (Burda et al. 2015,
https://arxiv.org/abs/1509.00519) takes K passes through the decoder for each image. What it adds to the bound with a
few samples, K0, differs much less between images than the bound itself. So every image gets a few samples, a random
subset gets all K, and the mean difference between the two bounds on the subset is added to the mean of the cheap one:
IW-K0 is a control variate for IW-K.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..distributed.processes import Processes
from ..objective import Metrics, Steps
from ..randomness import derive_seed


ROUNDING = 10
# Samples per image of the cheap bound: the first of these that leaves half of the time to the subset.
GROUP_SIZES = (10, 5, 2, 1)
# A standard deviation over fewer images would say little.
FEWEST_FULL_IMAGES = 16
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
class Sizes:
    """What an estimate draws.

    Attributes:
        num_samples: K, a multiple of group_size and at least twice as many.
        full_images: number of images that get all K samples.
        group_size: K0, the samples that every other image gets.
    """

    num_samples: int
    full_images: int
    group_size: int


def round_samples(num_samples: int) -> int:
    """Rounds K up to a multiple of ten, so that all samples of an image are whole groups of any size; 0 stays 0."""
    return math.ceil(num_samples / ROUNDING) * ROUNDING


def choose_sizes(num_images: int, num_samples: int, affordable: float) -> Sizes:
    """Returns the largest estimate that costs no more than a number of samples, if there is one.

    Whatever the time, every image gets a sample and 16 images get all of them.

    Args:
        num_images: in the evaluation split.
        num_samples: K, a multiple of ten.
        affordable: number of passes through the decoder that there is time for. Encoding an image counts as one more.
    """
    groups = [size for size in GROUP_SIZES if 2 * size <= num_samples]
    if num_images * (num_samples + 1) <= affordable:
        return Sizes(num_samples, num_images, groups[0])
    group_size = next((size for size in groups if num_images * (size + 1) <= affordable / 2), 1)
    full = int((affordable - num_images * (group_size + 1)) / (num_samples - group_size))
    return Sizes(num_samples, min(num_images, max(FEWEST_FULL_IMAGES, full)), group_size)


@dataclass(frozen=True)
class FullImages:
    """Both bounds of images with all samples, and the variance that comes from the samples: float64, (images,).

    Attributes:
        bound: IW-K from all samples of the image.
        cheap: mean of IW-K0 over the groups of K0 samples.
        var_bound, var_cheap, covariance: of these two numbers over repetitions with other samples.
    """

    bound: Tensor
    cheap: Tensor
    var_bound: Tensor
    var_cheap: Tensor
    covariance: Tensor

    @classmethod
    def from_log_weights(cls, log_weights: Tensor, group_size: int) -> FullImages:
        """Computes the bounds, and their variances by the jackknife over the groups.

        The jackknife (Efron & Stein 1981, "The jackknife estimate of variance") does without the variance of the
        weights, which may be infinite, and on average it is not too small.

        Args:
            log_weights: (samples, images); samples are a multiple of group_size, and at least twice as many.
            group_size: K0.
        """
        groups = log_weights.double().unflatten(0, (-1, group_size)).logsumexp(1) - math.log(group_size)
        count = len(groups)
        nothing = groups.new_full((1, groups.shape[1]), -math.inf)
        before = torch.cat([nothing, groups.logcumsumexp(0)[:-1]])
        after = torch.cat([groups.flip(0).logcumsumexp(0).flip(0)[1:], nothing])
        cheap = groups.mean(0)
        # Without each of the groups in turn
        bounds = torch.logaddexp(before, after) - math.log(count - 1)
        cheaps = (count * cheap - groups) / (count - 1)
        off_bound, off_cheap = bounds - bounds.mean(0), cheaps - cheaps.mean(0)

        def summed(products: Tensor) -> Tensor:
            return products.sum(0) * (count - 1) / count

        return cls(
            groups.logsumexp(0) - math.log(count), cheap,
            summed(off_bound.square()), summed(off_cheap.square()), summed(off_bound * off_cheap),
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: list[FullImages]) -> FullImages:
        """Returns the images of all parts."""
        columns = zip(*(vars(part).values() for part in parts))
        return cls(*(torch.cat(column) for column in columns))


def combine(full: FullImages, cheap: Tensor, sizes: Sizes) -> tuple[float, float]:
    """Returns the estimated mean of IW-K over all images, and its standard error, in nats.

    With N images, of which a random subset S of n has K samples, b = IW-K and c = the mean of IW-K0 over the groups on
    S, and a = IW-K0 from one group elsewhere, the estimate is

        (sum_{S} c + sum_{not S} a) / N + mean_S (b - c).

    Where S is all images, it is the mean of b. The standard error is that of the estimate around the expectation of
    IW-K averaged over these N images. It does not include how much another test set would differ. Given S, images are
    independent and c and a are unbiased for the expected IW-K0, so the error is a sum of three uncorrelated parts:

    - the samples of images outside S: (N - n) / N^2 times the mean variance of a, which is that of c times the number
      of groups;
    - the samples of images in S, each of which enters as (b - (1 - n/N) c) / n: 1/n times its mean variance, in which
      b and c share their samples;
    - the choice of S among N images without replacement: (1 - n/N) / n times the variance, over images, of the
      expected gap E[b - c]. The variance of the measured gaps also contains that of the samples, which is subtracted.

    If S is small and a few images have much larger gaps than the others, as with a model that fits them badly, a draw
    of S without such images gives an error that is too small: two standard errors then cover less than 95 % of cases.

    Args:
        full: the images in S.
        cheap: a, (N - n,).
        sizes: that both were measured with.
    """
    n, total = len(full.bound), len(full.bound) + len(cheap)
    left_out = 1 - n / total
    gap = full.bound - full.cheap
    estimate = (full.cheap.sum() + cheap.double().sum()) / total + gap.mean()

    groups = sizes.num_samples // sizes.group_size
    of_others = len(cheap) / total**2 * groups * full.var_cheap.mean()
    of_full = (full.var_bound - 2 * left_out * full.covariance + left_out**2 * full.var_cheap).mean() / n
    variance = of_others + of_full
    if len(cheap):
        noise = (full.var_bound - 2 * full.covariance + full.var_cheap).mean()
        variance = variance + left_out * (gap.var() - noise).clamp(min=0) / n
    return float(estimate), float(variance.clamp(min=0).sqrt())


class LikelihoodEstimator:
    """Estimates the mean of IW-K over all images in a given time; a [`training.objective.Estimator`].

    The first images of the subset show what a sample costs on this machine, in the slowest process if there are
    several; that determines the sizes. Given the sizes, the estimate repeats: images are taken in an order, and their
    samples drawn from seeds, that depend on nothing else.

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
        if num_samples < ROUNDING or num_samples % ROUNDING:
            raise ValueError(f"num_samples must be a multiple of {ROUNDING}, got {num_samples}. Round it up.")
        self.model, self.read = model, read
        self.num_samples, self.max_seconds, self.seed = num_samples, max_seconds, seed
        self.processes, self.device, self.autocast, self.clock = processes, device, autocast, clock
        self.block = BLOCK_ON_CPU if device.type == "cpu" else BLOCK_ON_GPU
        order = torch.Generator().manual_seed(derive_seed(seed, "likelihood", "order"))
        self.order = torch.randperm(num_images, generator=order)
        self.sizes: Sizes | None = None
        self.seconds = 0.0
        self._full: list[FullImages] = []
        self._cheap: list[Tensor] = []

    def steps(self) -> Steps:
        """Does the work of this process in pieces; see [`training.objective.Estimator`]."""
        started = self.clock()
        timed = self._blocks(self.order, self.num_samples)[: TIMED_BLOCKS * self.processes.count]
        log_weights, costs = [], []
        for index in self._own(timed):
            yield 0.0
            if index is not None:
                before = self.clock()
                log_weights.append(self._weigh(timed[index], self.num_samples, index))
                costs.append((self.clock() - before) / log_weights[-1].numel())
        cost = yield statistics.mean(costs[1:] or costs or [0.0])

        self.sizes = sizes = self._choose_sizes(cost, sum(map(len, timed)))
        self._full = [FullImages.from_log_weights(values, sizes.group_size) for values in log_weights]
        full = self._blocks(self.order[: sizes.full_images], sizes.num_samples)
        for index in self._own(full, start=len(timed)):
            yield 0.0
            if index is not None:
                values = self._weigh(full[index], sizes.num_samples, index)
                self._full.append(FullImages.from_log_weights(values, sizes.group_size))
        others = self._blocks(self.order[sizes.full_images :], sizes.group_size)
        for index in self._own(others):
            yield 0.0
            if index is not None:
                values = self._weigh(others[index], sizes.group_size, index)
                self._cheap.append(values.double().logsumexp(0) - math.log(sizes.group_size))
        self.seconds = self.clock() - started

    def result(self) -> Metrics:
        """Returns the metric nll, and in the details how it was measured. Collective call, after the steps of all."""
        sizes = self.sizes
        assert sizes is not None
        full = FullImages.joined([part for parts in self.processes.gather(self._full) for part in parts])
        cheap = [part for parts in self.processes.gather(self._cheap) for part in parts]
        estimate, error = combine(full, torch.cat(cheap) if cheap else torch.empty(0), sizes)
        others = len(self.order) - sizes.full_images
        details = {
            **({"nll_standard_error": error} if math.isfinite(error) else {}),
            "nll_samples": sizes.num_samples,
            "nll_images": sizes.full_images,
            "nll_other_images": others,
            "nll_other_samples": sizes.group_size if others else 0,
            "nll_seconds": round(self.seconds, 1),
        }
        return Metrics({"nll": -estimate}, details=details)

    def _choose_sizes(self, cost: float, timed_images: int) -> Sizes:
        """The sizes for a cost in seconds per sample; images that were timed have all samples already."""
        affordable = math.inf
        if self.max_seconds and cost:
            affordable = SHARE_PLANNED * self.max_seconds / cost * self.processes.count
        sizes = choose_sizes(len(self.order), self.num_samples, affordable)
        return Sizes(sizes.num_samples, max(sizes.full_images, timed_images), sizes.group_size)

    def _blocks(self, rows: Tensor, num_samples: int) -> list[Tensor]:
        """The indices of images whose samples are decoded together."""
        return [block for block in rows.split(max(1, self.block // num_samples)) if len(block)]

    def _own(self, blocks: list[Tensor], start: int = 0) -> Iterator[int | None]:
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
