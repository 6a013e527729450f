"""What a host believes of an agent's answers: nothing that is not of the type it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rlprune_agent.protocol import Failure, Message
from rlprune_edge.device.link import Conversation, Link, LinkBroken

HELLO = {
    "agent": "1.0",
    "protocol": 1,
    "isolation": "user",
    "agent_sha256": None,
    "runtime": {"onnxruntime": "1.20.0"},
    "facts": {"online_cpus": 4},
}


class Answers(Conversation):
    """An agent that answers with these headers, one after the other."""

    noise = ""

    def __init__(self, headers: Iterator[dict[str, Any]]) -> None:
        self._headers = headers
        self._id = 0

    def send(self, header: dict[str, Any], body: bytes = b"", seconds: float = 15.0) -> None:
        del body, seconds
        self._id = header["id"]

    def receive(self, seconds: float | None) -> Message | None:
        del seconds
        return Message({"ok": True, **next(self._headers), "id": self._id}, b"")


@pytest.fixture
def link() -> Callable[..., Link]:
    def make(*headers: dict[str, Any]) -> Link:
        return Link(Answers(iter(headers)), close=lambda: None, last_words=lambda: "")

    return make


@pytest.mark.parametrize(
    "changes", [{"runtime": "1.20.0"}, {"isolation": 1}, {"agent": None}, {"protocol": "1"}, {"agent_sha256": 7}]
)
def test_a_hello_of_the_wrong_types_is_refused(link: Callable[..., Link], changes: dict[str, Any]) -> None:
    assert link(HELLO).hello("a test")["agent"] == "1.0"
    with pytest.raises(LinkBroken) as caught:
        link({**HELLO, **changes}).hello("a test")
    assert caught.value.kind == "version_mismatch"


def test_another_protocol_is_refused_with_what_to_type(link: Callable[..., Link]) -> None:
    other = {"ok": False, "kind": "version_mismatch", "message": "one side speaks protocol 1 to 1, the other 2 to 2"}
    with pytest.raises(Failure, match=r"2 to 2; .*rlprune-edge device setup NAME"):
        link(other).hello("a test")


@pytest.mark.parametrize("offsets", [[-1], [99], [2, 1, 2, 1, 2, 1, 2, 1, 2]])
def test_an_upload_is_not_led_astray(link: Callable[..., Link], offsets: list[int]) -> None:
    answers = [{"missing": {"a": 0}}, *({"offset": offset, "whole": False} for offset in offsets)]
    with pytest.raises(LinkBroken, match=r"'put' does not make sense|again and again"):
        link(*answers).upload({"a": lambda: b"four"})
