"""The licence that a model card names, and cards that name none."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlprune_edge.tasks.model_card import licence


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\nlanguage: en\n---\n# A network\n", "apache-2.0"),
        ("---\nlanguage: en\n---\n# A network\n", None),
        ("# No front matter\n", None),
        ("---\nlicense: [mit\n---\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        (None, None),
    ],
)
def test_the_licence_is_the_one_the_card_names(tmp_path: Path, card: str | None, expected: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence(str(tmp_path)) == expected


def test_a_hub_that_cannot_be_reached_names_no_licence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert licence("nobody/nothing") is None
