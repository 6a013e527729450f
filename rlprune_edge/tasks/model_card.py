"""What a network's model card says (home of huggingface_hub)."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, hf_hub_download
from yaml import YAMLError  # type: ignore[import-untyped]

CARD = "README.md"


def licence(where: str) -> str | None:
    """The licence in the card of a folder or hub id; `None` where there is no card, or it names none."""
    folder = Path(where).expanduser()
    try:
        file = folder / CARD if folder.is_dir() else Path(hf_hub_download(where, CARD))
        card = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (OSError, ValueError, YAMLError):  # none there, not to be had, or not what a card should be
        return None
    named = getattr(card.data, "license", None)  # the card's own spelling
    return named if isinstance(named, str) else None
