"""The exercises of notebook 07, distillation."""

import math

from torch import Generator, Tensor

from pdlib.exercises.common import decimal, exercise, normal, whole
from pdlib.grids import Grid


# The reference counts, update by update, two passes of the teacher, one forward, and one back that is worth two.
@exercise(
    "07_break_even",
    lambda g: {"steps": 2 ** whole(g, 2, 8), "updates": whole(g, 10, 100), "batch_size": whole(g, 2, 129)},
    lambda n, updates, batch: sum(5 * batch for _ in Grid(n).down_to(1) for _ in range(updates)) / (n - 1),
)
def _wrong_price(steps, updates, batch_size):
    stages, stage, saved = steps.bit_length() - 1, 5 * updates * batch_size, steps - 1
    more = (stages + 1) * stage / saved
    return {
        "the one-step student takes a pass as well: an image saves N − 1 passes, not N": stages * stage / steps,
        "that is one stage; N is halved log₂ N times before it is 1": stage / saved,
        "one stage too many: the teacher of N steps is there already, and 1 is reached after log₂ N halvings": more,
        "a stage is needed for each halving, not for each step": (steps - 1) * stage / saved,
        "the teacher's two passes are missing: every target takes two of its steps": stages * stage * 3 / 5 / saved,
        "an update passes a whole batch: count its B images": stages * stage / batch_size / saved,
        "those are the passes that the chain costs; divide by the passes that each image saves": stages * stage,
    }


def _pairs_with_a_common_part(generator: Generator) -> dict[str, Tensor]:
    """Distances that differ much between seeds, and less between variant and baseline."""
    common, own = normal(generator, 2, whole(generator, 3, 7))
    return {"variant": (common + 0.2 * own - 0.3).exp(), "baseline": common.exp()}


def _ratio_left_out(variant: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """The product's n-th root, and the jackknife's standard error of its logarithm, one seed left out at a time."""
    n, ratios = len(variant), variant / baseline
    logs = (ratios.prod() / ratios).log() / (n - 1)
    error = ((n - 1) / n * (logs - logs.mean()).square().sum()).sqrt()
    return ratios.prod() ** (1 / n), error.exp()


@exercise("07_paired_ratio", _pairs_with_a_common_part, _ratio_left_out)
def _wrong_ratio(variant, baseline):
    ratios, root = variant / baseline, len(variant) ** 0.5
    ratio, spread = ratios.log().mean().exp(), ratios.log().std()
    apart = (variant.log().var() + baseline.log().var()).sqrt()
    mean, inverse = (ratios.mean(), (spread / root).exp()), (1 / ratio, (spread / root).exp())
    return {
        "those are the errors of two means added up, the seeds' differences in both; take the differences first, "
        "seed by seed": (ratio, (apart / root).exp()),
        "that is the spread of one seed; the mean of n has it divided by √n": (ratio, spread.exp()),
        "the standard deviation is divided by n there; of a sample with its own mean it is n − 1, which three "
        "seeds feel": (ratio, (ratios.log().std(correction=0) / root).exp()),
        "that is the arithmetic mean of the ratios: a half and a double would make 1.25; average the logarithms": mean,
        "that is the standard error of the logarithm; as a factor it is exp of it": (ratio, spread / root),
        "the ratio is upside down: the variant's distance over the baseline's, below 1 where it is better": inverse,
    }


def _share_of_start(decay: float, updates: int) -> float:
    """The average itself, of weights that are 1 at the start and 0 ever after."""
    average = 1.0
    for _ in range(updates):
        average += (1 - decay) * (0 - average)
    return average


@exercise("07_ema_share", lambda g: {"decay": decimal(g, 0.9, 0.09, 3), "updates": whole(g, 5, 200)}, _share_of_start)
def _wrong_start(decay, updates):
    own, left, late = (1 - decay) ** updates, 1 - updates * (1 - decay), (1 - decay) * decay**updates
    return {
        "that is the share of all later weights; the two add up to 1": 1 - decay**updates,
        "1 − d is what each update's own weights get; what is there already is multiplied by d": own,
        "each update takes a share of what is left, not of the whole: the factors multiply": left,
        "that is as if the first weights had come in by an update; the average begins as them, with the share 1": late,
        "that is close for d near 1; exactly it is a power of d": math.exp(-updates * (1 - decay)),
    }
