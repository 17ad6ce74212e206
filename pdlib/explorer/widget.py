"""The widget: what is set, as traits, and the browser's half, which computes and draws it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pdlib.explorer.figures import compute
from pdlib.explorer.picture import PANELS, picture
from pdlib.explorer.state import KNOBS, SETUP, ExplorerState, from_dict, from_query
from pdlib.files import named
from pdlib.plots import COLORS, png

try:
    import anywidget
    import traitlets
except ImportError:
    raise ImportError("the explorer needs anywidget: pip install 'pdlib[explore]'") from None

__all__ = ["CSS", "MODULE", "WeightingExplorer"]


def _module() -> str:
    """One ES module of the browser's files: d3, what Python says the knobs are, and our own scripts in their order."""
    files = ["layout.html", "charts/d3.min.js", "formulas.js", "settings.js", "panels.js", "widget.js"]
    layout, *scripts = [(Path(__file__).parent / name).read_text("utf-8") for name in files]
    told = {"SETUP": SETUP, "DEFAULTS": asdict(ExplorerState()), "COLORS": COLORS, "LAYOUT": layout}
    constants = [f"const {name} = {json.dumps(value, ensure_ascii=False)};" for name, value in told.items()]
    return "\n".join([*constants, *scripts])


MODULE = _module()
"""The ES module: ``render`` for a notebook, ``mount(element, state)`` for any page, and ``compute(state)``."""

CSS = Path(__file__).with_name("widget.css").read_text("utf-8")


class WeightingExplorer(anywidget.AnyWidget):
    """Knobs for a schedule, a weighting and a number of steps, and what they come to in five panels.

    Args:
        state: where the knobs stand at first.
        knobs: names of the knobs to show, fields of :class:`~pdlib.explorer.ExplorerState`; all of them, and the
            presets, if not given.
        panels: which of :data:`PANELS` to show; all if not given.

    Raises:
        ValueError: for a state that the library has no figures for, or an unknown knob or panel.
    """

    _esm = MODULE
    _css = CSS
    settings = traitlets.Dict().tag(sync=True)
    """The knobs, as the person set them last where they have a picture."""
    frozen = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    """The settings whose curves stay in grey, if any."""
    knobs = traitlets.List().tag(sync=True)
    panels = traitlets.List().tag(sync=True)

    def __init__(
        self,
        state: ExplorerState | None = None,
        knobs: Iterable[str] = KNOBS,
        panels: Iterable[str] = PANELS,
        **kwargs: Any,
    ):
        knobs, panels = list(knobs), list(panels)
        for name in panels:
            named("panel", name, PANELS)
        for name in knobs:
            named("knob", name, KNOBS)
        super().__init__(settings=asdict(state or ExplorerState()), knobs=knobs, panels=panels, **kwargs)
        compute(self.state)  # which refuses what has no figures

    @classmethod
    def from_link(cls, query: str | None = None) -> WeightingExplorer:
        """The explorer in the state that the part of a link after ``#`` describes."""
        return cls(from_query(query or ""))

    @property
    def state(self) -> ExplorerState:
        """The state that is drawn."""
        return from_dict(self.settings)

    def picture(self) -> bytes:
        """What is drawn as a PNG."""
        return png(picture(self.state, self.panels))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.state})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and its picture for where no widgets are shown."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return {**data, "image/png": self.picture()}, metadata
