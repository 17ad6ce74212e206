"""Flows that are known without error: of Gaussians, and of mixtures on a line."""

import torch

from pdlib.exact import GaussianDenoiser, MixtureDenoiser
from pdlib.sampling import x_of_step
from pdlib.schedules import CosineSchedule, expand

COSINE = CosineSchedule()


class LineOfTwo(MixtureDenoiser):
    """Two Gaussians on a line, and the flow of their probability: it keeps every point's quantile."""

    def __init__(self, schedule=COSINE):
        weights, means = torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [0.6]])
        super().__init__(weights, means, torch.tensor([[[0.04]], [[0.25]]]), schedule)

    def flow(self, z, t, s):
        def parts(at):
            alpha, sigma = self.schedule.alpha_sigma(at)
            for weight, component in zip(self.log_weights.exp(), self.components, strict=True):
                spread = (alpha**2 * component.variances + sigma**2).sqrt()
                yield weight, alpha * component.mean, spread

        def quantile(value, at):
            return sum(w * torch.special.ndtr((value - mean) / spread) for w, mean, spread in parts(at))

        def density(value, at):
            normal = [w * torch.exp(-((value - mean) ** 2) / (2 * spread**2)) / spread for w, mean, spread in parts(at)]
            return sum(normal) / (2 * torch.pi) ** 0.5

        wanted = quantile(z[:, 0], t)
        low, high = torch.full_like(wanted, -20.0), torch.full_like(wanted, 20.0)
        with torch.no_grad():
            for _ in range(60):
                middle = (low + high) / 2
                above = quantile(middle, s) > wanted
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        found = ((low + high) / 2).detach()
        for _ in range(2):  # Newton's, which carry derivatives besides
            found = found - (quantile(found, s) - wanted) / density(found, s)
        return found[:, None]


def three_axes(schedule=COSINE):
    factor = torch.tensor([[0.9, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.3, 0.2, 0.1]], dtype=torch.float64)
    return GaussianDenoiser(torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64), factor @ factor.mT, schedule)


class ExactMap:
    """The flow as a student that takes two times: the x̂ with which a DDIM step lands where the flow does."""

    two_times = True

    def __init__(self, exact):
        self.exact, self.schedule = exact, exact.schedule

    def __call__(self, z, t, s=None):
        s = t if s is None else s
        same = expand((t == s).double(), z)
        below = torch.where(t == s, s * 0.5, s)
        jumped = x_of_step(z, self.exact.flow(z, t, below), t, below, self.schedule)
        return same * self.exact(z, t) + (1 - same) * jumped


class Towards:
    """The flow as a student of one time: ``end`` says where it jumps to from t."""

    def __init__(self, exact, end, grid=None):
        self.map, self.schedule, self.end, self.grid, self.shape = ExactMap(exact), exact.schedule, end, grid, None

    def __call__(self, z, t):
        end = self.end(t)
        staying = t <= 0  # where all is said already
        answer = self.map(z, torch.where(staying, 0.5, t), torch.where(staying, 0.0, end))
        return torch.where(expand(staying.double(), z) > 0, z, answer)
