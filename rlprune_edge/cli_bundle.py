"""The `bundle` commands: check a finished bundle, look into it, run it, sign it, put it on a board."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune_edge import errors
from rlprune_edge.cli_ends import telling
from rlprune_edge.errors import UserError
from rlprune_edge.places import cache_dir

if TYPE_CHECKING:
    from rlprune_edge.bundle.signature import Signer

app = typer.Typer(help="Verify, inspect, run and sign finished bundles; put them on a board.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of a bundle.")]
Trust = Annotated[
    list[Path] | None, typer.Option(help="A public key: the bundle must be signed by its owner. May be repeated.")
]
To = Annotated[str | None, typer.Option(help="Another folder on the board for bundles. [default: ~/rlprune-bundles]")]


def signer_of(key: str | None) -> Signer | None:
    """Who signs with this private key file; nobody where none is given. Raises UserError."""
    if key is None:
        return None
    from rlprune_edge.bundle import signature

    return signature.load_signer(Path(key), _passphrase)


def _passphrase() -> str | None:
    """The passphrase of a signing key, from whoever sits at the terminal; `None` where nobody does."""
    if not sys.stdin.isatty():
        return None
    return str(typer.prompt("Passphrase of the signing key", hide_input=True, err=True))


@app.command("verify")
def verify(
    bundle_dir: Folder,
    trust: Trust = None,
    device: Annotated[
        str | None, typer.Option(help="Also run it there: its answers and its latency against what it claims.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="How thoroughly it is measured there: verify (a minute) or report.")
    ] = "verify",
) -> None:
    """Check every file's hash, the signature, and that the model reproduces its golden outputs, here or on a device.

    Exit codes: 0 all is as it should be, 2 it is not, 3 the device failed, 4 slower there than claimed.
    """
    from rlprune_edge.bundle.verify import verify

    for line in verify(bundle_dir, trust or ()):
        typer.echo(f"ok {line}")
    if device is None:
        return
    from rlprune_edge import prove

    with telling() as tell:
        proof = prove.prove(bundle_dir, device, mode=mode, cache_dir=cache_dir(), tell=tell)
    for line in prove.lines(proof, device):
        typer.echo(line)
    if proof.word == "slower":
        raise typer.Exit(errors.EXIT_INFEASIBLE)


@app.command("inspect")
def inspect(bundle_dir: Folder) -> None:
    """Print a bundle's manifest as JSON."""
    from rlprune_edge.bundle.verify import inspect

    typer.echo(json.dumps(inspect(bundle_dir), indent=1))


@app.command("run")
def run(
    bundle_dir: Folder,
    file: Annotated[
        Path | None, typer.Argument(help="A .npy array, an image, a recording, or texts line by line.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="A text instead, for models of texts.")] = None,
) -> None:
    """Run a bundle's model on an input and print what it says as JSON."""
    from rlprune_edge.bundle import verify as bundles

    if file is not None and text is None:
        answer = bundles.run_file(bundle_dir, file)
    elif text is not None and file is None:
        answer = bundles.run(bundle_dir, text)
    else:
        raise UserError("Give one input: a file, or --text with a text.")
    typer.echo(json.dumps(answer))


@app.command("sign")
def sign(
    bundle_dir: Folder,
    key: Annotated[Path, typer.Option(help="Your private key (ssh-keygen -t ed25519 makes one).")],
) -> None:
    """Sign a whole bundle: who has your public key can then tell that it is yours, and unchanged."""
    from rlprune_edge.bundle import signature
    from rlprune_edge.bundle.verify import checked_sums

    signer = signature.load_signer(key, _passphrase)
    signature.sign_in_place(bundle_dir, signer, checked_sums(bundle_dir))
    typer.echo(f"signed by {signer.fingerprint}")
    typer.echo(f"to check it: rlprune-edge bundle verify {bundle_dir} --trust {key}.pub")


@app.command("push")
def push(
    board: Annotated[str, typer.Argument(help="One of your boards, as given to `device add`.")],
    bundle_dir: Folder,
    name: Annotated[str | None, typer.Option(help="What the app knows it by. [default: the task]")] = None,
    to: To = None,
    trust: Trust = None,
) -> None:
    """Put a bundle on a board, whole or not at all; the one before stays there for `rollback`.

    It is verified here, received beside the old one, checked and tried there, and switched to in one step.
    """
    from rlprune_edge import shelve

    with telling() as tell:
        done = shelve.push(bundle_dir, board, name=name, to=to, trust=trust or (), cache_dir=cache_dir(), tell=tell)
    if done.tried is None:
        typer.echo("its files are as sent; it was not run there, since the board has no agent (device setup)")
    else:
        typer.echo("its files are as sent, and it gives its recorded answer there")
    typer.echo(f"an app on '{board}' finds it at {done.path} -> {done.release}")
    if done.previous:
        where = Path(done.path).parent
        again = f" --to {where.parent}" if to else ""
        typer.echo(f"to go back to {done.previous}: rlprune-edge bundle rollback {board} {where.name}{again}")


@app.command("rollback")
def rollback(
    board: Annotated[str, typer.Argument(help="One of your boards.")],
    name: Annotated[str, typer.Argument(help="What the app knows the bundle by.")],
    to: To = None,
) -> None:
    """Switch a board back to the bundle that was there before the last push."""
    from rlprune_edge import shelve

    done = shelve.rollback(board, name=name, to=to)
    typer.echo(f"an app on '{board}' finds at {done.path} -> {done.release}")
