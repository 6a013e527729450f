"""The templates of a search: a topology is exported once or twice, further candidates are written into its file."""

# Exporting is tracing, and took 0.1 s (ResNet-56) to many seconds (Wav2Vec 2.0) a candidate; filling in a template
# takes what the bytes take (tools/bench/slice_export.py). A topology earns that: its first export makes the template,
# the first candidate of other widths is exported truly as well and has to be the same to the byte. Whatever is not
# certain, or was wrong once, goes on being exported truly.

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rlprune_edge.export import exporter, onnx_graph, skeleton, template
from rlprune_edge.export.constants import Constants
from rlprune_edge.export.template import Filled, Shapes, Template
from rlprune_edge.export.torch_export import disk_error
from rlprune_edge.inputs import Input
from rlprune_edge.records import OnnxArtifact

KEEP = 64
"""templates, the most recently used ones: a graph without weights, 0.1 to 1 MB"""

Topology = tuple[str, ...]
"""names of the blocks that are left out, canonical: modules that share it differ in widths and values alone"""


@dataclass(frozen=True)
class Sliced:
    """A file that was written into a template."""

    path: Path
    filled: Filled

    def describe(self, *, max_difference: float) -> OnnxArtifact:
        """What `onnx_graph.describe` says of the same file, without reading it."""
        return onnx_graph.described(
            self.path,
            self.filled.model,
            sha256=self.filled.sha256(),
            size=self.filled.size,
            max_difference=max_difference,
        )


@dataclass
class _Kept:
    template: Template | None
    """`None`: to be exported truly for ever"""
    shapes: Shapes
    """of the export that it was made from"""
    proven: bool = False
    """a module of other widths was filled in, and equalled its true export"""


class Templates:
    """Of one run; not for finalists, whose files are the last proof."""

    def __init__(self, keep: int = KEEP) -> None:
        self._keep = keep
        self._kept: OrderedDict[Topology, _Kept] = OrderedDict()
        self._constants = Constants(of_class=True)

    def export(self, module: nn.Module, example: Input, path: Path, topology: Topology) -> Sliced | None:
        """Write `module` to `path`, truly or into its topology's template; what was written, in the latter case.

        The file is the same either way. Raises CandidateError and UserError as `exporter.export` does.
        """
        network = exporter.network_of(module)
        kept = self._kept.get(topology)
        if kept is not None:
            self._kept.move_to_end(topology)
        filled = kept.template.fill(network) if kept is not None and kept.template is not None else None
        if kept is not None and kept.proven and filled is not None:
            return _written(filled, path)
        exporter.export(module, example, path)
        if kept is None:
            self._learn(path.read_bytes(), network, topology)
        elif kept.template is not None:
            self._prove(path.read_bytes(), network, kept, filled)
        return None

    def refuse(self, topology: Topology) -> None:
        """A file of this topology was found wrong: export all others of it truly."""
        self._kept[topology] = _Kept(None, ())

    def _learn(self, data: bytes, network: nn.Module, topology: Topology) -> None:
        model = skeleton.read(data)
        self._constants.learn(model.graph, network)
        shapes = template.shapes_of(model)
        made = template.learn(model, network, self._constants)
        # a template has to give back what it was made from; constants may not be certain yet
        filled = made.fill(network) if made is not None else None
        if filled is not None and not filled.equals(data):
            made = None
        self._kept[topology] = _Kept(made, shapes)
        while len(self._kept) > self._keep:
            self._kept.popitem(last=False)

    def _prove(self, data: bytes, network: nn.Module, kept: _Kept, filled: Filled | None) -> None:
        assert kept.template is not None
        graph = skeleton.read(data).graph
        self._constants.learn(graph, network)
        kept.template.learn(graph, network)
        filled = filled or kept.template.fill(network)  # what was uncertain may be known now
        if filled is not None and not filled.equals(data):
            kept.template = None
        elif filled is not None:
            kept.proven = kept.proven or filled.shapes != kept.shapes


def _written(filled: Filled, path: Path) -> Sliced:
    try:
        filled.write(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise disk_error(path, error) from error
    return Sliced(path, filled)
