"""Compress a trained model until it meets a latency budget on your own board, measured there."""

import os

# onnxruntime reads it when it is imported, and otherwise sends usage data. What this product does is its user's affair.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# PyTorch's OpenMP reads it when torch is imported. Its threads wait spinning; where they have to share cores with other
# work, that is time taken from each other: on two cores one busy neighbour made a training step 56 times slower. Fewer
# turns cost nothing on a quiet machine (tools/bench/beside_work.py). Who has chosen how they wait is heeded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
