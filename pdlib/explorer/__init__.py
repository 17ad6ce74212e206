"""The weighting explorer: turn a schedule, a weighting and a number of steps, and see what each step gets.

An :class:`ExplorerState` is every knob; :func:`compute` turns one into figures; :class:`WeightingExplorer` lets a
person turn the knobs, and computes, says and draws what they come to in the browser.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "state": ["KNOBS", "PRESETS", "ExplorerState", "from_dict", "from_query"],
        "figures": ["Curves", "Figures", "compute"],
        "lines": ["python_lines", "run_line"],
        "picture": ["PANELS", "picture"],
        "widget": ["CSS", "MODULE", "WeightingExplorer"],
    },
)
