"""The weighting explorer: turn a schedule, a weighting and a number of steps, and see what each step gets.

An :class:`ExplorerState` is every knob; :func:`compute` turns one into figures, :func:`sentences` says what to see in
them, :func:`draw` makes panels of them, and :class:`WeightingExplorer` lets a person turn the knobs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "state": ["CHOICES", "LABELS", "RANGES", "ExplorerState", "from_dict", "from_query", "problems", "to_query"],
        "figures": ["Figures", "compute"],
        "lines": ["python_lines", "run_line"],
        "presets": ["PRESETS"],
        "drawing": ["PANELS", "Axes", "Panel", "draw", "picture", "sentences"],
        "widget": ["WeightingExplorer"],
    },
)
