"""What may follow a network's name in `--model`: `:untrained`, `:train` or `:train=EPOCHS`."""

from __future__ import annotations

from rlprune_edge.errors import UserError

UNTRAINED = "the network is untrained: its times and sizes mean something, its accuracy does not"


def split_name(name: str) -> tuple[str, str]:
    """`NAME:how` -> (NAME, how); how is empty, `untrained`, `train` or `train=EPOCHS`.

    Raises UserError for a number of epochs that is none.
    """
    base, _, how = name.rpartition(":")
    if not base:
        return name, ""
    if how.startswith("train="):
        epochs = how.removeprefix("train=")
        if not (epochs.isdecimal() and int(epochs)):
            raise UserError(f"--model {name}: {epochs!r} is no number of epochs: 1 or more, as in {base}:train=3.")
        return base, how
    return (base, how) if how in ("train", "untrained") else (name, "")


def epochs_asked(how: str) -> dict[str, int]:
    """The change to a recipe that `train=EPOCHS` is; none for the other ways."""
    return {"epochs": int(how.removeprefix("train="))} if "=" in how else {}
