"""Compress a trained model until it meets a latency budget on your own board, measured there."""

__version__ = "0.1.0"
