"""States of the explorer, for the property tests to draw from."""

from hypothesis import strategies as st

from pdlib.explorer import CHOICES, RANGES, ExplorerState, problems


def optional(low, high):
    return st.none() | st.floats(low, high)


any_state = st.builds(
    ExplorerState,
    **{name: st.sampled_from(list(options)) for name, options in CHOICES.items()},
    zero_terminal=st.booleans(),
    log_snr_min=optional(*RANGES["log_snr_min"]),
    log_snr_max=optional(*RANGES["log_snr_max"]),
    clip_min=optional(*RANGES["clip_min"]),
    clip_max=optional(*RANGES["clip_max"]),
    T=st.integers(1, 1200),
    N=st.integers(0, 10).map(lambda power: 2**power),
    threshold=st.floats(*RANGES["threshold"]),
)
good_state = any_state.filter(lambda state: not problems(state))
