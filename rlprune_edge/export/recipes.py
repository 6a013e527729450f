"""How the initializers of an exported file are made from the tensors of the module that was exported."""

# What torch's exporter does to weights, copied operation by operation so that the very same bits come out: it hands
# most tensors on, transposes those of linear layers (MatMul wants [in, out]), gives a GroupNorm's weights the axes they
# are broadcast over, folds a BatchNorm into the convolution before it (eval_peephole.cpp) and computes a convolution
# with weight norm once.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
"""a module's parameters and buffers by name"""
_HEAD = 8  # elements of each end that are compared before all are


@dataclass(frozen=True)
class Recipe:
    """One way to make an array from a module's tensors."""

    kind: str
    names: tuple[str, ...]
    """of the tensors it is made of, in the order that the function of this kind takes them; `""`: there is none"""
    eps: float = 0.0

    def make(self, tensors: Tensors) -> np.ndarray:
        """The array, in C order. Raises KeyError where the module has not all of the tensors."""
        taken = [tensors[name].detach() if name else None for name in self.names]
        made = _KINDS[self.kind](self.eps, *taken)
        return np.ascontiguousarray(made.numpy())


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name; one that has several names is found under each."""
    named: dict[str, Tensor] = {}
    for path, part in module.named_modules():  # one walk; named_parameters and named_buffers take three times as long
        at = f"{path}." if path else ""
        for held in (part._parameters, part._buffers):
            named.update((at + name, tensor) for name, tensor in held.items() if tensor is not None)
    return named


# ---------------------------------------------------------------- the kinds


def _scale(eps: float, gamma: Tensor, variance: Tensor) -> Tensor:
    return gamma / variance.add(eps).sqrt()


def _folded_weight(eps: float, weight: Tensor, gamma: Tensor, variance: Tensor) -> Tensor:
    return weight * _scale(eps, gamma, variance).reshape(-1, *[1] * (weight.dim() - 1))


def _folded_bias(
    eps: float, bias: Tensor | None, gamma: Tensor, variance: Tensor, beta: Tensor, mean: Tensor
) -> Tensor:
    start = torch.zeros_like(mean) if bias is None else bias
    return (start - mean) * _scale(eps, gamma, variance) + beta


def _weight_norm(_eps: float, g: Tensor, v: Tensor) -> Tensor:
    axes = [axis for axis, size in enumerate(g.shape) if size == 1 and v.shape[axis] > 1]
    made: Tensor = v / torch.linalg.vector_norm(v, 2, axes, keepdim=True) * g
    return made


_KINDS: dict[str, Callable[..., Tensor]] = {
    "as it is": lambda _eps, t: t,
    "transposed": lambda _eps, t: t.T,
    "unsqueezed": lambda _eps, t: t[:, None],
    "folded weight": _folded_weight,
    "folded bias": _folded_bias,
    "weight norm": _weight_norm,
}


# ---------------------------------------------------------------- recognising them


class Cookbook:
    """All recipes that a module offers, to look arrays up in."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = tensors_of(module)
        self._index: dict[tuple[object, ...], list[Recipe]] = {}
        for recipe in self._plain(module):
            self._index.setdefault(_ends(recipe, self._tensors), []).append(recipe)
        self._folds = _Folds(module, self._tensors)

    def find(self, name: str, values: np.ndarray) -> Recipe | None:
        """The recipe that gives exactly `values`: of the tensor called `name` if that does, else of the first one."""
        fitting = self._index.get(_fingerprint(values), [])
        for recipe in sorted(fitting, key=lambda r: r.names != (name,)):
            if np.array_equal(recipe.make(self._tensors), values):
                return recipe
        return self._folds.weight(values)

    def bias(self, weight: Recipe | None, values: np.ndarray) -> Recipe | None:
        """The recipe of a convolution's bias, where its weight was made by folding and the bias by the same."""
        if weight is None or weight.kind != "folded weight":
            return None
        recipe = self._folds.bias(weight)
        return recipe if np.array_equal(recipe.make(self._tensors), values) else None

    def _plain(self, module: nn.Module) -> Iterator[Recipe]:
        for name, tensor in self._tensors.items():
            yield Recipe("as it is", (name,))
            if tensor.dim() == 2:
                yield Recipe("transposed", (name,))
            if tensor.dim() == 1:
                yield Recipe("unsqueezed", (name,))
        for name, layer in module.named_modules():
            norm = getattr(getattr(layer, "parametrizations", None), "weight", None)
            if type(getattr(norm, "0", None)).__name__ == "_WeightNorm":
                at = f"{name}.parametrizations.weight."
                yield Recipe("weight norm", (f"{at}original0", f"{at}original1"))


class _Folds:
    """Convolutions and the BatchNorms that may have been folded into them."""

    def __init__(self, module: nn.Module, tensors: Tensors) -> None:
        self._tensors = tensors
        self._convolutions: dict[tuple[int, ...], list[tuple[int, str]]] = {}
        self._norms: dict[int, list[tuple[int, str, float, Tensor]]] = {}
        self._pairs: dict[tuple[str, str], tuple[str, str]] = {}
        for place, (name, layer) in enumerate(module.named_modules()):
            at = f"{name}." if name else ""
            if isinstance(layer, nn.modules.conv._ConvNd) and f"{at}weight" in tensors:
                self._convolutions.setdefault(tuple(layer.weight.shape), []).append((place, at))
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine and layer.track_running_stats:
                scale = _scale(layer.eps, tensors[f"{at}weight"], tensors[f"{at}running_var"]).detach()
                self._norms.setdefault(layer.num_features, []).append((place, at, layer.eps, scale))

    def weight(self, values: np.ndarray) -> Recipe | None:
        """The first pair that gives these values; a norm that stands soon after its convolution is tried first."""
        if values.dtype != np.float32 or values.ndim < 3:
            return None
        for place, conv in self._convolutions.get(tuple(values.shape), []):
            weight = self._tensors[f"{conv}weight"].detach()
            first, wanted = weight[0].flatten()[:_HEAD], values[0].reshape(-1)[:_HEAD]
            norms = self._norms.get(len(values), [])
            for _, norm, eps, scale in sorted(norms, key=lambda n: (n[0] < place, abs(n[0] - place))):
                if np.array_equal((first * scale[0]).numpy(), wanted):
                    recipe = Recipe("folded weight", (f"{conv}weight", f"{norm}weight", f"{norm}running_var"), eps)
                    if np.array_equal(recipe.make(self._tensors), values):
                        return recipe
        return None

    def bias(self, weight: Recipe) -> Recipe:
        conv, gamma, variance = weight.names
        norm, own = gamma.removesuffix("weight"), conv.removesuffix("weight") + "bias"
        names = (own if own in self._tensors else "", gamma, variance, f"{norm}bias", f"{norm}running_mean")
        return Recipe("folded bias", names, weight.eps)


def _ends(recipe: Recipe, tensors: Tensors) -> tuple[object, ...]:
    made = tensors[recipe.names[0]].detach().numpy() if len(recipe.names) == 1 else recipe.make(tensors)
    if recipe.kind == "transposed":
        made = made.T
    elif recipe.kind == "unsqueezed":
        made = made[:, None]
    return _fingerprint(made)


def _fingerprint(array: np.ndarray) -> tuple[object, ...]:
    """Equal for equal arrays, and seldom for others."""
    ends = np.concatenate([array.flat[:_HEAD], array.flat[-_HEAD:]])
    return (array.shape, array.dtype.name, ends.tobytes())
