import math

import pytest
import torch
from tiny import COSINE, FINITE

from pdlib.denoiser import Confined, Denoiser
from pdlib.diagnosis import CULPRITS, diagnose
from pdlib.exact import GaussianDenoiser
from pdlib.grids import Grid
from pdlib.networks import MLP
from pdlib.schedules import DiscreteSchedule, LinearSchedule, zero_terminal_snr
from pdlib.weightings import Clipped, Density

MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)


def network(prediction="v", schedule=COSINE, grid=None):
    return Denoiser(MLP(2, out_channels=4 if prediction == "both" else 2, width=4), prediction, schedule, grid)


HEALTHY = [
    *[(network(prediction), Grid(steps), weighting) for prediction in ("x", "v", "both")
      for steps in (1, 2, 4, 64) for weighting in ("truncated_snr", "snr_plus_one")],
    *[(network("x"), Grid(steps), "constant") for steps in (1, 8, 1024)],
    *[(network("v"), Grid(steps), "truncated_snr") for steps in (16, 256, 1024)],
    *[(network("v", FINITE), Grid(steps), "truncated_snr") for steps in (1, 8)],
    (network("v"), Grid(4), Clipped("snr", min=1)),
    (network("v"), Grid(1), Clipped("log_snr_density", min=1)),
    (network("v"), Grid(4), lambda schedule, t: torch.ones_like(t)),
    (network("v", zero_terminal_snr(LinearSchedule())), Grid(4), "truncated_snr"),
    (network("v", zero_terminal_snr(DiscreteSchedule.scaled_linear_beta())), Grid(8), "snr_plus_one"),
    (GaussianDenoiser(MEAN, COVARIANCE, COSINE), Grid(4), "truncated_snr"),
    (Confined(network("v", grid=Grid(4)), 1.0),),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(HEALTHY)))
def test_the_diagnosis_is_silent_on_the_healthy(case):
    assert diagnose(*HEALTHY[case]) == []


ILL = [
    # the off-by-one grid: α at the highest time is sin(π/2N)
    *[((network(), Grid(n, missing=1)), {"wrong top time": math.sin(math.pi / 2 / n)}) for n in (1024, 64, 4, 2, 1)],
    # a last SNR above 0
    ((network("v", LinearSchedule()), Grid(4)), {"terminal SNR": 0.0066}),
    ((network("v", DiscreteSchedule.linear_beta()), Grid(64)), {"terminal SNR": 0.0064}),
    ((GaussianDenoiser(MEAN, COVARIANCE, DiscreteSchedule.scaled_linear_beta()), Grid(1)), {"terminal SNR": 0.068}),
    # weights of 0
    *[((network(), Grid(n), weighting), {"dead steps": 0})
      for n in (64, 4, 1) for weighting in ("snr", "log_snr_density", Density())],
    # an ε network
    ((network("eps", FINITE), Grid(4)), {"unbounded targets": math.exp(10)}),
    ((network("eps", LinearSchedule()), Grid(8)), {"terminal SNR": 0.0066, "unbounded targets": 152.2}),
    # several at once
    ((network("v", LinearSchedule()), Grid(2, missing=1)), {"wrong top time": 0.28, "terminal SNR": 0.0066}),
    ((network(), Grid(1, missing=1), "snr"), {"wrong top time": 1}),
    ((network(), Grid(4, missing=1), "log_snr_density"), {"wrong top time": 0.38, "dead steps": 0}),
    ((network("eps", FINITE), Grid(4), "snr"), {"dead steps": 0, "unbounded targets": math.exp(10)}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(ILL)))
def test_the_diagnosis_names_what_is_wrong_and_nothing_else(case):
    arguments, expected = ILL[case]
    found = diagnose(*arguments)
    assert {finding.culprit: pytest.approx(finding.figure, rel=0.02, abs=1e-6) for finding in found} == expected
    assert [finding.culprit for finding in found] == [name for name in CULPRITS if name in expected]


def test_the_diagnosis_says_which_steps_are_dead():
    (finding,) = diagnose(network(), Grid(4), "snr")
    assert "of 4 steps 1 gets less than 1 % of the fair share of the loss: t = 1." in str(finding)
    (finding,) = diagnose(network(), Grid(2), "log_snr_density")
    assert "of 2 steps 2 get less" in str(finding)
    assert "t = 1, 0.5." in str(finding)


def test_a_denoiser_is_diagnosed_on_the_grid_that_it_was_made_for():
    (finding,) = diagnose(network(grid=Grid(4, missing=1)))
    assert (finding.culprit, finding.figure) == ("wrong top time", pytest.approx(math.sin(math.pi / 8)))
    assert diagnose(network(grid=Grid(4, missing=1)), Grid(4)) == []  # unless another is named
    with pytest.raises(
        ValueError, match=r"grid: this denoiser was made for no number of steps; say for which Grid\(N\)"
    ):
        diagnose(network())


def test_an_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="weighting='snrr' is unknown; did you mean 'snr'"):
        diagnose(network(), Grid(4), "snrr")
