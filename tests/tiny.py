"""Tiny denoisers and trainings that the tests of training and distillation share."""

import torch
from torch import nn

from pdlib.denoiser import Denoiser
from pdlib.networks import MLP
from pdlib.schedules import CosineSchedule

COSINE = CosineSchedule()
FINITE = CosineSchedule(log_snr_min=-20, log_snr_max=20)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def tiny(prediction="v", schedule=COSINE, grid=None, width=8, seed=0):
    """A denoiser of points in the plane whose output layer, which starts at 0 as a rule, says something too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MLP(2, 4 if prediction == "both" else 2, width=width, blocks=1)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return Denoiser(network, prediction, schedule, grid)


class PerClass(nn.Module):
    """A small class-conditional network of points, or of images that have as many numbers."""

    classes = 3

    def __init__(self, numbers=2):
        super().__init__()
        self.network, self.labels = MLP(numbers, width=16, blocks=1), nn.Embedding(3, numbers)

    def forward(self, z, time, labels):
        return self.network(z.flatten(1) + self.labels(labels), time).view(z.shape)


def same_weights(one, other):
    one, other = (weights.state_dict() if isinstance(weights, nn.Module) else weights for weights in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Interrupted(Exception):
    pass


class Watched:
    """An objective that keeps the weights it is asked at, until ``happens`` is done to one of its values.

    For a checkpoint it is the objective within, whatever it has seen and whatever is to happen.
    """

    def __init__(self, objective, at=None, happens=None):
        self.objective, self.at, self.happens, self.weights = objective, at, happens, []

    def config(self):
        return {"objective": self.objective}

    def __call__(self, student, average, x, generator, *share):
        value = self.objective(student, average, x, generator, *share)
        self.weights.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
        return self.happens(student, value) if len(self.weights) - 1 == self.at else value


def interrupt(*_):
    raise Interrupted
