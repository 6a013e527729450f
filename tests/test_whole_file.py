"""Files whole or not at all."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from rlprune_edge import whole_file


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with whole_file.replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
@pytest.mark.parametrize("shared", [False, True])
def test_whatever_happens_meanwhile_leaves_the_old_one_alone(
    tmp_path: Path, error: BaseException, shared: bool
) -> None:
    def half_of_it() -> None:
        with whole_file.replacing(path, shared=shared) as part:
            part.write_text("ne")
            raise error

    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(type(error)):
        half_of_it()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), whole_file.replacing(path):
        pass
    assert path.read_text() == "old"


def test_the_same_file_written_by_many_at_once_is_one_of_theirs(tmp_path: Path) -> None:
    path, texts = tmp_path / "x", [str(n) * 200_000 for n in range(8)]
    writers = [threading.Thread(target=whole_file.write_text, args=(path, t), kwargs={"shared": True}) for t in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(KeyError), whole_file.replacing(path) as part:
        raise KeyError
    part.write_text("half of a longer one")
    whole_file.write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_is_never_open_to_others(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with whole_file.replacing(path, shared=True, private=True) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        part.write_text("secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_beside_another_file_the_folder_holds_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    with whole_file.replacing(folder / "x", beside=folder) as part:
        part.write_text("new")
        assert list(folder.iterdir()) == []
    assert [p.name for p in folder.iterdir()] == ["x"]
