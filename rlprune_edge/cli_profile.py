"""The `profile` command."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rlprune_edge.cli_ends import look_up, resumable
from rlprune_edge.console import ConsoleWatcher
from rlprune_edge.errors import UserError
from rlprune_edge.places import cache_dir
from rlprune_edge.request import Request

BUDGET = Request.model_fields["budget"].default
NOT_OF_THE_REQUEST = ("plans", "held_out", "out", "resume", "as_json")
COUNTS = "profile_plans.json"
"""in the profile's folder: how many plans were asked for"""


def profile(
    task: Annotated[str | None, typer.Option(help="As for `compress`.")] = None,
    model: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    weights: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    data: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens of the text that is timed.")] = None,
    audio_seconds: Annotated[float | None, typer.Option(help="Seconds of the recording that is timed.")] = None,
    device: Annotated[str | None, typer.Option(help="Whose table; see `rlprune-edge device list`.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of an inference on the device.")] = None,
    step: Annotated[float | None, typer.Option(help="Share of a group between widths. [default: 0.1]")] = None,
    plans: Annotated[int, typer.Option(min=1, help="Random plans that predictions learn from.")] = 30,
    held_out: Annotated[int, typer.Option(min=2, help="Random plans that predictions are tried on.")] = 10,
    seed: Annotated[int | None, typer.Option(help="Of the random plans. [default: 0]")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for it. [default: runs/profile-TASK-TIME]")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the profile in this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print profile.json on stdout, all else on stderr.")] = False,
) -> None:
    """Write a board's latency table for a model's layers and widths, and say how well plans are predicted from it.

    `compress --profile FOLDER` searches with the table instead of timing the layers again. Exit codes: 0 done, 2 bad
    input, 3 the device failed, 130 interrupted (go on with --resume).
    """
    asked = {k: v for k, v in locals().items() if k not in NOT_OF_THE_REQUEST and v is not None}
    from rlprune_edge import request as requests
    from rlprune_edge.run_folder import RunFolder

    console = Console(stderr=as_json, highlight=False)
    if resume is not None:
        if asked:
            name = min(asked).replace("_", "-")
            raise UserError(f"--resume goes on with what was asked for; --{name} cannot change it.")
        folder, request = RunFolder.reopen(resume)
        counts = folder.read_json(COUNTS)
        if counts is None:
            raise UserError(f"{resume} holds no profile.\nType: rlprune-edge compress --resume {resume}")
        plans, held_out = counts["plans"], counts["held_out"]
    else:
        request = requests.make(asked | {"budget": plans + held_out})
        look_up(request)
        default = Path("runs") / f"profile-{request.task.replace(':', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
        folder = RunFolder.create(out or default, request, command="profile")
        folder.write_json(COUNTS, {"plans": plans, "held_out": held_out})
    console.print(f"profile folder: {folder.path}", soft_wrap=True)
    words = request.model_copy(update={"budget": BUDGET}).command().replace("compress", "profile", 1)
    words += f" --plans {plans} --held-out {held_out}"
    with (
        resumable("profile", folder, console, new=resume is None, beside=(COUNTS,)),
        ConsoleWatcher(console) as watcher,
    ):
        from rlprune_edge.profile import profile as run_profile

        found = run_profile(
            request, folder, watcher, plans=plans, held_out=held_out, cache_dir=cache_dir(), command=words
        )
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    for line in lines(found):
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"profile: {folder.path / 'profile.json'}", soft_wrap=True)


def lines(found: dict[str, Any]) -> list[str]:
    """The table and the predictions' errors, for a terminal."""
    said = [
        "",
        f"{found['model']} on {found['device']} ({found['source']}), {found['latency_ms']:.3f} ms uncut",
        "",
        "layers of                                   width: time of them, us (* on offer)",
    ]
    for table in found["tables"]:
        names, offered = table["groups"], set(table["offered"])
        name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} like it"
        times = [f"{n}{'*' if int(n) in offered else ''}: {ns / 1000:.1f}" for n, ns in table["times_ns"].items()]
        said.append(f"{name:<42}  {', '.join(times)}")
    said += ["", "plans learned from   mean error   largest   rank correlation (Kendall)"]
    for e in found["prediction"]:
        off = f"{e['mean_error_percent']:>8.1f} %   {e['largest_error_percent']:>5.1f} %"
        said.append(f"{e['learned']:>18}   {off}   {e['kendall_tau']:.2f}")
    return said
