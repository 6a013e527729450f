"""How transformers' encoders are built: where heads, neurons and front-end channels are, how parts are left out.

The one place that knows the names inside BERT, RoBERTa, ELECTRA, DistilBERT, Wav2Vec2 and HuBERT (transformers 4.57);
whoever cuts, counts, saves or rebuilds such a network asks here. Nothing here imports transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SHAPE = "rlprune_edge"
"""the key of a pruned network's configuration under which its widths stand"""


# ---------------------------------------------------------------- what stands where a part was left out


class PassFirst(nn.Module):
    """In place of an attention sub-layer that adds its own residual: hands on what came in."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        return (hidden, None)  # type: ignore[return-value]  # where attention weights would be


class PassSecond(nn.Module):
    """In place of the end of a feed-forward sub-layer that adds the residual, its second argument."""

    def forward(self, _: Tensor, residual: Tensor) -> Tensor:
        return residual


class NoBranch(nn.Module):
    """In place of a branch whose caller adds the residual: adds zero, which costs nothing in an exported graph."""

    def __init__(self, outputs: int = 1) -> None:
        """`outputs`: length of the tuple that the caller unpacks; 1: a bare tensor."""
        super().__init__()
        self.outputs = outputs

    def forward(self, hidden: Tensor | None = None, *_: Any, **kwargs: Any) -> Any:
        zero = (kwargs["query"] if hidden is None else hidden).new_zeros(())
        return zero if self.outputs == 1 else (zero, *[None] * (self.outputs - 1))


# ---------------------------------------------------------------- the families


@dataclass(frozen=True)
class _Part:
    """One sub-layer, by paths inside its layer."""

    swaps: Mapping[str, Callable[[], nn.Module]]
    """what to put in the place of which module to leave the part out"""
    enter: str
    """the module whose input is the residual stream"""
    leave: str | None
    """the module whose output is the residual stream again; `None` where the layer itself adds `enter`'s output"""


@dataclass(frozen=True)
class _Family:
    layers: str
    """path of the list of layers inside the base model"""
    query: str
    key: str
    value: str
    merge: str
    counts: str
    """the module that keeps the number of heads"""
    head_size: str
    """its attribute"""
    heads: tuple[str, ...]
    """its attributes that hold the number of heads"""
    all_heads: tuple[str, ...]
    """its attributes that hold heads times head size"""
    widen: str
    narrow: str
    attention: _Part
    ffn: _Part


_BERT = _Family(
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    merge="attention.output.dense",
    counts="attention.self",
    head_size="attention_head_size",
    heads=("num_attention_heads",),
    all_heads=("all_head_size",),
    widen="intermediate.dense",
    narrow="output.dense",
    attention=_Part({"attention": PassFirst}, enter="attention", leave="attention"),
    ffn=_Part({"intermediate": nn.Identity, "output": PassSecond}, enter="intermediate", leave="output"),
)
_DISTILBERT = _Family(
    layers="transformer.layer",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    merge="attention.out_lin",
    counts="attention",
    head_size="attention_head_size",
    heads=("n_heads",),
    all_heads=("dim",),
    widen="ffn.lin1",
    narrow="ffn.lin2",
    attention=_Part(
        {"attention": lambda: NoBranch(2), "sa_layer_norm": nn.Identity}, enter="attention", leave="sa_layer_norm"
    ),
    ffn=_Part({"ffn": NoBranch, "output_layer_norm": nn.Identity}, enter="ffn", leave="output_layer_norm"),
)


def _speech(*, norm_first: bool) -> _Family:
    attention: dict[str, Callable[[], nn.Module]] = {"attention": lambda: NoBranch(3)}
    ffn: dict[str, Callable[[], nn.Module]] = {"feed_forward": NoBranch}
    if not norm_first:  # the norm that follows belongs to the sub-layer; one that comes first has no effect alone
        attention["layer_norm"] = nn.Identity
        ffn["final_layer_norm"] = nn.Identity
    return _Family(
        layers="encoder.layers",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        merge="attention.out_proj",
        counts="attention",
        head_size="head_dim",
        heads=("num_heads",),
        all_heads=("embed_dim",),
        widen="feed_forward.intermediate_dense",
        narrow="feed_forward.output_dense",
        attention=_Part(attention, enter="attention", leave=None if norm_first else "layer_norm"),
        ffn=_Part(ffn, enter="feed_forward", leave=None if norm_first else "final_layer_norm"),
    )


TEXT = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
SPEECH = ("wav2vec2", "hubert")


def _family(config: Any) -> _Family | None:
    kind = getattr(config, "model_type", None)
    if kind in ("bert", "roberta", "xlm-roberta", "electra"):
        return _BERT
    if kind == "distilbert":
        return _DISTILBERT
    return _speech(norm_first=bool(config.do_stable_layer_norm)) if kind in SPEECH else None


# ---------------------------------------------------------------- one network, seen through its family


@dataclass(frozen=True)
class Part:
    """A sub-layer of one layer, by the full names of the modules it is made of."""

    name: str
    """`layer.3.attention` or `layer.3.ffn`"""
    swaps: Mapping[str, Callable[[], nn.Module]]
    enter: str
    leave: str | None
    inside: str
    """prefix or name of the module that does the part's work"""


@dataclass(frozen=True)
class Layer:
    """One encoder layer; `attention` or `ffn` is `None` where it was left out before."""

    name: str
    head_size: int
    query: str
    key: str
    value: str
    merge: str
    widen: str
    narrow: str
    attention: Part | None
    ffn: Part | None


@dataclass(frozen=True)
class Convolution:
    """One layer of a speech network's front end, with all that shares its output channels."""

    name: str
    conv: str
    norms: tuple[str, ...]
    """GroupNorm or LayerNorm over its channels"""
    consumer: str
    """the next convolution, or the projection into the encoder"""


class EncoderView:
    """The parts of a network of transformers, by their names in the module it was found in."""

    def __init__(self, model: nn.Module, prefix: str, network: nn.Module) -> None:
        self.model, self._prefix = model, prefix
        self.network: Any = network
        """transformers' own network"""
        family = _family(network.config)
        assert family is not None
        self._family: _Family = family

    def _name(self, path: str) -> str:
        base = str(getattr(self.network, "base_model_prefix", ""))
        inner = f"{base}.{path}" if base and hasattr(self.network, base) else path
        return f"{self._prefix}.{inner}" if self._prefix else inner

    @property
    def layers(self) -> tuple[Layer, ...]:
        f, found = self._family, []
        stack = self._name(f.layers)
        for i, layer in enumerate(self.model.get_submodule(stack).children()):
            at = f"{stack}.{i}"
            attention = self._part(f"layer.{i}.attention", at, f.attention)
            head_size = getattr(layer.get_submodule(f.counts), f.head_size) if attention else 0
            found.append(
                Layer(
                    name=f"layer.{i}",
                    head_size=int(head_size),
                    query=f"{at}.{f.query}",
                    key=f"{at}.{f.key}",
                    value=f"{at}.{f.value}",
                    merge=f"{at}.{f.merge}",
                    widen=f"{at}.{f.widen}",
                    narrow=f"{at}.{f.narrow}",
                    attention=attention,
                    ffn=self._part(f"layer.{i}.ffn", at, f.ffn),
                )
            )
        return tuple(found)

    def layer_names(self) -> list[str]:
        """The layers' own module names, whose outputs are the hidden states."""
        stack = self._name(self._family.layers)
        return [f"{stack}.{i}" for i, _ in enumerate(self.model.get_submodule(stack).children())]

    def _part(self, name: str, at: str, part: _Part) -> Part | None:
        first = next(iter(part.swaps))
        if isinstance(self.model.get_submodule(f"{at}.{first}"), PassFirst | NoBranch | nn.Identity):
            return None
        swaps = {f"{at}.{path}": factory for path, factory in part.swaps.items()}
        leave = f"{at}.{part.leave}" if part.leave else None
        return Part(name, swaps, f"{at}.{part.enter}", leave, f"{at}.{first}")

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """The front end, first layer first; none for text."""
        if self.network.config.model_type not in SPEECH:
            return ()
        stack, projection = self._name("feature_extractor.conv_layers"), self._name("feature_projection")
        modules = list(self.model.get_submodule(stack).children())
        found = []
        for i, layer in enumerate(modules):
            norms = [f"{stack}.{i}.layer_norm"] if hasattr(layer, "layer_norm") else []
            last = i + 1 == len(modules)
            if last and hasattr(self.model.get_submodule(projection), "layer_norm"):
                norms.append(f"{projection}.layer_norm")
            consumer = f"{projection}.projection" if last else f"{stack}.{i + 1}.conv"
            found.append(Convolution(f"conv.{i}", f"{stack}.{i}.conv", tuple(norms), consumer))
        return tuple(found)

    # ------------------------------------------------------------ after surgery

    def settle(self) -> None:
        """Make the numbers that modules keep beside their weights agree with the weights."""
        f = self._family
        for layer in self.layers:
            if layer.attention is None:
                continue
            query = self.model.get_submodule(layer.query)
            holder = self.model.get_submodule(layer.query.removesuffix(f.query) + f.counts)
            assert isinstance(query, nn.Linear)
            for attribute in f.heads:
                setattr(holder, attribute, query.out_features // layer.head_size)
            for attribute in f.all_heads:
                setattr(holder, attribute, query.out_features)
        for convolution in self.convolutions:
            for name in convolution.norms:
                norm = self.model.get_submodule(name)
                if isinstance(norm, nn.GroupNorm):
                    norm.num_groups = norm.num_channels  # one group per channel, as it was built

    def leave_out(self, part: Part) -> None:
        for name, factory in part.swaps.items():
            self.model.set_submodule(name, factory())

    def shape(self) -> dict[str, Any]:
        """Its widths, `{"layers": [{"heads", "neurons"}, ...], "channels": [...]}`; 0 for a part that is left out."""
        layers = []
        for layer in self.layers:
            heads = self._rows(layer.query) // layer.head_size if layer.attention else 0
            layers.append({"heads": heads, "neurons": self._rows(layer.widen) if layer.ffn else 0})
        return {"layers": layers, "channels": [self._rows(c.conv) for c in self.convolutions]}

    def _rows(self, name: str) -> int:
        weight = self.model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return int(weight.shape[0])


def view(model: nn.Module) -> EncoderView | None:
    """The encoder in `model` (a network of transformers, or a module that holds one); `None` if there is none."""
    for name, module in model.named_modules():
        if hasattr(module, "base_model_prefix") and _family(getattr(module, "config", None)) is not None:
            return EncoderView(model, name, module)
    return None


def reshape(network: nn.Module, shape: Mapping[str, Any]) -> None:
    """Give a network just built from its configuration the widths of `shape`, see `EncoderView.shape`.

    The values are what the network was built with: a state dict is loaded next. Raises ValueError where `shape` is not
    of such a network.
    """
    seen = view(network)
    if seen is None:
        raise ValueError("not an encoder whose widths could be set")
    layers, convolutions = seen.layers, seen.convolutions
    widths: Sequence[Any] = shape.get("layers", ())
    channels: Sequence[Any] = shape.get("channels", ())
    if len(widths) != len(layers) or len(channels) != len(convolutions):
        raise ValueError(f"widths for {len(widths)} layers and {len(channels)} convolutions of another network")
    for layer, wanted in zip(layers, widths, strict=True):
        heads, neurons = int(wanted["heads"]), int(wanted["neurons"])
        if layer.attention is not None and not heads:
            seen.leave_out(layer.attention)
        elif layer.attention is not None:
            for name in (layer.query, layer.key, layer.value):
                _narrow(network.get_submodule(name), rows=heads * layer.head_size)
            _narrow(network.get_submodule(layer.merge), columns=heads * layer.head_size)
        if layer.ffn is not None and not neurons:
            seen.leave_out(layer.ffn)
        elif layer.ffn is not None:
            _narrow(network.get_submodule(layer.widen), rows=neurons)
            _narrow(network.get_submodule(layer.narrow), columns=neurons)
    for convolution, width in zip(convolutions, channels, strict=True):
        _narrow(network.get_submodule(convolution.conv), rows=int(width))
        for name in convolution.norms:
            _narrow(network.get_submodule(name), rows=int(width))
        _narrow(network.get_submodule(convolution.consumer), columns=int(width))
    seen.settle()


def _narrow(module: nn.Module, *, rows: int | None = None, columns: int | None = None) -> None:
    """Keep the first rows (outputs) or columns (inputs) of a layer, and say so in its attributes."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    kept = weight.detach()[:rows] if columns is None else weight.detach()[:, :columns]
    module.weight = nn.Parameter(kept.clone(), requires_grad=weight.requires_grad)
    bias = getattr(module, "bias", None)
    if rows is not None and isinstance(bias, nn.Parameter):
        module.bias = nn.Parameter(bias.detach()[:rows].clone(), requires_grad=bias.requires_grad)
    for attribute in _SIZES.get(type(module), {}).get("rows" if columns is None else "columns", ()):
        value: Any = rows if columns is None else columns
        setattr(module, attribute, (value,) if attribute == "normalized_shape" else value)


_SIZES: dict[type[nn.Module], dict[str, tuple[str, ...]]] = {
    nn.Linear: {"rows": ("out_features",), "columns": ("in_features",)},
    nn.Conv1d: {"rows": ("out_channels",), "columns": ("in_channels",)},
    nn.GroupNorm: {"rows": ("num_channels",)},
    nn.LayerNorm: {"rows": ("normalized_shape",)},
}


# ---------------------------------------------------------------- the same without surgery, to testify against it


class Bypassed:
    """While open, parts of `model` hand on their residual stream unchanged, by hooks alone."""

    def __init__(self, model: nn.Module, parts: Sequence[Part]) -> None:
        self._model, self._parts = model, parts
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        for part in self._parts:
            self._hooks += list(self._hooked(part))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hooked(self, part: Part) -> Iterator[Any]:
        held: list[Tensor] = []

        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            held[:] = [args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))]

        def leave(_module: nn.Module, _args: tuple[Any, ...], out: Any) -> Any:
            stream = held[0] if part.leave else torch.zeros_like(held[0])
            return (stream, *out[1:]) if isinstance(out, tuple) else stream

        yield self._model.get_submodule(part.enter).register_forward_pre_hook(enter, with_kwargs=True)
        yield self._model.get_submodule(part.leave or part.enter).register_forward_hook(leave)
