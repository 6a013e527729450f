"""Turn a traced model into the torch-free PruningSpace: groups, removable blocks, and the layers' sizes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from rlprune_edge.encoders import view
from rlprune_edge.inputs import Input
from rlprune_edge.prune import transformers
from rlprune_edge.prune.graph import PRODUCERS, CoupledGroup, is_trained, layers_in_order, run_once
from rlprune_edge.prune.transformers import NestedBlock
from rlprune_edge.records import Block, Group, Op, PruningSpace


def build(model: nn.Module, example: Input, groups: Sequence[CoupledGroup]) -> PruningSpace:
    """Describe all that can be cut from `model`; `example` is one real input, [1, ...].

    Every group offers its full width only: which others pay is for a board's measured table to say.
    """
    order = {name: i for i, name in enumerate(layers_in_order(model, example))}
    modules = dict(model.named_modules())
    removable = removable_blocks(model, example)
    ops = _ops(model, example, groups, removable)
    last = max(1, len(order) - 1)
    inside = {b.name: sum(count_parameters(modules[prefix]) for prefix in b.prefixes) for b in removable if not b.parts}

    described = tuple(
        Group(
            name=g.name,
            width=g.width,
            levels=(g.width,),
            producers=g.layers("out", modules),
            consumers=g.layers("in", modules),
            block=_block_of(removable, *(s.layer for s in g.slices)),
            depth=order[g.slices[0].layer if g.name not in order else g.name] / last,
            parameters=_parameters_of(g, modules),
            unit=g.unit,
        )
        for g in groups
    )
    blocks = tuple(
        Block(
            name=b.name,
            depth=min((i for n, i in order.items() if _within(n, b)), default=0) / last,
            parameters=sum(inside[part] for part in b.parts) if b.parts else inside[b.name],
            ops=tuple(op.name for op in ops if op.block == b.name or op.block in b.parts),
            parts=b.parts,
        )
        for b in removable
    )
    return PruningSpace(groups=described, blocks=blocks, ops=ops, parameters=count_parameters(model))


def removable_blocks(model: nn.Module, example: Input) -> list[NestedBlock]:
    """All blocks that can be removed, in the order of the network."""
    seen = view(model)
    if seen is not None:
        return transformers.find_blocks(seen)
    assert isinstance(example, torch.Tensor)
    return [NestedBlock(name, (name,)) for name in find_blocks(model, example)]


def _within(name: str, block: NestedBlock) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in block.prefixes)


def _block_of(blocks: Sequence[NestedBlock], *names: str) -> str | None:
    """The smallest block that holds all these layers; of nested ones the parts come first."""
    return next((b.name for b in blocks if all(_within(n, b) for n in names)), None)


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes; batches come from the CPU and are sent there."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def count_parameters(module: nn.Module) -> int:
    """Trained parameters; tensors fixed by construction (0/1 shortcuts) are not parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_macs(model: nn.Module, example: Input) -> int:
    """Multiply-accumulates of one inference in convolutions, linear layers and attention, counted while it runs."""
    return sum(op.macs for op in _ops(model, example.to(device_of(model)), (), ()))


def find_blocks(model: nn.Module, example: torch.Tensor) -> list[str]:
    """Names of the blocks that can be removed, in the order of the network.

    A block can be removed when, with all its trained parameters at zero, it passes its input on unchanged (a residual
    block whose branch is gone), or passes on exactly what its own parameter-free `shortcut` makes of it (He et al.
    2015, option A). The innermost such module counts, so that a stage of blocks is not one block.
    """
    inputs: dict[str, torch.Tensor] = {}
    modules = {n: m for n, m in model.named_modules() if n and any(m.children()) and count_parameters(m)}

    def keep(name: str):  # type: ignore[no-untyped-def]  # torch's hook type
        def hook(_module: nn.Module, args: tuple[object, ...]) -> None:
            if len(args) == 1 and isinstance(args[0], torch.Tensor) and args[0].abs().sum() > 0:
                inputs[name] = args[0].detach()

        return hook

    hooks = [m.register_forward_pre_hook(keep(n)) for n, m in modules.items()]
    run_once(model, example, hooks)
    found = [name for name in modules if name in inputs and _passes_through(modules[name], inputs[name])]
    innermost = [n for n in found if not any(other.startswith(n + ".") for other in found)]
    order = {name: i for i, name in enumerate(inputs)}
    return sorted(innermost, key=lambda n: order[n])


def replacement(block: nn.Module) -> nn.Module:
    """What stays when a block is removed: its own parameter-free shortcut, or nothing at all."""
    shortcut = getattr(block, "shortcut", None)
    if isinstance(shortcut, nn.Module) and not count_parameters(shortcut):
        return shortcut
    return nn.Identity()


def _passes_through(block: nn.Module, x: torch.Tensor) -> bool:
    hollow = copy.deepcopy(block).eval()
    with torch.no_grad():
        for parameter in hollow.parameters():
            if parameter.requires_grad:
                parameter.zero_()
        try:
            out, kept = hollow(x), replacement(hollow)(x)
        except (RuntimeError, ValueError, TypeError):
            return False  # takes something else than one tensor, or the shapes do not fit: not a residual block
    return isinstance(out, torch.Tensor) and out.shape == kept.shape and torch.allclose(out, kept, atol=1e-6)


def _parameters_of(group: CoupledGroup, modules: dict[str, nn.Module]) -> int:
    total = 0
    for s in group.slices:
        module = modules[s.layer]
        if not is_trained(module):
            continue
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        if s.side == "out":
            bias = getattr(module, "bias", None)
            total += weight.numel() + (bias.numel() if isinstance(bias, torch.Tensor) else 0)
        else:
            total += weight.numel() * len(s.positions) // weight.shape[1] if weight.dim() > 1 else 0
    return total


def _ops(
    model: nn.Module, example: Input, groups: Sequence[CoupledGroup], blocks: Sequence[NestedBlock]
) -> tuple[Op, ...]:
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}

    def note(name: str):  # type: ignore[no-untyped-def]  # torch's hook type
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            shapes[name] = (args[0].shape, out.shape)

        return hook

    layers = {n: m for n, m in model.named_modules() if isinstance(m, PRODUCERS)}
    hooks = [m.register_forward_hook(note(n)) for n, m in layers.items()]
    run_once(model, example, hooks)

    def group_at(name: str, side: str) -> str | None:
        # a layer fed by a concatenation has several groups on one side; the largest stands for it in estimates
        hits = [(len(s.positions), g.name) for g in groups for s in g.slices if s.layer == name and s.side == side]
        return max(hits)[1] if hits else None

    width = {g.name: g.width for g in groups}
    ops = []
    for name, (x, y) in shapes.items():
        layer = layers[name]
        depthwise = getattr(layer, "groups", 1) > 1
        out_group = group_at(name, "out")
        common = {
            "name": name,
            "in_group": out_group if depthwise else group_at(name, "in"),
            "out_group": out_group,
            # a fixed shortcut stays when its block is removed
            "block": _block_of(blocks, name) if is_trained(layer) else None,
        }
        if isinstance(layer, nn.Linear):
            rows = math.prod(x[1:-1])
            fed_by = common["in_group"]
            ops.append(
                Op(
                    kind="linear",
                    in_channels=layer.in_features,
                    out_channels=layer.out_features,
                    kernel=(1, 1),
                    stride=(1, 1),
                    padding=(0, 0),
                    dilation=(1, 1),
                    conv_groups=1,
                    in_hw=(rows, 1),
                    out_hw=(rows, 1),
                    in_repeat=layer.in_features // width[fed_by] if fed_by else 1,
                    out_repeat=layer.out_features // width[out_group] if out_group else 1,
                    **common,  # type: ignore[arg-type]
                )
            )
        else:
            ops.append(
                Op(
                    kind="conv1d" if isinstance(layer, nn.Conv1d) else "conv",
                    in_channels=layer.in_channels,
                    out_channels=layer.out_channels,
                    kernel=_pair(layer.kernel_size),
                    stride=_pair(layer.stride),
                    padding=_pair(_padding(layer), fill=0),
                    dilation=_pair(layer.dilation),
                    conv_groups=layer.groups,
                    in_hw=_pair(tuple(x[2:])),
                    out_hw=_pair(tuple(y[2:])),
                    **common,  # type: ignore[arg-type]
                )
            )
    return (*ops, *_attention_ops(model, shapes, width, blocks))


def _attention_ops(
    model: nn.Module,
    shapes: Mapping[str, tuple[torch.Size, torch.Size]],
    width: Mapping[str, int],
    blocks: Sequence[NestedBlock],
) -> Iterator[Op]:
    """Both matrix products of every attention: each head compares all pairs of rows and mixes as many."""
    for layer in transformers.attention_layers(model):
        x, y = shapes[layer.query]
        heads, rows = y[-1] // layer.head_size, x[-2]
        group = f"{layer.name}.heads" if f"{layer.name}.heads" in width else None
        yield Op(
            name=f"{layer.name}.attention",
            kind="attention",
            in_channels=heads * 2 * layer.head_size,
            out_channels=heads,
            kernel=(1, 1),
            stride=(1, 1),
            padding=(0, 0),
            dilation=(1, 1),
            conv_groups=heads,
            in_hw=(rows, 1),
            out_hw=(rows, rows),
            in_group=group,
            out_group=group,
            block=_block_of(blocks, layer.query),
            in_repeat=2 * layer.head_size,
        )


def _padding(layer: nn.Conv1d | nn.Conv2d) -> object:
    """Padding in numbers where the layer says it in words; `same` pads an odd one behind, which changes no cost."""
    if layer.padding == "same":
        return tuple(d * (k - 1) // 2 for k, d in zip(layer.kernel_size, layer.dilation, strict=True))
    return 0 if layer.padding == "valid" else layer.padding


def _pair(value: object, fill: int = 1) -> tuple[int, int]:
    """Sizes of a 1-d or 2-d layer as (height, width); a 1-d layer has height `fill`."""
    if isinstance(value, int):
        return value, value
    sizes = tuple(int(v) for v in value)  # type: ignore[attr-defined]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (fill, sizes[0])
