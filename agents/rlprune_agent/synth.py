"""Give a graph that came without its weights seeded ones, so that it runs as the trained model would.

Latency does not depend on the values of weights, as long as they are neither denormal (slow on many CPUs), nor zero or
all the same (less power, and folded away), nor let activations vanish or overflow. The values are written into the file
itself: ONNX Runtime then loads the very form the finished model has, with the same memory, on every version of it.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, NamedTuple

from rlprune_agent import intake
from rlprune_agent.intake import Intake
from rlprune_agent.protocol import Failure
from rlprune_agent.tensors import DOUBLE, FLOAT, FLOAT16, INT32, Span, Synthetic
from rlprune_agent.wire import Budget, encoded, fields

if TYPE_CHECKING:
    import numpy as np

Values = Callable[[int, Synthetic], Iterable["bytes | memoryview"]]
"""(number of the tensor in the file, the tensor) -> its values as bytes, little endian, in portions"""

_PORTION = 1 << 16
"""bytes drawn at a time; the stream is the same for any size divisible by eight. Few enough for malloc to keep: a
mapping given back would move its threshold, and the memory figure with it"""
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14

# Per type: the words it is made of, itself, the bits that stay random (sign, mantissa), those of the exponent of one.
_PATTERNS = {
    FLOAT: ("<u4", "<f4", 0x807FFFFF, 0x3F800000),
    FLOAT16: ("<u2", "<f2", 0x83FF, 0x3C00),
    DOUBLE: ("<u8", "<f8", 0x800FFFFFFFFFFFFF, 0x3FF0000000000000),
}

# How large: values lie in +-[1, 2) times the size, evenly, which has a root mean square of 1.53 times the size.
_RMS = math.sqrt(7 / 3)
_BIAS = 0.02
_OTHER = 0.25

_NORMS = {
    "BatchNormalization": ("near one", "bias", "bias", "near one"),
    "LayerNormalization": ("near one", "bias"),
    "InstanceNormalization": ("near one", "bias"),
    "GroupNormalization": ("near one", "bias"),
    "RMSNormalization": ("near one",),
    "SimplifiedLayerNormalization": ("near one",),
    "SkipLayerNormalization": ("other", "near one", "bias", "bias"),
    "SkipSimplifiedLayerNormalization": ("other", "near one", "bias"),
    "EmbedLayerNormalization": ("other", "other", "other", "other", "near one", "bias"),
}
_FACTORS = ("Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Log")
_TERMS = ("Add", "Sub", "Sum")


class Purpose(NamedTuple):
    """What values a tensor wants."""

    kind: str
    """weight, bias, near one, other"""
    fan_in: int = 1


def purpose(tensor: Synthetic) -> Purpose:
    """From how it is used. A weight's fan-in is how many products are summed up into one output."""
    use, dims = tensor.use, tensor.used_dims
    if use is None or not dims:
        return Purpose("other")
    if use.op in _NORMS and 0 < use.place <= len(_NORMS[use.op]):
        return Purpose(_NORMS[use.op][use.place - 1])
    if use.op in _FACTORS:
        return Purpose("near one")
    if use.op in _TERMS or (use.place == 2 and use.op in ("Conv", "ConvTranspose", "Gemm", "FusedConv", "FusedGemm")):
        return Purpose("bias")
    fan_in = _fan_in(use.op, use.place, use.attributes, dims)
    return Purpose("other") if fan_in is None else Purpose("weight", max(1, fan_in))


def _fan_in(op: str, place: int, attributes: dict[str, list[int]], dims: tuple[int, ...]) -> int | None:
    kernel = math.prod(dims[2:])
    if op in ("Conv", "FusedConv") and place == 1 and len(dims) > 1:
        return dims[1] * kernel
    if op == "ConvTranspose" and place == 1 and len(dims) > 1:
        shared = math.prod(attributes.get("strides", [1])) * attributes.get("group", [1])[0]
        return dims[0] * kernel // max(1, shared)
    if op in ("Gemm", "FusedGemm") and len(dims) == 2:
        turned = attributes.get("transA" if place == 0 else "transB", [0])[0]
        return dims[1 if (place == 0) != bool(turned) else 0]
    if op in ("MatMul", "FusedMatMul", "TransposeMatMul", "Attention", "Einsum"):
        return dims[-1] if place == 0 or len(dims) < 2 else dims[-2]
    if op in ("LSTM", "GRU", "RNN") and place in (1, 2):
        return dims[-1]
    return None


def whole(data: bytes, weights: object, memory_bytes: int) -> bytes:
    """The file as ONNX Runtime gets it: checked, and with seeded weights where it came without.

    `weights` is what the job says of this model: `None`, or `{"seed": number}`. Raises `Failure`.
    """
    seed = weights.get("seed") if isinstance(weights, dict) else None
    if weights is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32):
        raise Failure("bad_request", "weights must be {'seed': a number from 0 to 4294967295} or null")
    if seed is None:
        intake.check(data, synthetic=False, memory_bytes=memory_bytes)
        return data
    data = intake.unpacked(data)
    return fill(data, intake.check(data, synthetic=True, memory_bytes=memory_bytes), seeded(seed))


def fill(data: bytes, found: Intake, values: Values) -> bytes:
    """`data` with `values` as the raw data of every tensor that had none; all else stays byte for byte."""
    if not found.synthetic:
        return data
    tensors = {tensor.spans[-1]: (number, tensor) for number, tensor in enumerate(found.synthetic)}
    heads = {span: _kept(data, tensor, span) for span, (_, tensor) in tensors.items()}
    # Every message around a tensor grows with it, and with the length of its length. Inner messages begin later.
    old = {span for tensor in found.synthetic for span in tensor.spans}
    sizes = {span: span[2] - span[1] for span in old}
    above = {inner: outer for tensor in found.synthetic for outer, inner in zip(tensor.spans, tensor.spans[1:])}
    for span in sorted(old, key=lambda s: s[1], reverse=True):
        before = len(encoded(span[2] - span[1])) + span[2] - span[1]
        if span in tensors:
            sizes[span] = len(heads[span]) + tensors[span][1].bytes
        if span in above:
            sizes[above[span]] += len(encoded(sizes[span])) + sizes[span] - before
    out = io.BytesIO()
    at = 0
    for span in sorted(old, key=lambda s: s[1]):
        out.write(data[at : span[0]])
        out.write(encoded(sizes[span]))
        at = span[1]
        if span in tensors:
            number, tensor = tensors[span]
            out.write(heads[span])
            written = sum(out.write(portion) for portion in values(number, tensor))
            assert written == tensor.bytes
            at = span[2]
    out.write(data[at:])
    return out.getvalue()


def _kept(data: bytes, tensor: Synthetic, span: Span) -> bytes:
    """The tensor's message without its location, up to where its values begin."""
    spoken = fields(data, span[1], span[2], Budget())
    kept = b"".join(data[f.at : f.end] for f in spoken if f.number not in (_EXTERNAL_DATA, _DATA_LOCATION))
    return kept + encoded(_RAW_DATA << 3 | 2) + encoded(tensor.bytes)


def seeded(seed: int) -> Values:
    """Values from a seed: the same on every machine and every numpy, other ones for every tensor."""

    def values(number: int, tensor: Synthetic) -> Iterator[memoryview]:
        import numpy as np

        # The legacy generator's stream is frozen by numpy's own policy (NEP 19); whole words are five times as fast to
        # get as bytes.
        stream = np.random.RandomState([seed, number])
        wanted = purpose(tensor)
        left = tensor.bytes
        while left:
            portion = min(left, _PORTION)
            words = stream.randint(0, 1 << 32, size=(portion + 7) // 8 * 2, dtype=np.uint32).astype("<u4", copy=False)
            yield _shaped(words, tensor.data_type, wanted).view(np.uint8)[:portion].data
            left -= portion

    return values


def _shaped(words: np.ndarray, data_type: int, wanted: Purpose) -> np.ndarray:
    """Random bits as values, in place. A float's sign and mantissa stay random, its exponent is set: no denormals."""
    import numpy as np

    if data_type == INT32:  # biases of quantised layers, in units of input scale times weight scale
        biases = words.view("<i4")
        biases >>= 21
        return biases
    if data_type not in _PATTERNS:  # quantised weights: the full range
        return words
    unsigned, floating, free, one = _PATTERNS[data_type]
    bits = words.view(unsigned)
    bits &= bits.dtype.type(free)
    bits |= bits.dtype.type(one)
    numbers = bits.view(floating)
    number = numbers.dtype.type
    if wanted.kind == "near one":
        np.abs(numbers, out=numbers)
        numbers *= number(0.4)
        numbers += number(0.4)  # 0.8 to 1.2
        return numbers
    size = {"weight": 1 / (_RMS * math.sqrt(wanted.fan_in)), "bias": _BIAS}.get(wanted.kind, _OTHER)
    numbers *= number(max(size, 2.0**-13))  # the smallest half that is not denormal is 2**-14
    return numbers
