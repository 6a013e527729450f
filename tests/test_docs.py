"""The documentation does what it says: every command in it runs, every flag it names exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import readers_own
import typer
from onnx import TensorProto, helper, numpy_helper
from processes import finish, finish_within_target

from rlprune_edge.cli import app
from rlprune_edge.search.agents import AGENTS

ALONE = pytest.mark.alone
ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BOARDS = (ROOT / "docs" / "boards.md").read_text()
OWN_TASK = (ROOT / "docs" / "own-task.md").read_text()
SEARCH = (ROOT / "docs" / "search.md").read_text()
MODALITIES = (ROOT / "docs" / "modalities.md").read_text()
MEASURING = (ROOT / "docs" / "measuring.md").read_text()
DATA = ROOT.parent / "shared"

# The last of two equal options wins: the commands are tried as written, but with less of everything.
CHEAPER = shlex.split(
    "--budget 3 --epochs 1 --finalists 1 --search-mode brief --final-mode reward --target-speedup 1.2"
)
# An epoch over 45,000 images takes half an hour on one core, and probing every single cut minutes.
# A network of 13 microseconds is mostly overhead, which the latency model has to learn first: 3 candidates do not do.
FEWER = shlex.split(
    "--budget 4 --seeds 1 --agents knapsack,random --target-speedup 1.2 --search-examples 100 --final-mode reward"
)
FEWER_PLANS = shlex.split("--plans 6 --held-out 3")
TINY = shlex.split("--task own_task:Bars")
"""where what is shown does not depend on the network"""
OTHERWISE = {
    # two of twelve epochs teach the baseline enough to be cut
    "digits": shlex.split("--model resnet26:train=2"),
    "cifar10": shlex.split("--calibration-examples 64 --search-examples 100 --epochs 0 --no-prior --no-reconstruction"),
    "own_task:Bars": shlex.split("--budget 10"),
    # a reader's folder is a tiny network with random weights here
    "imdb": shlex.split("--no-prior --max-length 24 --sequence-length 16 --search-mode reward --budget 8"),
    "librispeech": shlex.split("--no-prior --audio-seconds 1 --search-mode reward --budget 8"),
}
# A candidate that was trained for one epoch loses more than a finished one; what it may lose is not on trial here.
LENIENT = ["--max-drop", "50"]


def blocks(page: str) -> list[list[str]]:
    """The `$ command` lines of every console block, in order."""
    found = re.findall(r"```console\n(.*?)```", page, flags=re.DOTALL)
    return [[line[2:] for line in block.splitlines() if line.startswith("$ ")] for block in found]


def scripts(page: str) -> list[str]:
    return [command for block in blocks(page) for command in block if command.startswith("./")]


JOBS = [[c for c in block if not c.startswith("./")] for block in blocks(README)]
JOBS = [job for job in JOBS if job]
COMPRESSIONS = [
    # the digits network is trained with all cores, or it takes three times as long
    pytest.param(job, id=re.sub(r"\W+", "-", " ".join(job[0].split()[:4])), marks=[] if "--task" in job[0] else ALONE)
    for job in JOBS
    if job[0].startswith("rlprune-edge compress")
]


def run(command: str, cwd: Path, cache: Path, *, tiny: bool = False) -> str:
    """What a command of the documentation prints; it must exit with 0."""
    program, *words = shlex.split(command)
    if program != "rlprune-edge":
        assert program in ("python", "ssh-keygen"), f"no test knows how to run: {command}"
        words = [sys.executable if program == "python" else program, *words]
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=500, check=False)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        begins = words[0] in ("compress", "compare", "profile") and not {"--render", "--resume"} & set(words)
        if words[0] == "compare" and begins:
            words += FEWER
        if words[0] == "profile":
            words += FEWER_PLANS
        if tiny and begins:
            words += TINY
        if words[0] == "compress":
            task = words[words.index("--task") + 1] if "--task" in words else "digits"
            words += [*CHEAPER, *OTHERWISE.get(TINY[1] if tiny else task, [])]
            words += LENIENT if "--max-drop" in words else []
        if words[:2] == ["bundle", "verify"] and "--device" in words:
            words += ["--mode", "reward"]
        # whether a machine that others disturb meets a target is not what a page is tried for
        run_it = finish_within_target if "--out" in words else finish
        code, out, err = run_it(words, cache, cwd)
    assert code == 0, f"{command}\n{out}\n{err}"
    return out


# ---------------------------------------------------------------- commands


def test_the_readme_shows_the_commands_that_matter() -> None:
    shown = " ".join(c for block in blocks(README) for c in block)
    for words in ("./tools/demo", "./tools/check", "compress --target-speedup", "bundle verify", "--task cifar10"):
        assert words in shown


def a_model(path: Path, width: int) -> None:
    """A reader's own file."""
    shapes = {"a": (64, width), "b": (width, 64)}
    weights = [numpy_helper.from_array(np.ones(shape, np.float32) / width, name) for name, shape in shapes.items()]
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, ["n", 64])], [value("y", TensorProto.FLOAT, ["n", 64])]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    graph = helper.make_graph(nodes, "g", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def test_the_readmes_measurements_run(cache: Path, tmp_path: Path) -> None:
    (job,) = [job for job in JOBS if job[0].startswith("rlprune-edge measure")]
    a_model(tmp_path / "model.onnx", 8192)
    a_model(tmp_path / "other.onnx", 512)
    said = [run(f"{command} --mode reward", tmp_path, cache) for command in job]
    assert "latency" in said[0]
    assert "verdict: slower" in said[1]


def test_the_commands_of_the_page_on_measuring_run(cache: Path, tmp_path: Path) -> None:
    a_model(tmp_path / "model.onnx", 8192)
    a_model(tmp_path / "other.onnx", 512)
    (job,) = blocks(MEASURING)
    said = [run(f"{command} --mode reward", tmp_path, cache) for command in job]
    assert "latency" in said[0]
    assert json.loads(said[1])["devices"][0]["verdict"]["word"] == "slower"


@pytest.mark.parametrize("page", ["bundles", "report"])
def test_the_commands_of_the_pages_on_what_a_run_leaves_run_in_their_order(
    page: str, cache: Path, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "tests" / "examples" / "own_task.py", tmp_path)
    text = (ROOT / "docs" / f"{page}.md").read_text()
    said = {command: run(command, tmp_path, cache, tiny=True) for job in blocks(text) for command in job}
    expected = {
        "--trust": "a key that you trust",
        "--device local": "golden examples reproduced on local",
        "--golden 0": '"reproduced": true',
        "--precision auto": "Precision int8-dynamic: ",
        "--format md": "| latency (95 % interval) |",
        "--format csv": "number,rung,plan_key",
        "--format json": '"verdict"',
    }
    for words, there in expected.items():
        assert all(there in out for command, out in said.items() if words in command), words
    assert len([words for words in expected if any(words in command for command in said)]) >= 3
    for command, out in said.items():
        assert out or command.startswith("ssh-keygen"), command


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_every_page_is_in_the_readme_and_its_links_lead_somewhere(page: str) -> None:
    assert f"(docs/{page})" in README
    text = (ROOT / "docs" / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("job", COMPRESSIONS)
def test_the_readmes_commands_run_in_their_order(job: list[str], cache: Path, tmp_path: Path) -> None:
    if any("../shared/data" in command for command in job):
        if not (DATA / "data").is_dir():
            pytest.skip("the data folder beside the checkout is not there")
        (tmp_path / "shared").symlink_to(DATA)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    said = [run(command, checkout, cache) for command in job]
    assert all(said)
    assert "faster on local" in said[0]
    (folder,) = (checkout / "runs").iterdir()
    assert (folder / "bundle" / "model.onnx").is_file()
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("script", sorted(set(scripts(README))))
def test_the_scripts_are_there_and_can_be_parsed(script: str) -> None:
    # They set up an environment and run the gate itself, so a test inside the gate cannot run them.
    path = ROOT / script
    assert os.access(path, os.X_OK)
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_pip_is_told_of_constraints_that_exist() -> None:
    named = re.findall(r"pip install [^`\n]*-c (\S+)", README)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_commands_of_the_page_on_own_tasks_run_in_their_order(cache: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "examples" / "own_task.py", tmp_path)
    commands = [line for line in OWN_TASK.splitlines() if line.startswith("rlprune-edge ")]
    assert len(commands) >= 2
    for command in commands:
        if "--weights bars.safetensors" in command:
            # the reader's own file: here the network that the first command has trained
            (trained,) = (cache / "models").glob("bars-small-*.safetensors")
            shutil.copy(trained, tmp_path / "bars.safetensors")
        assert "faster on local" in run(command, tmp_path, cache)


@pytest.mark.parametrize("number", range(len(blocks(MODALITIES))))
def test_the_commands_of_the_page_on_modalities_run_in_their_order(number: int, cache: Path, tmp_path: Path) -> None:
    readers_own.texts(tmp_path)
    readers_own.recordings(tmp_path)
    job = blocks(MODALITIES)[number]
    said = [run(command, tmp_path, cache) for command in job]
    assert "faster on local" in said[0]
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "bundle" / "model.onnx").is_file()
    assert (folder / "compressed" / "config.json").is_file()
    learned = json.loads((folder / "report.json").read_text())["baseline"]["metric"]
    if "toy-" in job[0]:
        assert learned > 90 if "toy-text" in job[0] else learned < 20
    expected = ["f1, test split"] if "speech" not in job[0] else ["wer, test split", "cer, test split", "greedy CTC"]
    expected += ["real-time factor"] if "speech" in job[0] else []
    if "--task imdb" in job[0]:
        expected += ["accuracy, other-reviews (test)", "texts cut to 24 tokens", "16 tokens an inference"]
    assert [words for words in expected if words not in said[0]] == []


def test_the_commands_of_the_page_on_the_search_run_in_their_order(cache: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "examples" / "own_task.py", tmp_path)
    said = [run(command, tmp_path, cache, tiny=True) for job in blocks(SEARCH) for command in job]
    assert "its policy and" in said[1]
    assert all("knapsack" in text for text in said[2:6])
    assert "Fine-tuned with recipe prescribed" in said[5]
    assert "6 random plans to learn from, 3 to be tried on" in said[6]
    assert "nothing is measured" in said[7]
    assert "rung 3 of 3" in said[8]
    assert (tmp_path / "runs" / "field" / "compare.html").is_file()


# ---------------------------------------------------------------- flags


def group_flags(name: str) -> set[str]:
    """All flags of all `device` or all `bundle` commands."""
    group = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return {
        spelling
        for command in group.commands.values()
        for parameter in command.params
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    }


def flags_of(command: str) -> set[str]:
    """All spellings of a command's options, as typer knows them."""
    group = typer.main.get_command(app)
    found = group.commands[command]  # type: ignore[attr-defined]  # the app has several commands, so it is a group
    return {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}


def test_every_flag_the_readme_names_exists() -> None:
    table = README.split("| flag | meaning |")[1].split("\n\n")[0]
    in_table = set(re.findall(r"--[a-z][a-z-]+", table))
    assert len(in_table) >= 8
    in_text = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - {"--help", "--golden", "--board"}
    assert sorted((in_table | in_text) - flags_of("compress")) == []


def test_every_flag_of_the_page_on_boards_exists() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", BOARDS))
    known = flags_of("compress") | flags_of("measure") | group_flags("device") | group_flags("bundle")
    assert named
    assert sorted(named - known) == []


@pytest.mark.parametrize("page", ["bundles", "report", "measuring", "troubleshooting", "raspberry-pi", "jetson"])
def test_every_flag_of_the_other_pages_exists(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    # of programs that are not ours
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--golden", "--expect", "--build", "--ignore-scripts"}
    commands = ("compress", "measure", "report", "compare", "profile", "init")
    known = {flag for command in commands for flag in flags_of(command)} | group_flags("device") | group_flags("bundle")
    assert named
    assert sorted(named - known) == []


def test_every_flag_of_the_page_on_modalities_exists() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", MODALITIES)) - {"--golden", "--text"}
    assert len(named) >= 10
    assert sorted(named - flags_of("compress")) == []


def test_every_flag_of_the_page_on_the_search_exists() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", SEARCH))
    assert len(named) >= 10
    assert sorted(named - flags_of("compress") - flags_of("compare") - flags_of("profile")) == []


def test_the_page_on_the_search_lists_every_agent() -> None:
    table = SEARCH.split("| agent |")[1].split("\n\n")[0]
    listed = [name for row in table.splitlines()[2:] for name in re.findall(r"`([a-z-]+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(AGENTS)
    asking = [re.findall(r"`([a-z-]+)`", row)[0] for row in table.splitlines()[2:] if row.rstrip().endswith("yes |")]
    assert asking == [name for name, agent in AGENTS.items() if agent.probes]
