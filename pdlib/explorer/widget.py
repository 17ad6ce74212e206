"""The widget: it shows the panels and the knobs, and draws again what a turned knob changes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from pdlib.explorer.drawing import PANELS, STYLE, draw, picture, sentences
from pdlib.explorer.figures import compute
from pdlib.explorer.lines import python_lines, run_line
from pdlib.explorer.presets import PRESETS
from pdlib.explorer.state import KNOBS, ExplorerState, KnobError, from_dict, from_query, problems, to_query
from pdlib.files import named

__all__ = ["WeightingExplorer"]


class WeightingExplorer(anywidget.AnyWidget):
    """Knobs for a schedule, a weighting and a number of steps, and what they come to in five panels.

    Args:
        state: where the knobs stand at first.
        notice: a sentence to show above the panels.
        knobs: names of the knobs to show, fields of :class:`~pdlib.explorer.ExplorerState`; all of them, and the
            presets, if not given.
        panels: which of :data:`PANELS` to show; all if not given.

    Raises:
        ValueError: for a state that :func:`pdlib.explorer.problems` finds fault with, or an unknown knob or panel.
    """

    _esm = Path(__file__).with_name("widget.js")
    _css = Path(__file__).with_name("widget.css").read_text() + STYLE
    knobs = traitlets.List([{"name": name, **knob} for name, knob in KNOBS.items()]).tag(sync=True)
    presets = traitlets.List(
        [[group, [[label, asdict(state)] for label, state in states.items()]] for group, states in PRESETS.items()]
    ).tag(sync=True)
    on_page = traitlets.Bool(False).tag(sync=True)
    """Whether the widget is a page of its own, whose address can carry a state."""
    controls = traitlets.Dict().tag(sync=True)
    """The knobs as the person set them, good or not."""
    compare = traitlets.Bool(False).tag(sync=True)
    """Whether the curves of a moment ago stay in grey."""
    problems = traitlets.Dict().tag(sync=True)
    notice = traitlets.Unicode("").tag(sync=True)
    panels = traitlets.Dict().tag(sync=True)
    said = traitlets.Dict().tag(sync=True)
    lines = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        state: ExplorerState | None = None,
        notice: str = "",
        knobs: Collection[str] | None = None,
        panels: Iterable[str] = PANELS,
        **kwargs: Any,
    ):
        state = state or ExplorerState()
        self._figures, self._frozen, self._shown = compute(state), None, tuple(panels)
        for name in self._shown:
            named("panel", name, PANELS)
        for name in knobs or ():
            named("knob", name, KNOBS)
        if knobs is not None:
            kwargs |= {"knobs": [knob for knob in self.knobs if knob["name"] in knobs], "presets": []}
        super().__init__(controls=asdict(state), notice=notice, **kwargs)
        self._show()
        self.observe(self._turned, "controls")
        self.observe(self._compared, "compare")
        self.on_msg(self._asked)

    @classmethod
    def from_link(cls, query: str | None = None) -> WeightingExplorer:
        """The explorer in the state of a link's query string; by default of the page that Voilà serves it on."""
        state, complaint = from_query(os.environ.get("QUERY_STRING", "") if query is None else query)
        return cls(state, complaint, on_page=os.environ.get("SERVER_SOFTWARE", "").startswith("voila"))

    @property
    def state(self) -> ExplorerState:
        """The state that is drawn: the last good one."""
        return self._figures.state

    def picture(self) -> str:
        """What is drawn as one SVG, see :func:`picture`."""
        return picture(self.state, self._frozen, self._shown)

    def _turned(self, change: Any) -> None:
        try:
            state = from_dict(dict(change["new"]))
            wrong = problems(state)
        except KnobError as error:
            wrong = {error.knob: str(error)}
        with self.hold_sync():
            self.problems = wrong
            self.notice = ""
            if not wrong:
                self._figures = compute(state)
                self._show()

    def _compared(self, change: Any) -> None:
        self._frozen = self._figures if change["new"] else None
        self._show()

    def _show(self) -> None:
        with self.hold_sync():
            self.panels = draw(self._figures, self._frozen, self._shown)
            self.said = sentences(self._figures, self._shown)
            python, command, query = python_lines(self.state), run_line(self.state), to_query(self.state)
            self.lines = {"python": python, "command": command, "query": query}

    def _asked(self, _: Any, content: Any, buffers: Any) -> None:
        if content == "picture":
            self.send({"picture": self.picture()})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.state})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and its picture for where no widgets are shown."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return {**data, "image/svg+xml": self.picture()}, metadata
