"""What is set: the knobs, the values that they take, and the link that says it all."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pdlib.files import named
from pdlib.schedules import DiscreteSchedule, Schedule, make_schedule
from pdlib.weightings import Clipped, Density, Weighting

__all__ = ["KNOBS", "PRESETS", "ExplorerState", "from_dict", "from_query"]

SETUP = json.loads(Path(__file__).with_name("knobs.json").read_text("utf-8"))
KNOBS: dict[str, dict[str, Any]] = SETUP["knobs"]
"""The knobs in their order on the screen: what they are called and are about, and what they take. A slider with a base
moves the exponent, in such steps; with ``off`` it can be off, None, and begins there when it is switched on."""

_schedule = lru_cache(maxsize=64)(make_schedule)


@dataclass(frozen=True)
class ExplorerState:
    """Every knob of the explorer."""

    schedule: str = "cosine"
    zero_terminal: bool = False
    """Rescale the schedule so that α_1 = 0."""
    log_snr_min: float | None = None
    """λ_1 of a cosine schedule; None leaves it as it is. The other schedules do not look at it."""
    log_snr_max: float | None = None
    """λ_0 of a cosine schedule."""
    prediction: str = "v"
    """What the network predicts: x, eps, v or both."""
    weighting: str = "truncated_snr"
    clip_min: float | None = None
    clip_max: float | None = None
    T: int = 1000
    """Steps of the fine grid: of the discrete schedules, of the drawn curve, of the notes' weight."""
    N: int = 16
    """Steps of the sampler, a power of 2."""
    threshold: float = 0.01
    """A step is dead if its share of the weight is below so many fair shares, 1/N each."""
    axis: str = "t"
    scale: str = "log"

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """λ_min and λ_max, as far as the schedule takes them."""
        return (self.log_snr_min, self.log_snr_max) if self.schedule.startswith("cosine") else (None, None)

    @property
    def noise_schedule(self) -> Schedule:
        """The schedule that is set."""
        return _schedule(self.schedule, *self.ends, self.zero_terminal, self.T)

    @property
    def is_discrete(self) -> bool:
        """Whether the schedule is given by T values."""
        return isinstance(self.noise_schedule, DiscreteSchedule)

    @property
    def plain_weighting(self) -> str | Weighting:
        """The weighting without its clip."""
        densities = {"log_snr_density": Density(self.T), "log_snr_density_of_steps": Density(self.N)}
        return densities.get(self.weighting, self.weighting)

    @property
    def loss_weighting(self) -> str | Weighting:
        """The weighting, clipped if asked for."""
        clip = (self.clip_min, self.clip_max)
        return self.plain_weighting if clip == (None, None) else Clipped(self.plain_weighting, *clip)


def from_query(query: str) -> ExplorerState:
    """The state that a link describes, its part after ``#``. Raises as :func:`from_dict` does."""
    return from_dict(dict(parse_qsl(query, keep_blank_values=True)))


def from_dict(values: dict[str, Any]) -> ExplorerState:
    """A state from plain values, or their text, by knob; those left out have their defaults.

    Raises:
        ValueError: for an unknown knob, or a value of the wrong kind.
    """
    return ExplorerState(**{name: _read(named("knob", name, KNOBS), value) for name, value in values.items()})


def _read(knob: dict[str, Any], value: Any) -> Any:
    text = str(value).lower()
    words = {"off": None, "none": None} if "off" in knob else {} if "min" in knob else {"true": True, "false": False}
    if "options" in knob or text in words:
        return words.get(text, value)
    try:
        number = float(text)
        if "min" in knob and math.isfinite(number) and not ("whole" in knob and number % 1):
            return int(number) if "whole" in knob else number
    except ValueError:
        pass
    raise ValueError(f"{knob['label']} cannot be {value!r}")


PRESETS = {name: {label: from_query(link) for label, link in group.items()} for name, group in SETUP["presets"].items()}
"""Group -> label -> state: each picture of a weighting in notebook 04 (a curve at a time, and not its gradient
noise), and each setting of the paper's section 4."""
