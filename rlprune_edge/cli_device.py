"""The `device` commands: which boards there are, make them ready, look after them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rlprune_edge import errors
from rlprune_edge.cli_ends import telling
from rlprune_edge.errors import DeviceError, UserError
from rlprune_edge.places import cache_dir

# The SSH library and numpy take a second to import: the commands that need them import them when they run.

app = typer.Typer(help="The devices that candidates are measured on.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The board's name, as given to `device add`.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_OWN_KEY = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, typed there"


def _table(*titles: str) -> Table:
    table = Table(show_edge=False, pad_edge=False, box=None)
    for title in titles:
        table.add_column(title)
    return table


@app.command("list")
def list_devices(as_json: Json = False) -> None:
    """List your boards, and the profiles that boards can be added with."""
    from rlprune_edge.device import boards
    from rlprune_edge.device.profiles import FAMILIES, profiles
    from rlprune_edge.progress import threads_in_words

    mine = {name: boards.load(name) for name in boards.names()}
    known = profiles()
    if as_json:
        found = {
            "boards": [{"name": name, **board.model_dump()} for name, board in mine.items()],
            "profiles": [profile.model_dump() for profile in known.values()],
        }
        typer.echo(json.dumps(found))
        return
    console = Console(highlight=False)
    console.print("Your boards (--device NAME)", style="bold")
    table = _table("name", "profile", "host", "calibration")
    for name, board in mine.items():
        c = board.calibration
        words = (
            f"{threads_in_words(c.threads)}, noise {c.noise_floor:.1%}"
            if c
            else f"none: rlprune-edge device calibrate {name}"
        )
        table.add_row(name, board.profile, board.host, words)
    console.print(
        table if mine else "none yet: rlprune-edge device add NAME --profile PROFILE --host USER@HOST", markup=False
    )
    for family in FAMILIES:
        members = [p for p in known.values() if p.family == family]
        console.print()
        console.print(
            family[0].upper() + family[1:] + (" (--device local)" if family == FAMILIES[0] else ""), style="bold"
        )
        table = _table("profile", "threads", "what it is")
        for p in members:
            table.add_row(p.name, str(p.threads), p.title)
        console.print(table)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A board of yours, a profile from `device list`, or a TOML file.")],
    as_json: Json = False,
) -> None:
    """Print all that is known of one device; facts that nothing backs are marked."""
    from rlprune_edge.device import boards
    from rlprune_edge.device.profiles import load_profile

    board = boards.load(name) if name in boards.names() else None
    profile = load_profile(board.profile if board else name)
    if as_json:
        typer.echo(json.dumps({"board": board.model_dump() if board else None, "profile": profile.model_dump()}))
        return
    for key, value in _flat(board.model_dump(exclude_none=True)) if board else ():
        typer.echo(f"{key} = {json.dumps(value)}")
    for key, value in _flat(profile.model_dump(exclude={"unsure"}, exclude_none=True)):
        mark = "   (unsure)" if key in profile.unsure else ""
        typer.echo(f"{'profile.' if board else ''}{key} = {json.dumps(value)}{mark}")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="How you want to call it: small letters, digits, '-'.")],
    host: Annotated[str, typer.Option(help="What you would type after ssh, e.g. pi@raspberrypi.local.")],
    profile: Annotated[
        str | None, typer.Option(help="A profile from `device list`, or a TOML file. [default: the name]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="SSH port, if it is not 22 and not in your ssh config.")] = None,
    identity: Annotated[Path | None, typer.Option(help="Private key to log in with. [default: as ssh would]")] = None,
    ssh_config: Annotated[Path | None, typer.Option(help="In place of ~/.ssh/config.")] = None,
    fingerprint: Annotated[str | None, typer.Option(help="SHA256:... that the board's host key has to have.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Trust whatever key the board shows, without a question.")] = False,
) -> None:
    """Add a board: where it is, what it is. Its host key is shown once and has to stay the same from then on."""
    from rlprune_edge.device import boards
    from rlprune_edge.device.profiles import profiles

    kind = profile or name
    if profile is None and name not in profiles():
        raise UserError(
            f"what kind of board is it? Add --profile and one of: {', '.join(profiles())} (or a .toml file)"
        )
    board = boards.BoardFile(
        profile=str(Path(kind).resolve()) if kind.endswith(".toml") else kind,
        host=host,
        port=port,
        identity=str(identity.expanduser().resolve()) if identity else None,
        ssh_config=str(ssh_config.expanduser().resolve()) if ssh_config else None,
    )
    boards.check_new(name, board)

    from rlprune_edge.device import acquaint

    if fingerprint is not None:
        acquaint.trust(board, acquaint.pinned(board, fingerprint))
    met = acquaint.introduce(board)
    if met.new_key is not None:
        _vouch(name, board.host, str(met.new_key), yes)
        acquaint.trust(board, met.new_key)
        met = acquaint.introduce(board)
    boards.save(name, board)
    typer.echo(f"added '{name}' ({boards.file_of(name)})")
    if met.login:
        typer.echo(f"but it does not let us in yet: {met.login}", err=True)
    typer.echo(f"next: rlprune-edge device setup {name}")


def _vouch(name: str, host: str, key: str, yes: bool) -> None:
    """Have a person compare the key, once."""
    typer.echo(f"{host} is not known yet. It shows the host key\n\n    {key}\n", err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(
            f"nobody is there to compare it with the board's own ({_OWN_KEY}).\nIn a script, add it to the command: "
            f"rlprune-edge device add {name} ... --fingerprint {key.split()[1]}"
        )
    typer.echo(f"Compare it with the board's own: {_OWN_KEY}.", err=True)
    if not typer.confirm("Is it the same?", err=True):
        raise UserError("then it is not trusted; nothing was sent to it and nothing was added")


@app.command("setup")
def set_up(
    name: Name,
    system: Annotated[
        bool, typer.Option("--system", help="As a system service with a user of its own (needs root on the board).")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="The board has no network: fetch the wheels here and send them.")
    ] = False,
    renew: Annotated[
        bool, typer.Option("--renew", help="Install the newest packages although others are there.")
    ] = False,
    home: Annotated[str | None, typer.Option(help="Another folder on the board, e.g. on a larger disk.")] = None,
) -> None:
    """Install what the board needs: Python packages, the agent, a service. Doing it again is harmless."""
    from rlprune_edge.device import board as ssh_board
    from rlprune_edge.device import boards, setup
    from rlprune_edge.device.profiles import load_profile

    if system and home is not None:
        raise UserError("--system keeps everything in /var/lib/rlprune-edge; leave either --system or --home away")
    board = boards.load(name)
    if home is not None and not home.startswith("/"):
        raise UserError(f"--home wants the whole path of a folder on the board, not '{home}'")
    wanted = setup.Wanted(system=system, offline=offline, renew=renew, home=home or board.home)
    with telling() as tell, ssh_board.connect(board) as session:
        done = setup.setup(
            session,
            load_profile(board.profile),
            wanted,
            cache_dir=cache_dir(),
            tell=tell,
            check_free=lambda: _check_free(name),
        )
    if home is not None:
        boards.save(name, board.model_copy(update={"home": home}))
    versions = ", ".join(f"{package} {version}" for package, version in done.packages.items())
    typer.echo(f"'{name}' is set up: {versions}, agent {done.agent_sha256[:12]}; {done.words}")
    typer.echo(f"next: rlprune-edge device check {name}")


def _check_free(name: str) -> None:
    from rlprune_edge.device.board import Board
    from rlprune_edge.device.boards import load_device

    with load_device(name, cache_dir=cache_dir()) as station:
        assert isinstance(station, Board), "only boards are set up"
        station.check_free()


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="A board of yours, or local.")],
    as_json: Json = False,
) -> None:
    """Say what would spoil measurements there, and what to do. Exit code 3 if something has to be done first."""
    from rlprune_edge.device import boards, doctor

    findings = []
    with boards.load_device(name, cache_dir=cache_dir()) as station:
        for finding in doctor.check(station, cache_dir()):
            findings.append(finding)
            if not as_json:
                typer.echo(f"{finding.status}  {finding.name}: {finding.text}")
                if finding.advice and finding.status != "PASS":
                    typer.echo(f"      -> {finding.advice}")
    failed = [f for f in findings if f.status == "FAIL"]
    if as_json:
        typer.echo(json.dumps({"device": name, "ok": not failed, "findings": [vars(f) for f in findings]}))
    if failed:
        raise typer.Exit(errors.EXIT_DEVICE)


@app.command("calibrate")
def calibrate(
    name: Name,
    mode: Annotated[
        str, typer.Option(help="How thoroughly: verify (about ten minutes) or reward (about one).")
    ] = "verify",
) -> None:
    """Find the board's noise floor and its best number of threads, and remember both."""
    from rlprune_edge.device import boards
    from rlprune_edge.device import calibrate as calibration
    from rlprune_edge.device.board import Board
    from rlprune_edge.device.profiles import load_profile
    from rlprune_edge.progress import threads_in_words

    board = boards.load(name)
    profile = load_profile(board.profile)
    before = board.model_copy(
        update={"calibration": None}
    )  # what it once was must not keep it from being found out anew
    with telling() as tell:
        found = calibration.calibrate(
            lambda threads: Board(name, before, profile, cache_dir=cache_dir(), threads=threads),
            cache_dir(),
            mode=mode,
            tell=tell,
        )
    boards.save(name, board.model_copy(update={"calibration": found}))
    typer.echo(
        f"'{name}': {threads_in_words(found.threads)}, golden model {found.golden_ms:.2f} ms, "
        f"noise floor {found.noise_floor:.2%}: no smaller difference is called a gain"
    )


@app.command("release")
def release(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Take the board from whoever measures on it.")] = False,
) -> None:
    """Say who measures on a board; with --force, end that and free it."""
    from rlprune_edge.device import boards
    from rlprune_edge.device.board import Board

    boards.load(name)
    with boards.load_device(name, cache_dir=cache_dir()) as station:
        assert isinstance(station, Board), "a board of the user's"
        user = station.break_lease() if force else station.user()
    if user is None:
        typer.echo(f"'{name}' is free")
    elif force:
        typer.echo(f"'{name}' was taken from {user}; it is free")
    else:
        take = f"rlprune-edge device release {name} --force"
        raise DeviceError("device_locked", f"'{name}' is in use by {user}. To end that and take it: {take}")


@app.command("remove")
def remove(
    name: Name,
    local_only: Annotated[
        bool, typer.Option("--local-only", help="Forget it here and leave the board as it is, e.g. because it is gone.")
    ] = False,
) -> None:
    """Delete everything of ours from a board, and forget it."""
    from rlprune_edge.device import acquaint, boards, setup
    from rlprune_edge.device import board as ssh_board

    board = boards.load(name)
    if not local_only:
        _check_free(name)
        try:
            with telling() as tell, ssh_board.connect(board) as session:
                setup.remove(session, tell=tell)
        except DeviceError as error:
            hint = f"To forget it here only: rlprune-edge device remove {name} --local-only"
            raise DeviceError(error.kind, f"{error}\n{hint}") from None
    boards.forget(name)
    acquaint.distrust(board, [boards.load(other) for other in boards.names()])
    typer.echo(f"removed '{name}'")
