"""Give an exported graph names that follow from its structure alone."""

# torch numbers unnamed values and nodes in the order of its trace, where equal numbers are one value: a layer that
# happens to have as many heads as another shifts all numbers after it. Two exports of one topology would differ in
# their names, and a graph's hash, the key of its measurements, with them.

from __future__ import annotations

import re
from collections import Counter

import onnx

_VALUE = re.compile(r"(onnx::\w+)_\d+")
_NODE = re.compile(r"(\w+)_\d+")


def settle(model: onnx.ModelProto) -> None:
    """Number the unnamed initializers, values and nodes anew, in the order in which they stand.

    A graph with inner ones, which may use its values by name, is left as it is.
    """
    graph = model.graph
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        return
    counts: Counter[str] = Counter()

    def renamed(name: str, pattern: re.Pattern[str]) -> str:
        found = pattern.fullmatch(name)
        if found is None:
            return name
        counts[found[1]] += 1
        return f"{found[1]}_{counts[found[1]] - 1}"

    values = {t.name: renamed(t.name, _VALUE) for t in graph.initializer}
    for node in graph.node:
        values.update({name: renamed(name, _VALUE) for name in node.output})
        node.name = renamed(node.name, _NODE)
    for tensor in graph.initializer:
        tensor.name = values[tensor.name]
    for node in graph.node:
        node.input[:] = [values.get(name, name) for name in node.input]
        node.output[:] = [values[name] for name in node.output]
