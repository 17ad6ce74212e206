"""What the property tests draw from, and how they measure an error."""

import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from pdlib.schedules import SCHEDULES

TOLERANCE = 1e-10
ALL = {name: build() for name, build in SCHEDULES.items()}
ZERO_TERMINAL = {
    name: value
    for name, value in ALL.items()
    if name not in ("cosine_clipped", "linear", "discrete_linear", "discrete_scaled_linear")
}
CLEAN_START = {name: value for name, value in ALL.items() if name not in ("cosine_clipped", "notes_cosine")}

schedules = st.sampled_from(list(ALL.values()))
zero_terminal = st.sampled_from(list(ZERO_TERMINAL.values()))
clean_start = st.sampled_from(list(CLEAN_START.values()))

# Away from the ends, and entries away from 0, so that every relative error is measured against something.
interior = st.floats(0.01, 0.99)
sizes = st.floats(0.1, 3) | st.floats(-3, -0.1)


def tensors(*shape: int, elements: st.SearchStrategy = sizes) -> st.SearchStrategy:
    """float64 tensors of this shape, each entry between 0.1 and 3 in size."""
    return arrays("float64", shape, elements=elements).map(torch.from_numpy)


def times(count: int) -> st.SearchStrategy:
    """Times of shape (count,), away from 0 and 1."""
    return tensors(count, elements=interior)


def relative_error(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """The largest difference, relative to the largest entry of ``scale`` (of what is expected, if not given)."""
    return ((found - expected).abs().max() / (expected if scale is None else scale).abs().max()).item()


def column(value: Tensor) -> Tensor:
    """(batch,) to (batch, 1), to multiply a (batch, d) tensor by hand."""
    return value[:, None]
