"""Small data sets in the hub's layout, and the real ones where they are at hand."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
REAL = Path(os.environ.get("RLPRUNE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


@pytest.fixture(autouse=True)
def _one_thread_and_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def real_data() -> Path:
    if not (REAL / "cifar10").is_dir():
        pytest.skip(f"no real data in {REAL} (RLPRUNE_DATA names another folder)")
    return REAL


MakeFolder = Callable[..., Path]


@pytest.fixture
def image_folder(tmp_path: Path) -> MakeFolder:
    """Writes splits of noisy coloured squares as PNG inside parquet, as the hub stores CIFAR-10."""

    def make(
        splits: dict[str, int], *, size: int = 32, image: str = "img", label: str = "label", spoiled: bool = False
    ) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        for number, (split, count) in enumerate(splits.items()):
            noise = np.random.default_rng(number)
            rows, labels = [], []
            for i in range(count):
                pixels = noise.integers(0, 100, (size, size, 3), dtype=np.uint8)
                pixels[..., i % 3] += 150
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                rows.append({"bytes": buffer.getvalue()[: 60 if spoiled else None], "path": f"{i}.png"})
                labels.append(i % 3)
            features = datasets.Features(
                {image: datasets.Image(), label: datasets.ClassLabel(names=["red", "green", "blue"])}
            )
            table = pa.table(
                {image: pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()})), label: labels}
            )
            table = table.cast(features.arrow_schema).replace_schema_metadata(features.arrow_schema.metadata)
            pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
        return folder

    return make
