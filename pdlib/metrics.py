"""How far generated data are from real data: Fréchet, kernel and sliced Wasserstein distances; precision and recall.

All but sliced Wasserstein compare features: for images the pooled last convolution of a
small classifier that the project trains itself on the data at hand, for points the points themselves.
The numbers are therefore comparable within one data set, and not with published FID.

Heusel et al. 2017 (Fréchet), Bińkowski et al. 2018 (kernel), Rabin et al. 2012 (sliced Wasserstein),
Kynkäänniemi et al. 2019 (precision and recall).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from pdlib.data import Data
from pdlib.files import DamagedFileError, cache_folder, digest, read_tensors, write_tensors
from pdlib.images import Images

__all__ = [
    "METRICS",
    "Estimate",
    "Metric",
    "feature_network",
    "features",
    "frechet_distance",
    "jackknife_error",
    "kernel_distance",
    "measure",
    "precision",
    "recall",
    "sampling_floor",
    "sliced_wasserstein",
]

_RECIPE = 1  # raise it when the features change, so that no network of an older recipe is taken from the cache


class Estimate(NamedTuple):
    """A value, its standard error, and the values with one group left out at a time, which gave it."""

    value: float
    standard_error: float
    left_out: list[float]


class _Classifier(nn.Module):
    """Three convolutions; the mean of the last one over the image, centred and scaled, is the features.

    Inception's features in FID are the same: the pooled last convolution.
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classify = nn.Linear(64, classes)
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return (self.hidden(x) - self.mean) / self.deviation


def feature_network(data: Data, updates: int = 600, progress: bool = True) -> nn.Module:
    """The network in whose features distances are taken: x of the data's shape -> (n, features).

    For images, the last hidden layer of a small classifier of the labels (of two or four rotations where there
    are no two classes), shifted to mean 0 and scaled by one factor to a mean variance of 1. It is trained once on
    these data, the same way every time, and kept in the folder ``$PDLIB_CACHE``, or ``~/.cache/pdlib``, where that
    can be written. For points, the identity.
    """
    if not data.is_image:
        return nn.Flatten()
    labels, turned = data.labels, False
    if labels is None or labels.min() == labels.max():
        every = torch.arange(len(data.x))
        labels, turned = every % 4 if data.shape[1] == data.shape[2] else every % 2 * 2, True
    network = _Classifier(data.shape[0], int(labels.max()) + 1)
    about = {"features": digest([_RECIPE, updates, data.digest])}
    folder = cache_folder()
    path = folder / f"features-{about['features'][:16]}.safetensors"
    try:
        tensors, found = read_tensors(path)
        if found != about:
            raise DamagedFileError(f"{path} is a network for other data")
        network.load_state_dict(tensors)
    except (OSError, RuntimeError, DamagedFileError):  # safetensors has a RuntimeError for a file that vanishes
        _train_classifier(network, data.x, labels, turned, updates, progress)
        try:
            write_tensors(path, network.state_dict(), about)
        except OSError as error:
            warnings.warn(
                f"the feature network cannot be kept in {folder} ({os.strerror(error.errno)}) and will be "
                "trained again: set PDLIB_CACHE to a folder that can be written",
                stacklevel=2,
            )
    return network.eval().requires_grad_(False)


def _turned(x: Tensor, labels: Tensor) -> Tensor:
    """Each image by as many right angles as its label says."""
    return torch.stack([image.rot90(int(turn), (1, 2)) for image, turn in zip(x, labels, strict=True)])


def _train_classifier(
    network: nn.Module, x: Tensor | Images, labels: Tensor, turned: bool, updates: int, progress: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in network.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in tqdm(range(updates), desc="features", unit="update", leave=False, disable=not progress):
        batch = torch.randint(len(x), (128,), generator=generator)
        clean = _turned(x[batch], labels[batch]) if turned else x[batch]
        noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network.classify(network.hidden(noisy)), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        parts = zip(x.split(256), labels.split(256), strict=True)
        found = torch.cat([network.hidden(_turned(*part) if turned else part[0]) for part in parts])
    network.mean.copy_(found.mean(0))
    deviation = found.var(0).mean().sqrt()
    network.deviation.copy_(deviation if deviation > 0 else torch.ones(()))  # of images that are all the same


@torch.no_grad()
def features(network: nn.Module, x: Tensor | Images, batch_size: int = 256) -> Tensor:
    """The network's features of x, computed in batches, shape (n, features)."""
    return torch.cat([network(part) for part in x.split(batch_size)])


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """‖μ_r − μ_f‖² + tr(Σ_r + Σ_f − 2 (Σ_r Σ_f)^½) between two sets of features (n, features).

    Biased upwards by an amount that falls as 1/n: compare it only at equal n.
    """
    means = [x.double().mean(0) for x in (real, fake)]
    covariances = [torch.atleast_2d(x.double().mT.cov()) for x in (real, fake)]
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()  # the trace of (Σ_r Σ_f)^½
    traces = covariances[0].trace() + covariances[1].trace()
    return ((means[0] - means[1]).square().sum() + traces - 2 * root).item()


def kernel_distance(real: Tensor, fake: Tensor, subsets: int = 8, subset_size: int = 500, seed: int = 0) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (⟨a, b⟩/d + 1)³, over random subsets.

    0 in expectation for equal distributions, and so sometimes negative.
    """
    generator = torch.Generator().manual_seed(seed)
    size, found = min(subset_size, len(real), len(fake)), []
    for _ in range(subsets):
        a, b = (x[torch.randperm(len(x), generator=generator)[:size]].double() for x in (real, fake))
        within = [(x @ x.mT / x.shape[1] + 1) ** 3 for x in (a, b)]
        across = (a @ b.mT / a.shape[1] + 1) ** 3
        pairs = sum(kernel.sum() - kernel.trace() for kernel in within) / (size * (size - 1))
        found.append(pairs - 2 * across.mean())
    return torch.stack(found).mean().item()


def sliced_wasserstein(real: Tensor, fake: Tensor, projections: int = 64, seed: int = 0) -> float:
    """Root mean square, over random directions, of the 2-Wasserstein distance along the direction.

    Args:
        real, fake: (n, …) and (m, …), compared flattened, in the data's own units.
        projections: number of random directions.
        seed: of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(real[0].numel(), projections, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    # Float64, and so in parts. In one dimension the optimal transport pairs equal quantiles.
    rows = max(1, min(8192, 2**23 // len(directions)))
    along = [torch.cat([part.flatten(1).double() @ directions for part in x.split(rows)]) for x in (real, fake)]
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    difference = torch.quantile(along[0], levels, dim=0) - torch.quantile(along[1], levels, dim=0)
    return difference.square().mean().sqrt().item()


def precision(real: Tensor, fake: Tensor, k: int = 3) -> float:
    """The share of generated examples that are within reach of a real one, which reaches to its k-th nearest other.

    Depends on how many there are of both: compare it only at equal numbers. Of more real than generated examples, as
    many are drawn, always the same ones. Examples that have no k others reach everywhere.
    Kynkäänniemi et al. 2019, equations 1 and 2.

    Args:
        real, fake: features (n, features) and (m, features).
        k: the more, the farther each reaches.
    """
    return _within_reach(fake, [_at_most(len(fake), real)], k)[0].double().mean().item()


def recall(real: Tensor, fake: Tensor, k: int = 3) -> float:
    """The share of real examples that are within reach of a generated one, all else as in :func:`precision`.

    The jackknife's standard error of it is on the safe side, too large: one example can change many reaches.
    """
    return _within_reach(_at_most(len(fake), real), [fake], k)[0].double().mean().item()


def _precisions(real: Tensor, groups: list[Tensor]) -> list[float]:
    fake, sizes = torch.cat(groups), [len(group) for group in groups]
    hits = [part.sum().item() for part in _within_reach(fake, [_at_most(len(fake), real)])[0].split(sizes)]
    return [(sum(hits) - hit) / (len(fake) - size) for hit, size in zip([0, *hits], [0, *sizes], strict=True)]


def _recalls(real: Tensor, groups: list[Tensor]) -> list[float]:
    return _within_reach(_at_most(sum(map(len, groups)), real), groups).double().mean(1).tolist()


def _at_most(count: int, x: Tensor) -> Tensor:
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]]


def _within_reach(points: Tensor, groups: list[Tensor], k: int = 3) -> Tensor:
    """Whether points are within reach of an example of all groups, then of all but one; (1 + groups, points).

    Distances are computed once, for the left-out groups too, and a MB of them at a time.
    """
    examples = torch.cat(groups)
    owners = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group) for group in groups]))
    left_out = owners == torch.arange(-1, len(groups))[:, None]

    def blocks(x: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
        rows = max(1, 2**18 // len(examples))
        for start in range(0, len(x), rows):
            here = slice(start, start + rows)  # a matrix product would see some distance between equal examples
            apart = torch.cdist(x[here], examples, compute_mode="donot_use_mm_for_euclid_dist")
            yield from ((g, here, apart) for g in range(len(left_out)))

    reach, within = examples.new_empty(left_out.shape), torch.empty(len(left_out), len(points), dtype=torch.bool)
    for g, here, apart in blocks(examples):
        apart.diagonal(here.start).fill_(math.inf)  # itself is no other
        others = apart.masked_fill(left_out[g], math.inf)
        reach[g, here] = others.topk(min(k, len(examples)), largest=False).values[:, -1]
    reach.masked_fill_(left_out, -1)
    for g, here, apart in blocks(points):
        within[g, here] = (apart <= reach[g]).any(1)
    return within


class Metric(NamedTuple):
    """A way to measure generated data; one that is added to :data:`METRICS` is measured and plotted like the rest."""

    distance: Callable[[Tensor, Tensor], float]
    """(real, fake) -> how far apart they are, or how much alike."""
    on_features: bool
    """Whether it is given features (n, features), or the data themselves."""
    label: str
    """Its name in pictures and tables."""
    better: str = "lower"
    """Whether lower or higher values are better."""
    of_groups: Callable[[Tensor, list[Tensor]], list[float]] | None = None
    """(real, groups of fake) -> its value for all, then for all but one at a time: a quick way, where there is one."""


METRICS = {
    "frechet_distance": Metric(frechet_distance, True, "Fréchet distance"),
    "kernel_distance": Metric(kernel_distance, True, "kernel distance"),
    "sliced_wasserstein": Metric(sliced_wasserstein, False, "sliced Wasserstein distance"),
    "precision": Metric(precision, True, "precision", "higher", _precisions),
    "recall": Metric(recall, True, "recall", "higher", _recalls),
}


def measure(network: nn.Module, real: Tensor | Images, groups: list[Tensor]) -> dict[str, Estimate]:
    """Every metric of generated against real data.

    Args:
        network: from :func:`feature_network`.
        real: (n, …).
        groups: generated data, (m, …) each from a noise seed of its own. The value is that of all
            of them together; the standard error is the jackknife's over the groups. At least 2.
    """
    seen, result = (features(network, real), [features(network, group) for group in groups]), {}
    for name, metric in METRICS.items():
        reference, parts = seen if metric.on_features else (real, groups)
        if metric.of_groups is None:
            some = [parts, *(parts[:k] + parts[k + 1 :] for k in range(len(parts)))]
            values = [metric.distance(reference, torch.cat(kept)) for kept in some]
        else:
            values = metric.of_groups(reference, parts)
        result[name] = Estimate(values[0], jackknife_error(values[1:]), values[1:])
    return result


def jackknife_error(left_out: list[float]) -> float:
    """The standard error of a value, from its values with one part left out at a time. Efron & Stein 1981."""
    values = torch.tensor(left_out, dtype=torch.float64)
    return ((len(values) - 1) * values.var(correction=0)).sqrt().item()


def sampling_floor(
    network: nn.Module,
    real: Tensor | Images,
    groups: int,
    size: int,
    seed: int = 0,
    drawn_from: Tensor | Images | None = None,
) -> dict[str, Estimate]:
    """Every metric of real against real: of as many images, drawn from real ones with replacement.

    It is what a model that reproduces the data perfectly would score. Disjoint halves of the data
    would not do: all these distances fall with the number of images, and a half is fewer. Precision is 1 where the
    draws are of all of ``real``.

    Args:
        network, real: as in :func:`measure`.
        drawn_from: the others, where there are some: those trained on, and ``real`` those held back.
        groups, size: how many groups of how many images, as the generated ones come.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    others = real if drawn_from is None else drawn_from
    draws = [others[torch.randint(len(others), (size,), generator=generator)] for _ in range(groups)]
    return measure(network, real, draws)
