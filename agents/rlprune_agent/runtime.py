"""ONNX Runtime: sessions from bytes with every option said, its errors sorted into failure kinds.

The only file that imports onnxruntime. It is imported in child processes only: on some boards the import itself kills
the process (SIGILL in 1.21.0 on CPUs without LSE atomics, microsoft/onnxruntime#23957).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

# Imported here and not where it is first used: numpy loads it late, and what that leaves on the heap moved the memory
# figure of a ResNet-50 by 4 %, for jobs with made-up weights only.
from numpy.random import RandomState

from rlprune_agent.protocol import Failure

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

# What each provider is told, all of it said even where it is the default: a default that changes with a version would
# change figures unseen. A job may set these and no others: some further ones name libraries to load or files to write.
_OPTIONS: dict[str, dict[str, str]] = {
    CPU: {},
    CUDA: {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",
    },
    TENSORRT: {
        "device_id": "0",
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
        "trt_max_workspace_size": str(1 << 30),
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
    },
}
# Known to newer versions only, so they are sent only when asked for.
_OPTIONAL = {CUDA: ("use_tf32", "gpu_mem_limit"), TENSORRT: ("trt_builder_optimization_level", "trt_bf16_enable")}
_BEHIND = {CPU: (CPU,), CUDA: (CUDA, CPU), TENSORRT: (TENSORRT, CUDA, CPU)}
_ENGINES_KEPT = 8
_CONFIG = {
    # Pruned and seeded weights can produce denormals, which slow a CPU down by an order of magnitude.
    "session.set_denormal_as_zero": "1",
    # Spinning threads are what an app gets by default; they stop between runs so as not to heat the board for nothing.
    "session.intra_op.allow_spinning": "1",
    "session.force_spinning_stop": "1",
    # Bytes that happen to look like ONNX Runtime's own format would pass the intake check by.
    "session.load_model_format": "ONNX",
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

# A model of one Identity node (float[1]), encoded by hand: the board has no `onnx` package.
_IR_AT, _OPSET_AT, _NEWEST = 1, -1, 60
_IDENTITY = bytes.fromhex(
    "08073a370a100a017812017922084964656e74697479"
    "1201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a020801"
    "42040a00100d"
)


class Asked(NamedTuple):
    """Where a model is to run, and how: the part of a job that is about the provider."""

    provider: str = CPU
    options: dict[str, str] = {}  # noqa: RUF012 - never written to
    engines: Path | None = None
    """folder for built engines, TensorRT only"""


ON_CPU = Asked()


def asked(job: dict[str, Any]) -> Asked:
    """The provider and options of a job (`job["runtime"]`; absent: the CPU). Raises `Failure("bad_request")`."""
    runtime = job.get("runtime") or {}
    provider = runtime.get("provider", CPU) if isinstance(runtime, dict) else None
    if not isinstance(provider, str) or provider not in _OPTIONS:
        raise Failure("bad_request", "the provider must be one of {}, not {!r}".format(", ".join(_OPTIONS), provider))
    wanted = runtime.get("options") or {}
    allowed = (*_OPTIONS[provider], *_OPTIONAL.get(provider, ()))
    options = dict(_OPTIONS[provider])
    for name, value in wanted.items() if isinstance(wanted, dict) else [(wanted, None)]:
        if name not in allowed or not isinstance(value, (str, int)):
            what = "the option {!r} = {!r} is not taken for {}; it knows {}"
            raise Failure("bad_request", what.format(name, value, provider, ", ".join(allowed) or "none"))
        options[name] = str(int(value)) if isinstance(value, bool) else str(value)
    engines = Path(job["store"]).parent / "engines" if provider == TENSORRT else None
    return Asked(provider, options, engines)


def options_echo(threads: int, where: Asked = ON_CPU) -> dict[str, Any]:
    """All the options a session is made with, for the record."""
    return {
        "provider": where.provider,
        "provider_options": dict(where.options),
        "providers_behind": list(_BEHIND[where.provider][1:]),
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
    """One session. External data is refused by loading from bytes: a model is one file.

    Raises `Failure`: the model's fault as `classify` sorts it, or `runtime_missing` where the provider asked for is not
    the one that would run it. ONNX Runtime itself would go on with the CPU and print a line.
    """

    def __init__(self, data: bytes, threads: int, where: Asked = ON_CPU, *, profile: str | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        for key, value in _CONFIG.items():
            options.add_session_config_entry(key, value)
        _require(where.provider, ort.get_available_providers(), "was built without")
        try:
            self._session = ort.InferenceSession(
                data,
                options,
                providers=_providers(data, where),
                enable_fallback=0,  # to the CPU, silently
                read_config_from_model=0,  # a file may not set the session's options
            )
        except Exception as error:  # noqa: BLE001 - the binding raises a dozen types whose only common base this is
            raise _failure(error, "loading the model") from None
        _require(where.provider, self._session.get_providers()[:1], "cannot start")
        # The binding keeps the file's bytes for a fallback that is off: as much memory again as the weights take.
        self._session._model_bytes = None
        self._session.disable_fallback()
        self.output_names: list[str] = [o.name for o in self._session.get_outputs()]
        self.input_names: list[str] = [i.name for i in self._session.get_inputs()]
        self.run = self._session.run
        """`run(None, feeds)` as ONNX Runtime has it: the timed loop must not pay for a wrapper"""

    def provider_options(self) -> dict[str, dict[str, str]]:
        """What each provider really uses, as ONNX Runtime tells it: more than it was told."""
        return {name: dict(values) for name, values in self._session.get_provider_options().items()}

    def nodes_by_provider(self, feeds: dict[str, np.ndarray]) -> dict[str, int]:
        """How many nodes ran where, from the profile of one inference; ends profiling (ask for it when creating)."""
        self.checked_run(feeds)
        path = Path(self._session.end_profiling())
        found: dict[str, int] = {}
        for event in json.loads(path.read_text()):
            if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
                provider = str(event["args"].get("provider", "unknown"))
                found[provider] = found.get(provider, 0) + 1
        return found

    def check_made_up(self, outputs: dict[str, np.ndarray]) -> None:
        """All that can be said of outputs of made-up weights: they are finite, and of the announced shape.

        Raises `Failure("output_mismatch")` with `synthetic` in its details: measure it with its own weights then.
        """
        for spec in self._session.get_outputs():
            value = outputs[spec.name]
            if not isinstance(value, np.ndarray):
                continue
            fixed = [(a, b) for a, b in zip(spec.shape, value.shape) if isinstance(a, int)]
            if len(spec.shape) != value.ndim or any(a != b for a, b in fixed):
                what = f"the output {spec.name} has the shape {value.shape}, the model says {spec.shape}"
                raise Failure("output_mismatch", what, synthetic=True)
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                what = f"the output {spec.name} is not finite with made-up weights; measure the model with its own"
                raise Failure("output_mismatch", what, synthetic=True)

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
        rng = RandomState(seed)
        feeds = {}
        for spec in self._session.get_inputs():
            if spec.type not in _DTYPES:
                raise Failure("unsupported_op", f"input {spec.name} is a {spec.type}")
            shape: tuple[int, ...] = tuple(d if isinstance(d, int) and d > 0 else 1 for d in spec.shape)
            dtype = np.dtype(_DTYPES[spec.type])
            values = rng.standard_normal(shape) if dtype.kind == "f" else rng.randint(0, 2, shape)
            feeds[spec.name] = np.asarray(values).astype(dtype)
        return feeds


def _require(provider: str, there: list[str], why: str) -> None:
    if provider in there:
        return
    raise Failure(
        "runtime_missing",
        "onnxruntime {} on this device {} {} (it has: {}). Install the build that has it (on a Jetson: the "
        "onnxruntime-gpu wheel of its JetPack, which also fixes CUDA, cuDNN and TensorRT), or ask for {}.".format(
            ort.__version__, why, provider, ", ".join(ort.get_available_providers()), CPU
        ),
    )


def _providers(data: bytes, where: Asked) -> list[str | tuple[str, dict[str, str]]]:
    """Providers in order, each with its options; those behind the first take the nodes that it cannot run."""
    options = {name: dict(_OPTIONS[name]) for name in _BEHIND[where.provider]}
    options[where.provider] = dict(where.options)
    if where.engines is not None:
        options[where.provider]["trt_engine_cache_path"] = str(engine_folder(where.engines, data, where.options))
    return [(name, options[name]) for name in _BEHIND[where.provider]]


def engine_folder(engines: Path, data: bytes, options: dict[str, str]) -> Path:
    """Where this model's engine lies: built once for these very bytes, options and version of ONNX Runtime.

    TensorRT writes its own version and the GPU's into the file names. Older folders are removed, eight are kept.
    """
    key = hashlib.sha256(json.dumps([ort.get_build_info(), options], sort_keys=True).encode())
    key.update(data)
    folder = engines / key.hexdigest()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.utime(str(folder))
    by_age = sorted(engines.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in by_age[_ENGINES_KEPT:]:
        shutil.rmtree(str(old), ignore_errors=True)
    return folder


def prepare(data: bytes, threads: int, where: Asked, feeds: dict[str, np.ndarray]) -> dict[str, int]:
    """Build whatever the provider builds (a TensorRT engine takes minutes), in a phase of its own, before any clock.

    Returns how many nodes ran on which provider, so that a node left to the CPU is seen.
    """
    with tempfile.TemporaryDirectory(prefix="rlprune-profile-") as folder:
        return Model(data, threads, where, profile=os.path.join(folder, "run")).nodes_by_provider(feeds)


def _newest(at: int) -> int:
    """The highest number that a model may say at byte `at` of the Identity model and still run; 0 if none may."""
    value = np.array([1.5], np.float32)
    for number in range(_NEWEST, 0, -1):
        data = bytearray(_IDENTITY)
        data[at] = number
        try:
            Model(bytes(data), 1).checked_run({"x": value})
        except Failure:
            continue
        return number
    return 0


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
        "opset_max": _newest(_OPSET_AT),
        "ir_max": _newest(_IR_AT),
    }
