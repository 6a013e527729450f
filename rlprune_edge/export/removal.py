"""Take the blocks that a module no longer has out of the graph of one that had them."""

# A search drops blocks in ever new combinations: 80 candidates of a planted search had 53 topologies, so that templates
# of whole topologies would serve one in ten. But what the exporter writes of a module stands under the module's name,
# and a block that is left out passes on what came in: its nodes go, and who read its output reads its input.

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from torch import nn

from rlprune_edge.encoders import PassFirst, PassSecond
from rlprune_edge.export.naming import path_of

Classes = Mapping[str, str]
"""of every module by its path: the name of its class"""


def classes_of(module: nn.Module) -> dict[str, str]:
    return {path: type(part).__qualname__ for path, part in module.named_modules()}


_PASSING = {kind.__qualname__ for kind in (nn.Identity, PassFirst, PassSecond)}
"""what may stand in a block's place: it hands on its input, and nothing of it is exported"""
_LEAVES = ("weight", "bias")


Kinds = frozenset[tuple[str, str]]
"""what classes of module were replaced by what"""


def kinds(before: Classes, after: Classes) -> Kinds | None:
    """What was done to `before` to get `after`; `None` if it is more than leaving modules out or passing them by."""
    changed = {path: kind for path, kind in after.items() if before.get(path) != kind}
    raised = set(risen(before, after).values())
    if not all(path in raised or (path in before and kind in _PASSING) for path, kind in changed.items()):
        return None
    return frozenset((before[path], kind) for path, kind in changed.items())


def risen(before: Classes, after: Classes) -> dict[str, str]:
    """Which parts stand in the place of the block they were a part of, and that place: a block's own shortcut."""
    found = {}
    for path, kind in after.items():
        if path in before and before[path] != kind and kind not in _PASSING:
            parts = [part for part, was in before.items() if was == kind and part.rpartition(".")[0] == path]
            if len(parts) == 1:
                found[parts[0]] = path
    return found


def remove(graph: onnx.GraphProto, before: Classes, after: Classes) -> bool:
    """Remove the nodes of modules that `after`, which has nothing else instead, has not; False where that cannot be."""
    readers: dict[str, list[int]] = {}
    for place, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(place)
    outputs = {value.name for value in graph.output}
    gone: set[int] = set()
    stand_ins = risen(before, after)
    kept_outputs: set[str] = set()
    for place in reversed(range(len(graph.node))):
        node = graph.node[place]
        scope, named, _ = node.name.rpartition("/")
        if named:
            path = path_of(scope, before) if scope else None
            lost = path is not None and path not in stand_ins and _lost(path, before, after)
            if path in stand_ins:
                kept_outputs.update(node.output)
        else:  # equal weights and small constants bear no module's name: they go with all who read them
            users = [reader for name in node.output for reader in readers.get(name, [])]
            lost = bool(users) and gone.issuperset(users)
        if lost:
            gone.add(place)
    makers = {name: place for place in sorted(gone) for name in graph.node[place].output}
    weights = _constants(graph)
    passed: dict[str, str] = {}
    for place, node in enumerate(graph.node):
        for name in node.input if place not in gone else ():
            if name in makers and name not in passed:
                source = _source(name, graph, makers, weights, kept_outputs)
                if source is None:
                    return False
                passed[name] = source
    if not gone or outputs & makers.keys():
        return False
    for node in graph.node:
        node.input[:] = [passed.get(name, name) for name in node.input]
    kept = _alive([node for place, node in enumerate(graph.node) if place not in gone], outputs)
    read = {name for node in kept for name in node.input}
    if any(value.name not in read for value in graph.input):
        return False  # whether the exporter lists an input that nobody reads is its affair
    if stand_ins:
        _rename(kept, stand_ins, before)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    graph.ClearField("node")
    graph.node.extend(copies)
    return True


def _alive(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Those that lead to an output: with its last reader, what made the mask is gone."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _lost(path: str, before: Classes, after: Classes) -> bool:
    parts = path.split(".")
    prefixes = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return any(before[prefix] != after.get(prefix) for prefix in prefixes if prefix in before)


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Names that no node computes from an input: initializers are those that nobody makes."""
    made = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    found = {name for node in graph.node for name in node.input if name not in made}
    for node in graph.node:
        if all(name in found for name in node.input):
            found.update(node.output)
    return found


def _rename(nodes: Sequence[onnx.NodeProto], stand_ins: Mapping[str, str], before: Classes) -> None:
    """Give what stands in a block's place the block's name, as in `/layer2/layer2.0/shortcut/Conv`."""
    names: dict[str, str] = {f"{part}.{leaf}": f"{path}.{leaf}" for part, path in stand_ins.items() for leaf in _LEAVES}
    for node in nodes:
        scope, _, last = node.name.rpartition("/")
        if path_of(scope, before) in stand_ins:
            block = scope.rpartition("/")[0]
            names.update({name: name.replace(f"{scope}/", f"{block}/", 1) for name in node.output})
            node.name = f"{block}/{last}"
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _source(
    value: str, graph: onnx.GraphProto, makers: Mapping[str, int], constants: set[str], kept: set[str]
) -> str | None:
    """What is there in the place of `value`: a shortcut's output (`kept`), else what the removed nodes read first.

    That is the stream that the block added to.
    """
    behind, open_ = set[int](), [makers[value]]
    while open_:
        place = open_.pop()
        if place not in behind:
            behind.add(place)
            open_ += [makers[name] for name in graph.node[place].input if name in makers]
    read = [str(name) for place in sorted(behind) for name in graph.node[place].input]
    streams = [name for name in read if name and name not in makers and name not in constants]
    return next((name for name in streams if name in kept), streams[0] if streams else None)
