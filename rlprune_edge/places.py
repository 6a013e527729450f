"""Where things are kept between runs, and how the user says where."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Trained models, measurements, wheels: $RLPRUNE_CACHE, else the user's cache folder. May always be deleted."""
    return _place("RLPRUNE_CACHE", "XDG_CACHE_HOME", ".cache")


def config_dir() -> Path:
    """The user's boards and their host keys: $RLPRUNE_CONFIG, else the user's configuration folder."""
    return _place("RLPRUNE_CONFIG", "XDG_CONFIG_HOME", ".config")


def _place(ours: str, general: str, usual: str) -> Path:
    if chosen := os.environ.get(ours):
        return Path(chosen)
    return Path(os.environ.get(general) or Path.home() / usual) / "rlprune-edge"
