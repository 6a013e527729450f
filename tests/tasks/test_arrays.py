"""Splitting by class and augmenting: nothing lost, nothing twice, the same every time."""

from __future__ import annotations

import torch

from rlprune_edge.tasks.arrays import mirrored, shifted, split_by_class


def test_parts_hold_every_row_once_and_every_class_by_its_share() -> None:
    targets = torch.arange(1003) % 7
    parts = split_by_class(targets, (0.2, 0.1), seed=3)
    assert sorted(torch.cat(parts).tolist()) == list(range(1003))
    assert [len(part) for part in parts] == [201, 100, 702]
    assert all(abs(int((targets[parts[0]] == label).sum()) - 28.7) < 1 for label in range(7))


def test_the_seed_decides_the_parts() -> None:
    targets = torch.arange(100) % 4
    first, again, other = (split_by_class(targets, (0.5,), seed=seed)[0].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_shifting_moves_the_picture_and_lets_zeros_in() -> None:
    picture = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    moved = shifted(picture.repeat(200, 1, 1, 1), 1, torch.Generator().manual_seed(0))
    seen = {tuple(image.flatten().tolist()) for image in moved}
    assert len(seen) == 9
    assert (1, 2, 3, 4, 5, 6, 7, 8, 9) in seen
    assert (0, 0, 0, 0, 1, 2, 0, 4, 5) in seen


def test_channels_of_one_picture_move_together() -> None:
    picture = torch.randint(0, 255, (1, 1, 8, 8)).repeat(50, 3, 1, 1)
    moved = shifted(picture, 4, torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 0], moved[:, 2])


def test_mirroring_flips_about_half() -> None:
    pictures = torch.arange(6).view(1, 1, 2, 3).repeat(400, 1, 1, 1)
    flipped = mirrored(pictures, torch.Generator().manual_seed(0))
    turned = [image.tolist() == [[[2, 1, 0], [5, 4, 3]]] for image in flipped]
    kept = [image.tolist() == [[[0, 1, 2], [3, 4, 5]]] for image in flipped]
    assert sum(turned) + sum(kept) == 400
    assert 150 < sum(turned) < 250
