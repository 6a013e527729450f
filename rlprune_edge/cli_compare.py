"""The `compare` command."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rlprune_edge.cli_ends import look_up, resumable, tell_time
from rlprune_edge.console import ConsoleWatcher
from rlprune_edge.errors import UserError
from rlprune_edge.places import cache_dir
from rlprune_edge.request import AGENTS, Request

FIELD = "field.json"
"""in the comparison's folder: who is compared, with which seeds, and on what"""
USUAL_SPEEDUP = 2.0
USUAL_SEEDS = 5
USUAL_MODES = {"search_mode": "brief", "final_mode": "verify"}
OF_A_DEVICE = ("device", "threads", "provider", "strict", "profile", "device_seconds")
"""what may be asked for that means nothing where latencies are estimates"""
REQUESTED = (
    *("task", "model", "weights", "data", "device", "threads", "target_speedup", "budget", "device_seconds"),
    *("search_examples", "calibration_examples", "search_mode", "final_mode", "recipe"),
)
"""flags that say the same as they do for `compress`"""


def compare(
    agents: Annotated[
        str | None,
        typer.Option(
            help="Searchers, with commas between them; ppo:no-surrogate+neighbours is PPO without the one and with the "
            "other. With --resume "
            f"they join those that are there. [default: {','.join(AGENTS)}]"
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How often each agent searches: seeds 0, 1, ...; with --resume it may be raised. "
            f"[default: {USUAL_SEEDS}]",
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="As for `compress`.")] = None,
    model: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    weights: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    data: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to measure; see `rlprune-edge device list`.")] = None,
    estimate_from: Annotated[
        Path | None,
        typer.Option(
            help="What `rlprune-edge profile` wrote of a device: latencies are what it predicts, nothing is measured."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of an inference on the device.")] = None,
    target_speedup: Annotated[
        float | None, typer.Option(help="Times faster than the uncut model. [default: 2, without another target]")
    ] = None,
    target_latency: Annotated[str | None, typer.Option(help="Latency of one inference, e.g. 30ms.")] = None,
    max_memory: Annotated[str | None, typer.Option(help="Peak memory on the device, e.g. 200MB.")] = None,
    budget: Annotated[
        int | None, typer.Option(help="Candidates of each search, probes of single cuts among them. [default: 60]")
    ] = None,
    device_seconds: Annotated[float | None, typer.Option(help="Device time that each search may use.")] = None,
    search_examples: Annotated[int | None, typer.Option(help="Inputs a candidate is scored on. [default: all]")] = None,
    calibration_examples: Annotated[
        int | None, typer.Option(help="Inputs that a cut network is healed with. [default: 256; transformers: 32]")
    ] = None,
    search_mode: Annotated[
        str | None,
        typer.Option(help="How candidates are timed: brief (half a second), reward or verify. [default: brief]"),
    ] = None,
    finish: Annotated[
        str | None, typer.Option(help="Agents whose best plans are fine-tuned, measured again and tested, with commas.")
    ] = None,
    final_mode: Annotated[
        str | None, typer.Option(help="How they are measured: report, verify or reward. [default: verify]")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="How they are fine-tuned; as for `compress`.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for it. [default: runs/compare-TASK-TIME]")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the comparison in this folder.")] = None,
    render: Annotated[Path | None, typer.Option(help="Write this folder's pages again, without running.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with what `compress` takes; flags win.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json on stdout, all else on stderr.")] = False,
) -> None:
    """Let several searchers solve the same problem within the same budget; say who is better, and how surely.

    Every network is evaluated once and shared between them; none is fine-tuned without --finish. Exit codes: 0 done,
    2 bad input, 3 the device failed, 130 interrupted (go on with --resume).
    """
    asked = {k: v for k, v in locals().items() if k in REQUESTED}
    console = Console(stderr=as_json, highlight=False)
    if render is not None:
        from rlprune_edge.comparison_report import render_comparison

        _show(console, render, render_comparison(render), as_json=as_json)
        return
    from rlprune_edge import request as requests
    from rlprune_edge.run_folder import RunFolder

    if target_latency is not None:
        asked["target_latency_ms"] = requests.milliseconds(target_latency)
    if max_memory is not None:
        asked["max_memory_mb"] = requests.megabytes(max_memory)
    if resume is not None:
        given = sorted(k for k, v in (asked | {"estimate_from": estimate_from}).items() if v is not None)
        if given:
            raise UserError(
                f"--resume goes on with the comparison as it was asked for; --{given[0].replace('_', '-')} cannot "
                f"change it.\nType: rlprune-edge compare --resume {resume}"
            )
        folder, request = RunFolder.reopen(resume)
        field = _field(folder, agents, seeds, finish)
    else:
        request = requests.make(asked, config)
        usual: dict[str, Any] = {} if request.target.hard else {"target_speedup": USUAL_SPEEDUP}
        usual |= {name: word for name, word in USUAL_MODES.items() if name not in request.model_fields_set}
        request = requests.make(asked | usual, config)
        if estimate_from is not None:
            _refuse_devices(request)
        look_up(request)
        from rlprune_edge.compare import Field

        profile = str(estimate_from) if estimate_from is not None else None
        field = Field(_words(agents) or AGENTS, tuple(range(seeds or USUAL_SEEDS)), _words(finish), profile)
        default = Path("runs") / f"compare-{request.task.replace(':', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
        folder = RunFolder.create(out or default, request, command="compare")
        folder.write_json(FIELD, asdict(field))
    console.print(f"comparison folder: {folder.path}", soft_wrap=True)
    began = time.perf_counter()
    with (
        resumable("compare", folder, console, new=resume is None, beside=(FIELD,)),
        ConsoleWatcher(console) as watcher,
    ):
        from rlprune_edge.compare import compare as run_compare

        command = _command(field, request.command())
        found = run_compare(request, field, folder, watcher, cache_dir=cache_dir(), command=command)
    _show(console, folder.path, found, as_json=as_json)
    tell_time(console, time.perf_counter() - began, resumed=resume is not None)


def _refuse_devices(request: Request) -> None:
    """With estimates nothing may be asked of a device."""
    for name in OF_A_DEVICE:
        if getattr(request, name) != Request.model_fields[name].default:
            raise UserError(
                f"--{name.replace('_', '-')} is about a device, and with --estimate-from none is asked: leave one of "
                "them out."
            )


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _field(folder: Any, agents: str | None, seeds: int | None, finish: str | None) -> Any:
    """Who is compared in a folder: those that are there, and what else is asked for now."""
    from rlprune_edge.compare import Field

    known = folder.read_json(FIELD)
    if known is None:
        raise UserError(
            f"{folder.path} holds a run and no comparison.\nType: rlprune-edge compress --resume {folder.path}"
        )
    if seeds is not None and seeds < len(known["seeds"]):
        raise UserError(
            f"--seeds {seeds}: this comparison has {len(known['seeds'])} seeds already, and none is taken away."
        )
    field = Field(
        tuple(dict.fromkeys((*known["agents"], *_words(agents)))),
        tuple(range(seeds or len(known["seeds"]))),
        tuple(dict.fromkeys((*known["finish"], *_words(finish)))),
        known.get("estimate_from"),
    )
    folder.write_json(FIELD, asdict(field))
    return field


def _command(field: Any, compress: str) -> str:
    words = compress.replace("rlprune-edge compress", "rlprune-edge compare", 1)
    words = f"{words} --agents {shlex.quote(','.join(field.agents))} --seeds {len(field.seeds)}"
    if field.estimate_from is not None:
        words = f"{words} --estimate-from {shlex.quote(field.estimate_from)}"
    return f"{words} --finish {shlex.quote(','.join(field.finish))}" if field.finish else words


def _show(console: Console, folder: Path, found: dict[str, Any], *, as_json: bool) -> None:
    from rlprune_edge.comparison_report import table_lines

    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    console.print()
    for line in table_lines(found):
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"comparison: {folder / 'compare.html'}", soft_wrap=True)
