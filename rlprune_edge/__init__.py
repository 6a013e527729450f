"""Compress a trained model until it meets a latency budget on your own board, measured there."""

import os

# onnxruntime reads it when it is imported, and otherwise sends usage data. What this product does is its user's affair.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


__version__ = "0.1.0"
