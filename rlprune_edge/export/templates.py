"""The templates of a search: what a few true exports have shown, and who may be written without one."""

# Exporting is tracing, and took 0.1 s (ResNet-56) to many seconds (Wav2Vec 2.0) a candidate; filling in a template
# takes what its bytes take (tools/bench/slice_export.py). What is written that way was proven on true exports before,
# to the byte: every recipe at other widths than it was recognised at, every kind of block's removal. Whatever is not
# certain, or was wrong once, goes on being exported truly.

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import nn

from rlprune_edge.export import exporter, onnx_graph, skeleton
from rlprune_edge.export.constants import Constants
from rlprune_edge.export.recipes import Recipe
from rlprune_edge.export.removal import Kinds
from rlprune_edge.export.template import Filled, Template, learn
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


class Templates:
    """Of one run; not for finalists, whose files are the last proof."""

    def __init__(self, keep: int = KEEP) -> None:
        self._keep = keep
        self._kept: OrderedDict[Topology, Template] = OrderedDict()
        self._constants = Constants(of_class=True)
        self._refused: set[Topology] = set()
        self._recipes: set[Recipe] = set()
        """those that have given a true export's bytes at other widths than they were recognised at"""
        self._removals: set[tuple[str, str]] = set()
        """kinds of removal that have"""

    def export(self, module: nn.Module, example: Input, path: Path, topology: Topology) -> Sliced | None:
        """Write `module` to `path`, truly or into a template; what was written, in the latter case.

        The file is the same either way. Raises CandidateError and UserError as `exporter.export` does.
        """
        if topology in self._refused:
            exporter.export(module, example, path)
            return None
        network = exporter.network_of(module)
        template, kinds = self._fitting(topology, network)
        if template is not None and template.recipes <= self._recipes and kinds <= self._removals:
            filled = template.fill(network)
            if filled is not None:
                return _written(filled, path)
        exporter.export(module, example, path)
        self._compare(path.read_bytes(), network, topology, template, kinds)
        return None

    def refuse(self, topology: Topology) -> None:
        """A file of this topology was found wrong: export it truly from now on, and believe nothing unproven again."""
        self._refused.add(topology)
        self._recipes.clear()
        self._removals.clear()

    def _fitting(self, topology: Topology, network: nn.Module) -> tuple[Template | None, Kinds]:
        """A template of this topology, from the nearest one kept; and what kinds of block were taken out of that."""
        if topology in self._kept:
            self._kept.move_to_end(topology)
            return self._kept[topology], frozenset()
        for base in sorted(self._kept, key=len, reverse=True):
            found = self._kept[base].without(network) if set(base) < set(topology) else None
            if found is not None:
                self._kept.move_to_end(base)
                return found
        return None, frozenset()

    def _compare(
        self,
        data: bytes,
        network: nn.Module,
        topology: Topology,
        template: Template | None,
        kinds: Kinds,
    ) -> None:
        """Learn from a true export whether what would have been written in its place is right."""
        model = skeleton.read(data)
        self._constants.learn(model.graph, network)
        filled = None
        if template is not None:
            template.learn(model.graph, network)
            filled = template.fill(network)  # what was uncertain may be known now
        if template is None or filled is None:
            pass  # nothing to compare
        elif filled.equals(data):
            self._removals |= kinds
            if filled.other_widths:
                self._recipes |= template.recipes
            return
        elif topology in self._kept:
            self._refused.add(topology)
            del self._kept[topology]
            return
        if topology not in self._kept:
            self._learn(model, data, network, topology)

    def _learn(self, model: onnx.ModelProto, data: bytes, network: nn.Module, topology: Topology) -> None:
        made = learn(model, network, self._constants)
        # a template has to give back what it was made from; constants may not be certain yet
        filled = made.fill(network) if made is not None else None
        if made is None or (filled is not None and not filled.equals(data)):
            self._refused.add(topology)
            return
        self._kept[topology] = made
        while len(self._kept) > self._keep:
            self._kept.popitem(last=False)


def _written(filled: Filled, path: Path) -> Sliced:
    try:
        filled.write(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise disk_error(path, error) from error
    return Sliced(path, filled)
