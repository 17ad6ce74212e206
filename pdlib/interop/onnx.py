"""Networks out as ONNX: for what runs them without Python, the page that samples in the browser among them.

The graph is the network alone, (z, time) -> output, time being (2/π) arctan(exp(−λ/2)) as in
:class:`pdlib.denoiser.Denoiser`. What the output means, the schedule and the grid stand beside it as JSON: x̂ and a
DDIM step are a line each, in any language.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pdlib.denoiser import Denoiser
from pdlib.files import write_bytes, write_json
from pdlib.interop import InteropError, one_line
from pdlib.interop.packed import pack

try:
    import onnx
    import onnxscript  # noqa: F401 torch's exporter needs it
except ImportError:
    raise InteropError("writing ONNX needs two packages more: pip install 'pdlib[onnx]'") from None

__all__ = ["about", "save_for_page", "to_onnx"]


def to_onnx(denoiser: Denoiser, place: str | Path) -> Path:
    """Write a denoiser's network as one ONNX file, in float32.

    Inputs ``z`` (batch, …), ``time`` (batch,), float32; where it is class-conditional ``labels`` (batch,), int64; of a
    flow map ``end`` (batch,), the time at which a jump ends; output ``output``. The batch may be of any size.
    :func:`about` is in the file's metadata, under ``pdlib``.

    Args:
        denoiser: one with a network of its own, not a wrapper, which knows the shape of an example.
        place: a file that ends in .onnx, or a folder, for a ``model.onnx`` in it.

    Returns:
        The file.

    Raises:
        InteropError: for a network that torch's exporter cannot write; the message says why.
    """
    path = Path(place).expanduser()
    path = path if path.suffix == ".onnx" else path / "model.onnx"
    graph = _graph(denoiser)
    graph.metadata_props.add(key="pdlib", value=json.dumps(about(denoiser)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, graph.SerializeToString(deterministic=True))
    return path


def about(denoiser: Denoiser) -> dict[str, Any]:
    """What else is to be known: ``prediction``, ``schedule``, ``grid``, ``shape``, ``classes`` and ``sampler``."""
    return {
        "prediction": denoiser.prediction,
        "schedule": denoiser.schedule.config(),
        "grid": None if denoiser.grid is None else denoiser.grid.config(),
        "shape": list(denoiser.shape),
        "classes": denoiser.classes,
        "sampler": denoiser.sampler,
    }


def save_for_page(denoisers: Mapping[str, Denoiser], folder: str | Path, **more: Any) -> Path:
    """Write denoisers of one kind of network as one graph, and a file of weights for each.

    ``NAME.q16`` holds a network's ``state_dict`` as :func:`pdlib.interop.packed.pack` writes it. ``graph.onnx`` reads
    it as float32, one tensor after another, from external data of the name ``weights``. ``manifest.json`` says of each
    what :func:`about` does, and its network's config.

    Args:
        denoisers: by name.
        folder: where to.
        **more: JSON-ready entries to keep in the manifest, such as whose they are.

    Returns:
        The manifest's path.

    Raises:
        InteropError: as in :func:`to_onnx`, and for networks of more than one kind.
    """
    folder = Path(folder).expanduser()
    for denoiser in denoisers.values():
        _check(denoiser)
    kinds = [
        (
            type(one.network),
            one.classes,
            one.shape,
            {name: part.shape for name, part in one.network.state_dict().items()},
        )
        for one in denoisers.values()
    ]
    if any(kind != kinds[0] for kind in kinds):
        raise InteropError("one graph is for networks of one kind and size: give each kind a folder of its own")
    first = next(iter(denoisers.values()))
    write_bytes(folder / "graph.onnx", _without_weights(first).SerializeToString(deterministic=True))
    for name, denoiser in denoisers.items():
        write_bytes(folder / f"{name}.q16", pack(denoiser.network.state_dict().values()))
    networks = {name: about(one) | {"network": getattr(one.network, "config", None)} for name, one in denoisers.items()}
    write_json(folder / "manifest.json", {**more, "networks": networks})
    return folder / "manifest.json"


def _without_weights(denoiser: Denoiser) -> onnx.ModelProto:
    """The graph, which looks for its weights in a file ``weights``.

    Exporters rename weights, and give them other shapes. So each is found by its values, drawn at random for the
    purpose; and what is in the graph besides must not have changed with other draws.
    """
    drawn, again = (_drawn(denoiser, seed) for seed in (0, 1))
    graph, other = _graph(drawn), _graph(again)
    places, start = {}, 0
    for part in drawn.network.state_dict().values():
        values = part.numpy().tobytes()
        places[values] = start
        start += len(values)
    found = set()
    for weights, twin in zip(graph.graph.initializer, other.graph.initializer, strict=True):
        if weights.raw_data in places:
            found.add(weights.raw_data)
            entries = {"location": "weights", "offset": places[weights.raw_data], "length": len(weights.raw_data)}
            weights.ClearField("raw_data")
            weights.data_location = onnx.TensorProto.EXTERNAL
            for key, value in entries.items():
                weights.external_data.add(key=key, value=str(value))
        elif weights.raw_data != twin.raw_data:
            raise InteropError(f"the exporter computes {weights.name} from the weights: write each network by to_onnx")
    if len(found) < len(places):
        raise InteropError("some of the network's weights are not in its graph: write each network by to_onnx")
    return graph


def _drawn(denoiser: Denoiser, seed: int) -> Denoiser:
    """A copy whose weights are drawn at random."""
    copy, generator = denoiser.student().requires_grad_(False), torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(part.shape, generator=generator) for name, part in copy.network.state_dict().items()}
    copy.network.to("cpu", memory_format=torch.contiguous_format).load_state_dict(drawn)
    return copy


def _check(denoiser: Denoiser) -> None:
    if not isinstance(denoiser, Denoiser):
        kind = type(denoiser).__name__
        raise InteropError(f"a {kind} has no network of its own to write: give the Denoiser within it")
    if denoiser.shape is None:
        raise InteropError("this denoiser does not know the shape of an example: set denoiser.shape, such as (1, 8, 8)")


def _graph(denoiser: Denoiser) -> onnx.ModelProto:
    """The network's graph, with nothing in it of the machine that wrote it."""
    _check(denoiser)
    inputs = {"z": torch.zeros(2, *denoiser.shape), "time": torch.full((2,), 0.5)}
    if denoiser.classes is not None:
        inputs["labels"] = torch.zeros(2, dtype=torch.int64)
    if denoiser.two_times:
        inputs["end"] = torch.full((2,), 0.25)
    batch = torch.export.Dim("batch")
    network = denoiser.student().network.cpu().eval()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")
        try:
            model = torch.onnx.export(
                network,
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=["output"],
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                verbose=False,
            ).model_proto
        except Exception as error:  # the exporter raises many kinds
            reason = error
            while reason.__cause__:
                reason = reason.__cause__
            kind = type(network).__name__
            raise InteropError(f"torch cannot write this {kind} as ONNX: {one_line(reason)}") from error
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input, model.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for weights in model.graph.initializer:
        value = onnx.numpy_helper.to_array(weights)
        weights.CopyFrom(onnx.numpy_helper.from_array(value, weights.name))  # all as raw_data
    return model


@contextlib.contextmanager
def _quiet(name: str):
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
