"""States of the explorer at random, for the tests to draw from; also those that have no picture."""

import random
from math import inf, log10

from hypothesis import strategies as st

from pdlib.explorer import KNOBS, ExplorerState


def values(draw: random.Random) -> dict:
    """Each knob at random, within its range: a round value as often as one with all its digits."""

    def one(knob):
        if "options" in knob:
            return draw.choice(list(knob["options"]))
        if "min" not in knob:
            return draw.random() < 0.5
        if "off" in knob and draw.random() < 0.5:
            return None
        low, high, base = knob["min"], knob["max"], knob.get("base")
        value = draw.uniform(low, high) if base is None else 10 ** draw.uniform(*map(log10, (low, high)))
        return float(f"{value:.2g}") if draw.random() < 0.5 else value

    found = {name: one(knob) for name, knob in KNOBS.items()}
    return found | {"N": 2 ** draw.randint(0, 10), "T": draw.choice([1000, 1024, *[draw.randint(1, 130)] * 6])}


def has_picture(values: dict) -> bool:
    """Whether the knobs go together."""
    cosine = values["schedule"] in ("cosine", "cosine_offset")
    low, high = (-inf, inf)
    if cosine:
        low = -inf if values["log_snr_min"] is None else values["log_snr_min"]
        high = inf if values["log_snr_max"] is None else values["log_snr_max"]
    ends_in_noise = values["zero_terminal"] or (cosine and low == -inf) or values["schedule"] == "notes_cosine"
    return (
        values["N"] <= values["T"]
        and (values["clip_min"] or 0) <= (values["clip_max"] or inf)
        and (values["T"] > 20 or not values["schedule"].startswith("discrete"))
        and high - low >= 0.1
        and not (values["prediction"] == "eps" and ends_in_noise)
    )


good_state = st.randoms(use_true_random=False).map(values).filter(has_picture).map(lambda found: ExplorerState(**found))
