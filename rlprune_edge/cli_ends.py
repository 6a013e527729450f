"""What long commands share: how they begin, speak, and end when they do not end well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from rlprune_edge.device.boards import check_device
from rlprune_edge.errors import EXIT_INTERRUPTED, DeviceError, UserError
from rlprune_edge.progress import duration
from rlprune_edge.pulse import FIRST_SECONDS, Pulse, still
from rlprune_edge.tasks.catalog import check_task

if TYPE_CHECKING:
    from rlprune_edge.request import Request
    from rlprune_edge.run_folder import RunFolder


def look_up(request: Request) -> None:
    """Raises UserError for a task or a device that there is not, before torch is imported: that takes seconds."""
    check_task(request.task)
    check_device(request.device)


def tell_time(console: Console, seconds: float, *, resumed: bool) -> None:
    """How long it took, as a last line."""
    console.print(f"{duration(seconds)} {'since it was resumed' if resumed else 'in all'}", style="dim")


@contextmanager
def telling(*, first_seconds: float = FIRST_SECONDS) -> Iterator[Callable[[str], None]]:
    """Gives the `tell` of a command whose answer alone is for stdout: lines on stderr, and a word in long silences."""

    def beat(seconds: float) -> None:
        typer.echo(f"  {still(seconds)}", err=True)

    with Pulse(beat, first_seconds=first_seconds) as pulse:

        def tell(text: str) -> None:
            pulse.told()
            typer.echo(f"- {text}", err=True)

        yield tell


@contextmanager
def resumable(
    command: str, folder: RunFolder, console: Console, *, new: bool, beside: tuple[str, ...] = ()
) -> Iterator[None]:
    """Work in a folder of `command`, `compress` say, and close it.

    Ctrl-C and a failed device say how to go on. A `new` folder without any trial is taken away again where the words
    were wrong, with the files `beside` the request: the corrected command may use it.
    """
    again = f"rlprune-edge {command} --resume {folder.path}"
    try:
        yield
    except UserError:
        if new:
            folder.discard(*beside)
        raise
    except KeyboardInterrupt:
        console.print(f"\ninterrupted. Go on with: {again}", soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except DeviceError as error:
        hint = "Nothing measured so far is lost. Put it right, then go on with:"
        raise DeviceError(error.kind, f"{error}\n{hint} {again}") from error
    finally:
        folder.close()
