"""The on-device agent: takes models from a host, times them in fresh processes, sends raw figures back.

Python 3.8, standard library, numpy and onnxruntime only, so that it runs on the oldest board system we support.
"""

import os

# onnxruntime reads it when it is imported, and otherwise sends usage data from the board.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


__version__ = "0.1.0"
