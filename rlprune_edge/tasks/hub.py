"""Data sets in the Hugging Face hub's layout, from the hub or a local folder."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.exceptions import DatasetGenerationError, DatasetsError
from PIL import Image
from torch import Tensor

from rlprune_edge.errors import UserError

IMAGE_COLUMNS = ("img", "image")
TEXT_COLUMNS = ("text", "sentence", "review")


def open_splits(where: str, *, config: str | None = None, option: str = "--data") -> Mapping[str, datasets.Dataset]:
    """The splits of a data set by name. `where`: a folder, or an id on the hub such as `uoft-cs/cifar10`.

    Raises UserError if the folder holds no data set or the hub cannot be asked.
    """
    folder = Path(where).expanduser()
    if not folder.is_dir() and (where.startswith(("/", ".", "~")) or where.count("/") > 1):
        raise UserError(
            f"There is no data folder {where} ({option} takes a folder or the id of a data set on the hub)."
        )
    try:
        with _quiet():
            found: Mapping[str, datasets.Dataset] = datasets.load_dataset(
                str(folder) if folder.is_dir() else where, config
            )
    except (DatasetsError, DatasetGenerationError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if folder.is_dir():
            raise UserError(
                f"{where} does not hold a data set in the hub's layout ({reason}). Expected are parquet files named by "
                "split (train-*.parquet, test-*.parquet), or a folder per split with a folder of images per class."
            ) from error
        raise UserError(
            f"The data set {where} is not a folder here and could not be fetched from the hub ({reason}). "
            f"With a local copy in the same layout: {option} DIR."
        ) from error
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    # Both libraries draw bars and log their retries on stderr, in the middle of our own progress display.
    bars = datasets.is_progress_bar_enabled()
    chatter = logging.getLogger("huggingface_hub")
    level = chatter.level
    datasets.disable_progress_bars()
    chatter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        chatter.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def image_column(split: datasets.Dataset, where: str) -> str:
    """The column that holds the images. Raises UserError if the data set is not one of labelled images."""
    column = next((name for name in IMAGE_COLUMNS if isinstance(split.features.get(name), datasets.Image)), None)
    if column is None or "label" not in split.features:
        raise UserError(
            f"{where} is no data set of labelled images: it has the columns {', '.join(split.column_names)}; "
            "expected are `img` or `image` (images) and `label` (class numbers)."
        )
    return column


def text_column(split: datasets.Dataset, where: str) -> str:
    """The column that holds the texts. Raises UserError if the data set is not one of labelled texts."""
    column = next(
        (
            name
            for name in TEXT_COLUMNS
            if getattr(split.features.get(name), "dtype", None) in ("string", "large_string")
        ),
        None,
    )
    if column is None or "label" not in split.features:
        raise UserError(
            f"{where} is no data set of labelled texts: it has the columns {', '.join(split.column_names)}; "
            "expected are `text`, `sentence` or `review` (strings) and `label` (class numbers)."
        )
    return column


def texts(split: datasets.Dataset, column: str, where: str) -> list[str]:
    """All texts of a column. Raises UserError if one is missing."""
    found = list(split[column])
    missing = [row for row, text in enumerate(found) if not isinstance(text, str)]
    if missing:
        raise UserError(f"{where}: the column `{column}` has no text in row {missing[0]} ({len(missing)} such rows).")
    return found


def is_labelled(split: datasets.Dataset) -> bool:
    """Whether every example has a class number; hidden labels are stored as -1 on the hub."""
    values = np.asarray(split["label"]) if "label" in split.features else np.empty(0)
    return values.dtype.kind in "iu" and len(values) > 0 and values.min() >= 0


def class_labels(split: datasets.Dataset, where: str) -> tuple[Tensor, list[str]]:
    """Class numbers [N] and the names of the classes. Raises UserError if labels are missing or no numbers."""
    feature = split.features["label"]
    values = np.asarray(split["label"])
    if values.dtype.kind not in "iu" or len(values) == 0 or values.min() < 0:
        raise UserError(f"{where}: the column `label` must hold a class number from 0 up for every example.")
    targets = torch.from_numpy(values.astype(np.int64))
    names = getattr(feature, "names", None) or [str(i) for i in range(int(targets.max()) + 1)]
    return targets, list(names)


def decode_images(split: datasets.Dataset, column: str, *, size: tuple[int, int], where: str) -> Tensor:
    """All images of a column as RGB bytes [N, 3, height, width].

    Raises UserError for an image that is damaged or not of `size` (height, width).
    """
    stored: list[dict[str, Any]] = list(split.cast_column(column, datasets.Image(decode=False))[column])
    pixels = np.empty((len(stored), *size, 3), dtype=np.uint8)

    def decode(rows: range) -> None:
        for row in rows:
            content = stored[row]["bytes"]
            try:
                with Image.open(io.BytesIO(content) if content is not None else stored[row]["path"]) as image:
                    pixel = np.asarray(image.convert("RGB"))
            except (OSError, ValueError) as error:
                raise UserError(f"{where}: image {row} of {len(stored)} could not be decoded ({error}).") from error
            if pixel.shape[:2] != size:
                raise UserError(
                    f"{where}: image {row} is {pixel.shape[1]}x{pixel.shape[0]} pixels; this task takes "
                    f"{size[1]}x{size[0]}. For other images write a task of your own: --task package.module:factory."
                )
            pixels[row] = pixel

    # Pillow lets go of the interpreter lock while it decodes.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(decode, (range(i, min(i + 500, len(stored))) for i in range(0, len(stored), 500))))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


# ---------------------------------------------------------------- recordings


def open_recordings(where: str, *, option: str = "--data") -> tuple[dict[str, datasets.Dataset], str]:
    """The splits train, validation and test of a set of transcribed recordings, and a note on what was taken for them.

    A set may have several configurations, as LibriSpeech has `clean` and `other`: each split comes from the first one
    that has it, `clean` before the rest, and parts of train (`train.100`, `train.360`) of one configuration are joined.
    From the hub only `train.100` is fetched of those. Raises UserError as `open_splits` does.
    """
    folder = Path(where).expanduser()
    place = str(folder) if folder.is_dir() else where
    try:
        with _quiet():
            names = sorted(datasets.get_dataset_config_names(place), key=lambda name: (name != "clean", name))
    except (DatasetsError, DatasetGenerationError, OSError, ValueError):
        names = []  # opening it says what is wrong
    found: dict[str, datasets.Dataset] = {}
    said: dict[str, str] = {}
    for config in [name for name in names if name != "all"] or [None]:
        parts = (
            open_splits(where, config=config, option=option) if folder.is_dir() else _hub_parts(where, config, option)
        )
        for split, words in (("train", ("train",)), ("validation", ("validation", "dev")), ("test", ("test",))):
            taken = [name for name in parts if name.split(".")[0] in words]
            if taken and split not in found:
                joined = [parts[name] for name in taken]
                found[split] = joined[0] if len(joined) == 1 else datasets.concatenate_datasets(joined)
                within = "" if config in (None, "default") else f"{config}/"
                said[split] = f"{split}: {', '.join(within + name for name in taken)} ({len(found[split])} recordings)"
    return found, "; ".join(said.values())


def _hub_parts(where: str, config: str | None, option: str) -> Mapping[str, datasets.Dataset]:
    try:
        with _quiet():
            names = datasets.get_dataset_split_names(where, config)
            wanted = ["train.100"] if "train.100" in names else [name for name in names if name.startswith("train")]
            wanted += [name for name in names if name in ("validation", "test")]
            parts = datasets.load_dataset(where, config, split=wanted)
    except (DatasetsError, DatasetGenerationError, OSError, ValueError):
        return open_splits(where, config=config, option=option)  # says what is wrong
    return dict(zip(wanted, parts, strict=True))


class StoredAudio(Sequence[bytes | str]):
    """The audio of every row, as a file's content or its path, read from disk when it is asked for."""

    def __init__(self, split: datasets.Dataset, column: str) -> None:
        self._rows = split.select_columns([column]).cast_column(column, datasets.Audio(decode=False))
        self._column = column

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> bytes | str:  # type: ignore[override]
        stored: Mapping[str, Any] = self._rows[row][self._column]
        content: bytes | str = stored["path"] if stored["bytes"] is None else stored["bytes"]
        return content


def recordings(split: datasets.Dataset, where: str) -> tuple[StoredAudio, list[str]]:
    """The stored audio of every row and the transcripts.

    Raises UserError if the data set is not one of transcribed recordings.
    """
    column = next((n for n in split.column_names if isinstance(split.features[n], datasets.Audio)), None)
    if column is None or "text" not in split.column_names:
        raise UserError(
            f"{where} is no data set of transcribed recordings: it has the columns {', '.join(split.column_names)}; "
            "expected are `audio` (recordings) and `text` (what was said)."
        )
    return StoredAudio(split, column), texts(split, "text", where)
