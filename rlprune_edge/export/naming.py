"""What the names in an exported graph mean, and numbers in them that follow from its structure alone."""

# torch numbers unnamed values and nodes in the order of its trace, where equal numbers are one value: a layer that
# happens to have as many heads as another shifts all numbers after it. Two exports of one topology would differ in
# their names, and a graph's hash, the key of its measurements, with them.

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import onnx

_VALUE = re.compile(r"(onnx::\w+)_\d+")
_NODE = re.compile(r"(\w+)_\d+")


def settle(model: onnx.ModelProto) -> None:
    """Number the unnamed initializers, values and nodes anew, in the order in which they stand.

    A graph with inner ones, which may use its values by name, is left as it is.
    """
    if any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute):
        return
    names = settle_nodes(model.graph, [tensor.name for tensor in model.graph.initializer])
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]


def settle_nodes(graph: onnx.GraphProto, initializers: Iterable[str]) -> dict[str, str]:
    """The same for a graph whose initializers are elsewhere; old names of values and initializers to new ones."""
    counts: Counter[str] = Counter()

    def renamed(name: str, pattern: re.Pattern[str]) -> str:
        found = pattern.fullmatch(name)
        if found is None:
            return name
        counts[found[1]] += 1
        return f"{found[1]}_{counts[found[1]] - 1}"

    values = {name: renamed(name, _VALUE) for name in initializers}
    for node in graph.node:
        values.update({name: renamed(name, _VALUE) for name in node.output})
        node.name = renamed(node.name, _NODE)
    for node in graph.node:
        node.input[:] = [values.get(name, name) for name in node.input]
        node.output[:] = [values[name] for name in node.output]
    return values


def path_of(scope: str, paths: Mapping[str, object]) -> str | None:
    """The path of the module that the exporter calls by this scope: `/layer1/layer1.0/conv1` is `layer1.0.conv1`."""
    at = ""
    for part in scope.strip("/").split("/"):
        parent, _, last = at.rpartition(".")
        repeated = last and part.startswith(f"{last}.")  # a child of a Sequential is called with its parent's name
        prefix = parent if repeated else at
        again = _NODE.fullmatch(part.rpartition(".")[2])  # `relu_1`: the second call of `relu`
        named = (part, part.rpartition("_")[0]) if again else (part,)
        found = [path for path in (f"{prefix}.{name}" if prefix else name for name in named) if path in paths]
        if not found:
            return None
        at = found[0]
    return at
