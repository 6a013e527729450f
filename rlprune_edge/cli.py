"""Words the user typed -> Request; the only prints, the only exits."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

import typer
from rich.console import Console

from rlprune_edge import __version__, cli_bundle, cli_compare, cli_device, cli_init, cli_profile, errors
from rlprune_edge.cli_ends import look_up, resumable, tell_time, telling
from rlprune_edge.console import ConsoleWatcher
from rlprune_edge.errors import DeviceError, UserError
from rlprune_edge.places import cache_dir
from rlprune_edge.request import AGENTS

# torch, datasets and onnxruntime take seconds to import: every command imports its rooms when it runs, so that
# `--help` and `device list` answer at once.

PROVIDER = "What runs the model there: cpu, cuda or tensorrt. [default: the device's]"
TASK = "digits, cifar10, imdb, librispeech, toy-text, toy-speech, or your own package.module:factory."
AGENT = "Who searches: " + ", ".join(AGENTS) + ". [default: ppo]"
STRICT = "Refuse this machine, too, while other work disturbs it, instead of a flag and a wider interval."

app = typer.Typer(
    name="rlprune-edge",
    help="Compress a trained model until it meets a latency budget on your own board, measured there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_device.app, name="device")
app.add_typer(cli_bundle.app, name="bundle")
app.command("compare")(cli_compare.compare)
app.command("profile")(cli_profile.profile)
app.command("init")(cli_init.init)


def run() -> int:
    """Run the command line of this process; returns the exit code (see errors.py), no traceback for a known error."""
    try:
        app()
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else errors.EXIT_OK
    except UserError as error:
        return _fail(str(error), errors.EXIT_USER)
    except DeviceError as error:
        return _fail(str(error), errors.EXIT_DEVICE)
    except errors.RlpruneError as error:
        return _fail(str(error), errors.EXIT_USER)
    return errors.EXIT_OK


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"error: {message}\n")
    return code


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlprune-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def compress(
    task: Annotated[str | None, typer.Option(help=TASK)] = None,
    model: Annotated[
        str | None, typer.Option(help="A model of the task, a folder or hub id, or package.module:factory.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Trained weights, .safetensors or .pt.")] = None,
    data: Annotated[str | None, typer.Option(help="Local folder (or hub id) of the data set.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="A second labelled set, folder or hub id: reported before and after.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens that a text is cut to. [default: 256]")] = None,
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens of the text that is timed. [default: 128]")
    ] = None,
    audio_seconds: Annotated[
        float | None, typer.Option(help="Seconds of the recording that is timed. [default: 5]")
    ] = None,
    train_epochs: Annotated[int | None, typer.Option(help="Of a baseline's own training. [default: 3]")] = None,
    train_learning_rate: Annotated[float | None, typer.Option(help="Likewise. [default: 2e-5]")] = None,
    train_batch_size: Annotated[int | None, typer.Option(help="Likewise. [default: 8]")] = None,
    train_warmup_steps: Annotated[int | None, typer.Option(help="Likewise. [default: 500, or fewer]")] = None,
    train_weight_decay: Annotated[float | None, typer.Option(help="Likewise. [default: 0.01]")] = None,
    train_dropout: Annotated[float | None, typer.Option(help="Before its classifier. [default: 0.3]")] = None,
    device: Annotated[str | None, typer.Option(help="Where to measure; see `rlprune-edge device list`.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of an inference on the device.")] = None,
    provider: Annotated[str | None, typer.Option(help=PROVIDER)] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help=STRICT)] = None,
    target_speedup: Annotated[float | None, typer.Option(help="Times faster than the uncut model, e.g. 2.")] = None,
    target_latency: Annotated[str | None, typer.Option(help="Latency of one inference, e.g. 30ms.")] = None,
    max_memory: Annotated[str | None, typer.Option(help="Peak memory on the device, e.g. 200MB.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Points of the metric that may be lost.")] = None,
    agent: Annotated[str | None, typer.Option(help=AGENT)] = None,
    prior: Annotated[
        bool | None,
        typer.Option(
            "--prior/--no-prior", help="PPO starts from what single cuts cost (scored on the host). [default: on]"
        ),
    ] = None,
    demonstrations: Annotated[
        bool | None,
        typer.Option("--demonstrations/--no-demonstrations", help="PPO is shown knapsack plans. [default: on]"),
    ] = None,
    surrogate: Annotated[
        bool | None,
        typer.Option("--surrogate/--no-surrogate", help="PPO practises on predictions. [default: on]"),
    ] = None,
    neighbours: Annotated[
        bool | None,
        typer.Option("--neighbours/--no-neighbours", help="Plans next to the best are tried, too. [default: off]"),
    ] = None,
    masks: Annotated[
        bool | None,
        typer.Option("--masks/--no-masks", help="Impossible actions are hidden from PPO. [default: off]"),
    ] = None,
    warm_start: Annotated[
        Path | None, typer.Option(help="A former run's folder: begin with its policy and what it found.")
    ] = None,
    budget: Annotated[int | None, typer.Option(help="Candidates to evaluate, each measured. [default: 60]")] = None,
    device_seconds: Annotated[float | None, typer.Option(help="Device time the search may use.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same proposals. [default: 0]")] = None,
    step: Annotated[
        float | None, typer.Option(help="Share of a group's channels cut per action. [default: 0.1]")
    ] = None,
    importance: Annotated[
        str | None, typer.Option(help="taylor, fisher or magnitude. [default: fisher for transformers, else taylor]")
    ] = None,
    calibration_examples: Annotated[
        int | None, typer.Option(help="Inputs that a cut network is healed with. [default: 256; transformers: 32]")
    ] = None,
    search_examples: Annotated[int | None, typer.Option(help="Inputs a candidate is scored on. [default: all]")] = None,
    search_mode: Annotated[
        str | None,
        typer.Option(help="How candidates are timed: brief (half a second), reward or verify. [default: reward]"),
    ] = None,
    ladder: Annotated[
        int | None, typer.Option(help="Rungs: cut and fine-tune so often on the way to the target. [default: 1]")
    ] = None,
    finalists: Annotated[
        int | None, typer.Option(help="Candidates that are fine-tuned in short; the best then in full. [default: 3]")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Fine-tuning: prescribed, long (as the literature trains), auto (rate and schedule by short tests). "
            "[default: prescribed]"
        ),
    ] = None,
    recipe_minutes: Annotated[float | None, typer.Option(help="That auto's tests may take. [default: 10]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of fine-tuning. [default: the task's, 5]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of fine-tuning. [default: the task's, 1e-4]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Of fine-tuning. [default: the task's: 32, speech 16]")] = None,
    distillation: Annotated[
        bool | None,
        typer.Option("--distillation/--no-distillation", help="Learn from the uncut model, too. [default: on]"),
    ] = None,
    reconstruction: Annotated[
        bool | None,
        typer.Option(
            "--reconstruction/--no-reconstruction",
            help="Before fine-tuning, fit a finalist's layers to the uncut network's. [default: on]",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="auto (int8 or fp16 where the device is faster with it and little is lost), fp32, int8 or fp16. "
            "[default: fp32]"
        ),
    ] = None,
    final_mode: Annotated[
        str | None,
        typer.Option(help="Last measurement: report (minutes), verify, or reward (a quick try). [default: report]"),
    ] = None,
    sign: Annotated[Path | None, typer.Option(help="Sign the bundle with this private key (Ed25519).")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="What `rlprune-edge profile` wrote: search with its table.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for this run. [default: runs/TASK-TIME]")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these; flags win.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json on stdout, all else on stderr.")] = False,
) -> None:
    """Compress a trained model to a measured budget and leave a verified ONNX bundle and a report.

    With nothing else it compresses a small digit classifier on this machine. Exit codes: 0 target met, 2 bad input,
    3 the device failed, 4 no candidate met the target, 130 interrupted (go on with --resume).
    """
    words = {
        k: v
        for k, v in locals().items()
        if k not in ("out", "resume", "config", "as_json", "target_latency", "max_memory")
    }
    from rlprune_edge import request as requests
    from rlprune_edge.run_folder import RunFolder

    if target_latency is not None:
        words["target_latency_ms"] = requests.milliseconds(target_latency)
    if max_memory is not None:
        words["max_memory_mb"] = requests.megabytes(max_memory)
    words["warm_start"] = str(warm_start) if warm_start is not None else None
    words["profile"] = str(profile) if profile is not None else None
    words["sign"] = str(sign) if sign is not None else None
    console = Console(stderr=as_json, highlight=False)
    if resume is not None:
        given = sorted(k for k, v in words.items() if v is not None) + [
            n for n, v in (("out", out), ("config", config)) if v
        ]
        if given:
            raise UserError(
                f"--resume goes on with the run as it was asked for; --{given[0].replace('_', '-')} cannot change it.\n"
                f"Type: rlprune-edge compress --resume {resume}"
            )
        folder, request = RunFolder.reopen(resume)
        if folder.read_json(cli_compare.FIELD) is not None:
            raise UserError(f"{resume} holds a comparison.\nType: rlprune-edge compare --resume {resume}")
        signer = cli_bundle.signer_of(request.sign)
    else:
        request = requests.make(words, config)
        look_up(request)
        signer = cli_bundle.signer_of(request.sign)  # hours before it is used: a wrong file is said now
        default = Path("runs") / f"{request.task.replace(':', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
        folder = RunFolder.create(out or default, request)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    began = time.perf_counter()
    with (
        resumable("compress", folder, console, new=resume is None),
        ConsoleWatcher(console) as watcher,
    ):
        from rlprune_edge.compress import compress as run_compress

        outcome = run_compress(request, folder, watcher, cache_dir=cache_dir(), sign=signer.sign if signer else None)
    if as_json:
        typer.echo(json.dumps(outcome.report))
    _print_summary(console, folder.path, outcome.report)
    tell_time(console, time.perf_counter() - began, resumed=resume is not None)
    if outcome.status != "met":
        raise typer.Exit(errors.EXIT_INFEASIBLE)


def _print_summary(console: Console, folder: Path, report: dict[str, Any]) -> None:
    from rlprune_edge.report import summary_lines

    console.print()
    for line in summary_lines(report):
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


@app.command("measure")
def measure_command(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    other: Annotated[Path | None, typer.Argument(help="Another one, to be compared with.")] = None,
    device: Annotated[str, typer.Option(help="Where to measure, e.g. pi4, or pi4-a,pi4-b for several.")] = "local",
    mode: Annotated[
        str, typer.Option(help="How thoroughly: reward (seconds), verify (a minute), report (minutes).")
    ] = "verify",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of an inference. [default: the device's]")] = None,
    provider: Annotated[str | None, typer.Option(help=PROVIDER)] = None,
    strict: Annotated[bool, typer.Option("--strict", help=STRICT)] = False,
    shape: Annotated[
        list[str] | None, typer.Option(help="Shape of an input with free dimensions: input_ids=1x128.")
    ] = None,
    inputs: Annotated[Path | None, typer.Option(help="A .npz file with arrays for inputs, by name.")] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0, max=1, help="How far an output may be from this machine's, as a share of its largest."),
    ] = 1e-3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every sample on stdout.")] = False,
) -> None:
    """Measure any ONNX file on a device: latency with its interval, memory, first run; two files: which is faster.

    Exit codes: 0 measured, 2 bad input or a model that the device cannot run, 3 the device failed.
    """
    from rlprune_edge import measure as measuring
    from rlprune_edge import measure_words

    question = measuring.Question(
        models=(model, other) if other else (model,),
        mode=mode,
        threads=threads,
        provider=provider,
        strict=strict,
        shapes=dict(_shape(text) for text in shape or ()),
        given=_arrays(inputs) if inputs else None,
        tolerance=tolerance,
    )
    with telling() as tell:
        answers = measuring.measure(question, device, cache_dir=cache_dir(), tell=tell)
    if as_json:
        typer.echo(json.dumps(measuring.as_json(answers)))
        return
    for answer in answers:
        for line in measure_words.lines(answer.device, answer.measurements, question.models):
            typer.echo(line)
        if answer.verdict and other:
            said = measure_words.verdict_lines(
                answer.verdict, model, other, calibrated=answer.calibrated, device=answer.device
            )
            for line in said:
                typer.echo(line)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    if not name or not all(size.isdecimal() for size in sizes.split("x")):
        raise UserError(f"--shape {text} is not understood: write NAME=1x128")
    return name, tuple(int(size) for size in sizes.split("x"))


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise UserError(f"cannot read the arrays in {path}: {error}; make them with numpy.savez") from error


@app.command("report")
def report_command(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a former run.")],
    form: Annotated[
        str, typer.Option("--format", help="What to print: text, md (tables), json (all of it), csv (all candidates).")
    ] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Print a run's result and write its report.html again, without running anything."""
    from rlprune_edge import report_formats
    from rlprune_edge.report import render

    form = "json" if as_json else form
    if form not in report_formats.FORMATS:
        raise UserError(f"--format {form} is not known: choose {', '.join(report_formats.FORMATS)}")
    report = render(run_dir)
    if form == "text":
        _print_summary(Console(highlight=False), run_dir, report)
    elif form == "json":
        typer.echo(json.dumps(report))
    else:
        made = report_formats.markdown(report) if form == "md" else report_formats.table_of_candidates(report)
        typer.echo(made, nl=False)
