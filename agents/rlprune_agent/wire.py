"""Walk the protobuf encoding of bytes nobody vouches for: which fields are where, without copying what is in them.

Standard library only. Depth is the caller's; time is bounded by a budget of fields, memory by never keeping any.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

FIELDS_MAX = 4_000_000
"""an encoder-decoder with 20,000 nodes has some 400,000"""


class Malformed(Exception):
    """Not protobuf; the text says what is wrong where."""


class Field(NamedTuple):
    """One field: its number, its wire type, and where it lies: tag at `at`, length at `size_at`, content to `end`."""

    number: int
    wire: int
    at: int
    size_at: int
    start: int
    end: int
    value: int
    """of a VARINT, as unsigned 64 bits; the length of BYTES"""


class Budget:
    """How many more fields may be visited in this file."""

    def __init__(self, fields: int = FIELDS_MAX) -> None:
        self.left = fields


def varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at `at` and the position after it."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise Malformed(f"a number longer than ten bytes at byte {at}")
    raise Malformed(f"it breaks off at byte {end}")


def encoded(value: int) -> bytes:
    """`value` (not negative) as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fields(data: bytes, start: int, end: int, budget: Budget) -> Iterator[Field]:
    """The fields of the message that lies from `start` to `end`, in the order of the file. Raises `Malformed`."""
    at = start
    while at < end:
        budget.left -= 1
        if budget.left < 0:
            raise Malformed(f"more than {FIELDS_MAX} fields")
        tag, content = varint(data, at, end)
        number, wire, size_at, value = tag >> 3, tag & 7, content, 0
        if wire == BYTES:
            value, content = varint(data, content, end)
            stop = content + value
        elif wire == VARINT:
            value, stop = varint(data, content, end)
        elif wire == FIXED32:
            stop = content + 4
        elif wire == FIXED64:
            stop = content + 8
        else:
            raise Malformed(f"a field of the unknown type {wire} at byte {at}")
        if not 0 < number < 1 << 29:
            raise Malformed(f"a field without a proper number at byte {at}")
        if stop > end:
            raise Malformed(f"a field at byte {at} reaches {stop - end} bytes past the end of what holds it")
        yield Field(number, wire, at, size_at, content, stop, value)
        at = stop


def signed(value: int) -> int:
    """A varint's 64 bits as the signed number they stand for."""
    return value - (1 << 64) if value >= 1 << 63 else value


def integers(data: bytes, field: Field, most: int) -> list[int]:
    """The signed numbers of a repeated integer field, packed or one of them; raises `Malformed` above `most`."""
    if field.wire == VARINT:
        return [signed(field.value)]
    if field.wire != BYTES:
        raise Malformed(f"a list of numbers of the wrong type at byte {field.at}")
    found: list[int] = []
    at = field.start
    while at < field.end:
        value, at = varint(data, at, field.end)
        found.append(signed(value))
        if len(found) > most:
            raise Malformed(f"a list of more than {most} numbers at byte {field.at}")
    return found


def text(data: bytes, field: Field, most: int = 4096) -> str:
    """A name. Raises `Malformed` for a field of another type or a longer one."""
    if field.wire != BYTES or field.value > most:
        raise Malformed(f"a name of the wrong type or above {most} bytes at byte {field.at}")
    return data[field.start : field.end].decode("utf-8", "replace")
