"""The tree of errors, sorted by who must act.

RlpruneError
├── UserError          the user: a wrong word, a missing folder, a full disk   (exit 2)
├── CandidateError     the search: this plan cannot be used; record it, go on
├── DeviceError        whoever stands by the board; never becomes a reward     (exit 3)
└── BudgetSpent        nobody: the search has used what it was given
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_USER = 2
EXIT_DEVICE = 3
EXIT_INFEASIBLE = 4
EXIT_INTERRUPTED = 130


class RlpruneError(Exception):
    """Base of all errors that the product raises on purpose."""


class UserError(RlpruneError):
    """What was asked for cannot be done; the message says what happened, what was expected, what to type next."""


class CandidateError(RlpruneError):
    """This plan is at fault (out of memory, unsupported operator, wrong output); the search records it and goes on.

    `kind` is one of the closed list in `KINDS`.
    """

    KINDS = (
        "oom",
        "timeout_model",
        "load_failed",
        "unsupported_op",
        "output_mismatch",
        "masked_mismatch",
        "export_failed",
        "too_big",
        "impossible",
        "not_finite",
    )

    def __init__(self, kind: str, message: str) -> None:
        if kind not in self.KINDS:
            raise ValueError(f"unknown kind of candidate failure: {kind!r}")
        super().__init__(message)
        self.kind = kind


class DeviceError(RlpruneError):
    """The measuring itself failed (agent gone, board busy, cable); retried, then the run stops with a resume hint.

    `kind` is a status such as `agent_crashed`, `connection_lost`, `version_mismatch`, `busy`, `disk_full`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class BudgetSpent(RlpruneError):
    """The budget of candidates or device seconds is used up; ends a search from inside its loop."""
