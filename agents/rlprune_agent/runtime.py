"""ONNX Runtime: sessions from bytes with every option said, its errors sorted into failure kinds.

The only file that imports onnxruntime. It is imported in child processes only: on some boards the import itself kills
the process (SIGILL in 1.21.0 on CPUs without LSE atomics, microsoft/onnxruntime#23957).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime as ort

from rlprune_agent.protocol import Failure

PROVIDER = "CPUExecutionProvider"
_CONFIG = {
    # Pruned and seeded weights can produce denormals, which slow a CPU down by an order of magnitude.
    "session.set_denormal_as_zero": "1",
    # Spinning threads are what an app gets by default; they stop between runs so as not to heat the board for nothing.
    "session.intra_op.allow_spinning": "1",
    "session.force_spinning_stop": "1",
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}

# A model of one Identity node (IR 7, opset 13, float[1]), encoded by hand: the board has no `onnx` package.
_IDENTITY = bytes.fromhex(
    "08073a370a100a017812017922084964656e74697479"
    "1201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a020801"
    "42040a00100d"
)


def options_echo(threads: int) -> dict[str, Any]:
    """All the options a session is made with, for the record."""
    return {
        "provider": PROVIDER,
        "intra_op_threads": threads,
        "inter_op_threads": 1,
        "execution_mode": "sequential",
        "graph_optimization": "all",
        "config": dict(_CONFIG),
    }


def classify(text: str) -> str:
    """The failure kind of one of ONNX Runtime's messages; it has no error codes finer than `FAIL`."""
    lower = text.lower()
    if "failed to allocate" in lower or "bad_alloc" in lower or "out of memory" in lower:
        return "oom"
    for sign in ("not_implemented", "no op registered for", "is not a registered function/op"):
        if sign in lower:
            return "unsupported_op"
    return "load_failed"


def _failure(error: BaseException, doing: str) -> Failure:
    if isinstance(error, MemoryError):
        return Failure("oom", f"out of memory while {doing}")
    return Failure(classify(str(error)), f"{doing}: {str(error)[:1000]}")


class Model:
    """One session on the CPU. External data is refused by loading from bytes: a model is one file."""

    def __init__(self, data: bytes, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4
        for key, value in _CONFIG.items():
            options.add_session_config_entry(key, value)
        try:
            self._session = ort.InferenceSession(data, options, providers=[PROVIDER])
        except Exception as error:  # noqa: BLE001 - the binding raises a dozen types whose only common base this is
            raise _failure(error, "loading the model") from None
        self.output_names: list[str] = [o.name for o in self._session.get_outputs()]
        self.input_names: list[str] = [i.name for i in self._session.get_inputs()]
        self.run = self._session.run
        """`run(None, feeds)` as ONNX Runtime has it: the timed loop must not pay for a wrapper"""

    def checked_run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference, outputs by name; errors become a `Failure`."""
        if set(feeds) != set(self.input_names):
            names = ", ".join(sorted(self.input_names)), ", ".join(sorted(feeds))
            raise Failure("load_failed", "the model wants the inputs {} and was given {}".format(*names))
        try:
            return dict(zip(self.output_names, self.run(None, feeds)))
        except Exception as error:  # noqa: BLE001 - as above
            raise _failure(error, "running the model") from None

    def random_inputs(self, seed: int) -> dict[str, np.ndarray]:
        """Seeded inputs for the model's own input shapes; a free dimension becomes 1, integers are 0 or 1."""
        rng = np.random.RandomState(seed)
        feeds = {}
        for spec in self._session.get_inputs():
            if spec.type not in _DTYPES:
                raise Failure("unsupported_op", f"input {spec.name} is a {spec.type}")
            shape: tuple[int, ...] = tuple(d if isinstance(d, int) and d > 0 else 1 for d in spec.shape)
            dtype = np.dtype(_DTYPES[spec.type])
            values = rng.standard_normal(shape) if dtype.kind == "f" else rng.randint(0, 2, shape)
            feeds[spec.name] = np.asarray(values).astype(dtype)
        return feeds


def probe() -> dict[str, Any]:
    """Run a 65-byte model, and say what ran it: a list of compiled-in providers proves nothing, one inference does."""
    value = np.array([1.5], np.float32)
    got: np.ndarray | None = Model(_IDENTITY, 1).checked_run({"x": value}).get("y")
    if got is None or not np.array_equal(got, value):
        raise Failure("runtime_missing", f"onnxruntime {ort.__version__} computes the identity wrongly")
    return {
        "onnxruntime": ort.__version__,
        "build": ort.get_build_info(),
        "providers": ort.get_available_providers(),
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }
