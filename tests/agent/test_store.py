"""Uploads: resumed, checked, named by hash alone, within the quota."""

from __future__ import annotations

import hashlib
import os
import resource
import zlib
from pathlib import Path

import pytest

from rlprune_agent.protocol import Failure
from rlprune_agent.store import Store

_DATA = bytes(range(256)) * 40
_SHA = hashlib.sha256(_DATA).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", quota_bytes=10**9)


def _put(store: Store, data: bytes, offset: int, sha256: str = _SHA, size: int = len(_DATA)) -> tuple[int, bool]:
    return store.put(sha256, size=size, offset=offset, crc32=zlib.crc32(data), data=data)


def test_an_upload_goes_on_where_it_broke_off(store: Store) -> None:
    assert _put(store, _DATA[:4000], 0) == (4000, False)
    again = Store(store.folder, quota_bytes=10**9)  # the agent died and came back
    assert again.offset(_SHA) == 4000
    assert not again.has(_SHA)
    assert _put(again, _DATA[4000:], 4000) == (len(_DATA), True)
    assert again.read(_SHA) == _DATA


def test_a_portion_sent_twice_is_written_once(store: Store) -> None:
    _put(store, _DATA[:4000], 0)
    assert _put(store, _DATA[:4000], 0) == (4000, False)
    assert _put(store, _DATA[4000:], 4000) == (len(_DATA), True)
    assert store.read(_SHA) == _DATA


def test_a_file_that_is_not_the_announced_one_never_appears(store: Store) -> None:
    with pytest.raises(Failure) as caught:
        _put(store, bytes(len(_DATA)), 0)
    assert caught.value.kind == "damaged_upload"
    assert not store.has(_SHA)
    assert store.offset(_SHA) == 0


def test_a_flipped_bit_in_a_portion_is_noticed_before_it_is_written(store: Store) -> None:
    with pytest.raises(Failure) as caught:
        store.put(_SHA, size=len(_DATA), offset=0, crc32=zlib.crc32(_DATA) ^ 1, data=_DATA)
    assert caught.value.kind == "damaged_upload"
    assert store.offset(_SHA) == 0


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "/" * 64, 7])
def test_only_a_hash_is_a_name(store: Store, name: str) -> None:
    with pytest.raises(Failure) as caught:
        _put(store, _DATA, 0, sha256=name)
    assert caught.value.kind == "bad_request"


@pytest.mark.parametrize(("offset", "size"), [(-1, 100), (0, 10), (200, 100)])
def test_a_portion_outside_the_file_is_refused(store: Store, offset: int, size: int) -> None:
    with pytest.raises(Failure) as caught:
        _put(store, _DATA[:50], offset, size=size)
    assert caught.value.kind == "bad_request"


def test_a_file_that_rotted_on_disk_is_thrown_away(store: Store) -> None:
    _put(store, _DATA, 0)
    path = store.path(_SHA)
    path.write_bytes(b"x" + _DATA[1:])
    with pytest.raises(Failure) as caught:
        store.read(_SHA)
    assert caught.value.kind == "missing_files"
    assert caught.value.details["missing"] == [_SHA]
    assert not path.exists()


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    store = Store(tmp_path, quota_bytes=2500)
    files = [bytes([n]) * 1000 for n in range(3)]
    hashes = [hashlib.sha256(data).hexdigest() for data in files]
    for age, sha256, data in zip((300, 200), hashes, files, strict=False):
        _put(store, data, 0, sha256, 1000)
        os.utime(store.path(sha256), (1e9 - age, 1e9 - age))
    assert store.has(hashes[0])  # used now, so the second is the oldest
    _put(store, files[2], 0, hashes[2], 1000)
    assert [store.has(sha256) for sha256 in hashes] == [True, False, True]


def test_a_file_that_does_not_fit_is_refused_before_it_is_sent(store: Store) -> None:
    with pytest.raises(Failure) as caught:
        _put(store, _DATA, 0, size=10**18)
    assert caught.value.kind == "disk_full"


def _planted(store: Store, make: str, target: Path) -> Path:
    """Something else in the place of the file `_SHA`."""
    path = store.path(_SHA)
    path.parent.mkdir()
    if make == "hard link":
        os.link(target, path)
    elif make == "symbolic link":
        path.symlink_to(target)
    elif make == "named pipe":
        os.mkfifo(path)
    else:
        path.parent.rmdir()
        path.parent.symlink_to(target.parent)
    return path


@pytest.mark.parametrize("make", ["hard link", "symbolic link", "named pipe"])
def test_what_is_no_file_of_ours_is_not_there_and_makes_room_for_one(store: Store, tmp_path: Path, make: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(_DATA)
    path = _planted(store, make, outside)
    assert store.has(_SHA) is False
    with pytest.raises(Failure, match="not here"):
        store.read(_SHA)
    assert not os.path.lexists(path)
    assert _put(store, _DATA, 0) == (len(_DATA), True)
    assert store.read(_SHA) == outside.read_bytes() == _DATA


def test_a_folder_that_is_a_link_is_not_followed(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / _SHA).write_bytes(_DATA)
    _planted(store, "folder", elsewhere / _SHA)
    with pytest.raises(Failure, match="is not a folder") as caught:
        store.read(_SHA)
    assert caught.value.kind == "disk_full"


def test_a_link_in_place_of_an_unfinished_upload_is_not_written_through(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (store.folder / "part").mkdir()
    (store.folder / "part" / _SHA).symlink_to(victim)
    assert store.offset(_SHA) == 0
    assert _put(store, _DATA, 0) == (len(_DATA), True)
    assert victim.read_bytes() == b"precious"


def test_pinned_files_stay_whatever_the_quota_says(tmp_path: Path) -> None:
    pinned: set[str] = set()
    store = Store(tmp_path, quota_bytes=2500, pinned=lambda: pinned)
    files = [bytes([n]) * 1000 for n in range(4)]
    hashes = [hashlib.sha256(data).hexdigest() for data in files]
    for age, sha256, data in zip((400, 300), hashes, files, strict=False):
        _put(store, data, 0, sha256, 1000)
        os.utime(store.path(sha256), (1e9 - age, 1e9 - age))
    pinned.add(hashes[0])
    for sha256, data in zip(hashes[2:], files[2:], strict=True):
        _put(store, data, 0, sha256, 1000)
    assert [store.has(sha256) for sha256 in hashes] == [True, False, False, True]


def test_a_file_above_the_quota_is_refused_and_costs_no_other_its_place(tmp_path: Path) -> None:
    store = Store(tmp_path, quota_bytes=len(_DATA))
    _put(store, _DATA, 0)
    with pytest.raises(Failure, match="above the quota"):
        _put(store, b"x", 0, "0" * 64, len(_DATA) + 1)
    assert store.has(_SHA) is True


def test_files_are_for_their_owner_alone(store: Store) -> None:
    _put(store, _DATA, 0)
    assert oct(store.path(_SHA).stat().st_mode)[-3:] == "600"
    assert oct(store.path(_SHA).parent.stat().st_mode)[-3:] == "700"


def test_a_disk_that_fills_up_in_mid_upload_costs_old_files_before_new_ones(store: Store) -> None:
    old = bytes(1000)
    _put(store, old, 0, hashlib.sha256(old).hexdigest(), len(old))
    _put(store, _DATA[:4000], 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(Failure, match="make room"):
            _put(store, _DATA[4000:], 4000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not store.has(hashlib.sha256(old).hexdigest())
