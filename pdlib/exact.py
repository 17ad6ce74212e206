"""Closed-form denoisers: E[x | z_t] where it can be written down. No training, no error.

Each is a callable (z, t) -> x̂ with a ``schedule``, like a trained :class:`pdlib.denoiser.Denoiser`,
for data of shape (batch, dimensions). Use float64 to check an algorithm to its last digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdlib.schedules import Schedule

__all__ = ["EmpiricalDenoiser", "GaussianDenoiser", "MixtureDenoiser"]


class GaussianDenoiser:
    """E[x | z] for x ~ N(mean, covariance): mean + αΣ (α²Σ + σ²I)⁻¹ (z − α mean).

    Args:
        mean: (dimensions,).
        covariance: (dimensions, dimensions), symmetric, no negative eigenvalue; 0 is allowed.
        schedule: gives α_t and σ_t.

    Raises:
        ValueError: for a covariance of another shape, not symmetric, or with a negative eigenvalue.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, schedule: Schedule):
        dimensions = mean.shape[0]
        if covariance.shape != (dimensions, dimensions) or not torch.allclose(covariance, covariance.mT):
            raise ValueError(f"covariance must be a symmetric matrix of shape ({dimensions}, {dimensions})")
        self.schedule = schedule
        self.mean = mean.double()
        self.variances, self.axes = torch.linalg.eigh(covariance.double())  # Σ = axes diag(variances) axesᵀ
        if (self.variances < -1e-12 * self.variances.abs().max()).any():
            raise ValueError(f"covariance has a negative eigenvalue, {self.variances.min():.3g}")
        self.variances = self.variances.clamp(min=0)

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """z: (batch, dimensions); t: (batch,). Returns E[x | z_t = z], in z's dtype."""
        alpha, total, along = self._along_axes(z, t)
        gain = torch.where(total > 0, alpha * self.variances / total, 0)
        return (self.mean + (gain * along) @ self.axes.mT).to(z)

    def flow(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact solution at time s of the probability-flow ODE through z at time t.

        Along each axis of Σ the deviation from the mean keeps its share of the standard
        deviation √(α²Σ + σ²): this is where DDIM goes as its steps become many.
        """
        (_, total_t, along), (alpha_s, total_s, _) = self._along_axes(z, t), self._along_axes(z, s)
        ratio = torch.where(total_t > 0, total_s.sqrt() / total_t.sqrt(), 0)
        return (alpha_s * self.mean + (ratio * along) @ self.axes.mT).to(z)

    def _along_axes(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """α; and along each axis of Σ, the variance of z_t and z's deviation from its mean."""
        alpha, sigma = (value[:, None] for value in self.schedule.alpha_sigma(t))
        return alpha, alpha**2 * self.variances + sigma**2, (z.double() - alpha * self.mean) @ self.axes


class MixtureDenoiser:
    """E[x | z] for a Gaussian mixture: each component's answer, weighted by how likely z is under it.

    Args:
        weights: (components,), positive, summing to 1.
        means: (components, dimensions).
        covariances: (components, dimensions, dimensions).
        schedule: gives α_t and σ_t.

    Raises:
        ValueError: for weights that are not a distribution, or covariances of the wrong shape.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, schedule: Schedule):
        if (weights <= 0).any() or not torch.isclose(weights.double().sum(), torch.ones((), dtype=torch.float64)):
            raise ValueError("weights must be positive and sum to 1")
        self.schedule = schedule
        self.log_weights = weights.double().log()
        self.components = [
            GaussianDenoiser(mean, covariance, schedule) for mean, covariance in zip(means, covariances, strict=True)
        ]

    def responsibilities(self, z: Tensor, t: Tensor) -> Tensor:
        """p(component | z_t = z), shape (batch, components), in float64."""
        scores = []
        for component, log_weight in zip(self.components, self.log_weights, strict=True):
            _, total, along = component._along_axes(z, t)
            total = total.clamp(min=1e-30)  # where nothing varies: less than any rounding, so that the nearest is left
            scores.append(log_weight - 0.5 * (along**2 / total + total.log()).sum(1))
        return torch.stack(scores, dim=1).softmax(dim=1)

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """z: (batch, dimensions); t: (batch,). Returns E[x | z_t = z], in z's dtype."""
        answers = torch.stack([component(z.double(), t) for component in self.components], dim=1)
        return (self.responsibilities(z, t)[:, :, None] * answers).sum(1).to(z)


class EmpiricalDenoiser:
    """E[x | z] when the data are exactly these points: what a network that fits them perfectly says.

    A mean of the points weighted by N(z; α x_i, σ²I): one point's neighbourhood near t = 0,
    the mean of all of them at α = 0.

    Args:
        points: (n, …), the finite data set.
        schedule: gives α_t and σ_t.
    """

    def __init__(self, points: Tensor, schedule: Schedule):
        self.points, self.schedule = points, schedule

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """z: (batch, …) of the points' shape; t: (batch,). Returns E[x | z_t = z], in z's dtype."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        points = self.points.double().flatten(1)
        distances = torch.cdist(z.double().flatten(1)[:, None], alpha[:, None, None] * points)
        squares = distances[:, 0] ** 2
        excess = squares - squares.min(dim=1, keepdim=True).values
        # At σ = 0 the nearest point alone is left: its 0/0 is the exponent 0, the others' is −∞.
        weights = (-excess / (2 * sigma[:, None] ** 2)).nan_to_num(nan=0.0).softmax(dim=1)
        return (weights @ points).reshape(z.shape).to(z)
