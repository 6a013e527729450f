"""The rooms, as a test: who may import whom, and the one home of every foreign library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("tasks", "prune", "export", "device", "search", "bundle")
CLI = ("cli", "cli_bundle", "cli_compare", "cli_device", "cli_ends", "cli_init", "cli_profile")
SPINE = {
    f"rlprune_edge/{name}.py"
    for name in (
        *(
            "run",
            "probing",
            "compress",
            "parents",
            "ladder",
            "recipes",
            "finalists",
            "second_look",
            "deliver",
            "measure",
            "compare",
            "profile",
            "prove",
            "deployment",
            "precisions",
            "shelve",
        ),
        *CLI,
    )
}
HOMES = {
    "torch_pruning": ("rlprune_edge/prune/graph.py",),
    "onnx": tuple(
        f"rlprune_edge/export/{name}.py"
        for name in (
            *("constants", "naming", "onnx_graph", "probes", "removal", "skeleton", "work"),
            *("template", "templates", "wire", "selfcontained", "quantize"),
        )
    ),
    "onnxruntime": (
        "rlprune_edge/export/host.py",
        "rlprune_edge/export/quantize.py",
        "rlprune_edge/bundle/predict_template.py",  # runs without us
        "agents/rlprune_agent/runtime.py",
    ),
    "gymnasium": ("rlprune_edge/search/env.py",),
    "stable_baselines3": tuple(f"rlprune_edge/search/{name}.py" for name in ("ppo", "policy", "imagination", "dqn")),
    "sb3_contrib": tuple(f"rlprune_edge/search/{name}.py" for name in ("ppo", "policy", "imitation", "rounds")),
    "optuna": ("rlprune_edge/search/field_optuna.py",),
    "torchvision": ("rlprune_edge/tasks/torchvision_models.py",),
    "datasets": ("rlprune_edge/tasks/hub.py",),
    "sklearn": ("rlprune_edge/tasks/digits.py",),
    "transformers": tuple(f"rlprune_edge/tasks/{name}.py" for name in ("pretrained", "pretrained_ctc", "trainer")),
    "tokenizers": ("rlprune_edge/tasks/pretrained.py", "rlprune_edge/bundle/tokens.py"),  # the latter runs without us
    "huggingface_hub": ("rlprune_edge/tasks/model_card.py",),
    "optimum": ("rlprune_edge/export/transformers_export.py",),
    "jiwer": ("rlprune_edge/tasks/speech.py",),
    "soundfile": ("rlprune_edge/tasks/audio.py", "rlprune_edge/bundle/speech.py"),  # likewise
    "scipy": ("rlprune_edge/tasks/audio.py", "rlprune_edge/comparison_stats.py"),
    "safetensors": ("rlprune_edge/tasks/weights.py",),
    "plotly": tuple(f"rlprune_edge/{name}.py" for name in ("plots", "report_html", "report_course", "comparison_html")),
    "cryptography": ("rlprune_edge/bundle/signature.py",),
    "cyclonedx": ("rlprune_edge/bundle/sbom.py",),
    "packageurl": ("rlprune_edge/bundle/sbom.py",),
    "paramiko": ("rlprune_edge/device/ssh.py", "rlprune_edge/device/ssh_login.py"),
    "typer": tuple(f"rlprune_edge/{name}.py" for name in CLI),
    "rich": tuple(f"rlprune_edge/{name}.py" for name in (*CLI, "console", "live")),
}
TORCH = (
    *(f"rlprune_edge/{name}.py" for name in ("inputs", "encoders", "layout", "bfloat16")),
    "rlprune_edge/tasks/",
    "rlprune_edge/prune/",
    "rlprune_edge/export/",
    *(f"rlprune_edge/search/{name}.py" for name in ("ppo", "policy", "imitation", "process_state")),
)


def files() -> list[Path]:
    return sorted([*ROOT.glob("rlprune_edge/**/*.py"), *ROOT.glob("agents/rlprune_agent/*.py")])


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def offences(path: Path, name: str) -> list[str]:
    """What the file `name` (relative to the root) imports against the rules."""
    wrong = []
    room = name.split("/")[1] if name.count("/") > 1 and name.startswith("rlprune_edge/") else None
    for module in imports(path):
        top, *rest = module.split(".")
        if top in HOMES and name not in HOMES[top]:
            wrong.append(f"{name} imports {top}, whose home is {', '.join(HOMES[top])}")
        if top == "torch" and name not in SPINE and not name.startswith(TORCH):
            wrong.append(f"{name} imports torch")
        if top == "rlprune_edge" and name.startswith("agents/"):
            wrong.append(f"{name}: the agent knows nobody, but imports {module}")
        if top == "rlprune_agent" and not name.startswith(("rlprune_edge/device/", "agents/")):
            wrong.append(f"{name} imports the agent; only the device room may")
        # __main__.py hands `bundle verify` on where typer is missing
        free = name in SPINE or name == "rlprune_edge/__main__.py"
        if top == "rlprune_edge" and rest and rest[0] in ROOMS and room != rest[0] and not free:
            wrong.append(f"{name} imports the room {rest[0]}")
    return wrong


def test_rooms_do_not_import_each_other_and_libraries_stay_at_home() -> None:
    found = [wrong for path in files() for wrong in offences(path, path.relative_to(ROOT).as_posix())]
    assert found == []


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("rlprune_edge/search/x.py", "from rlprune_edge.prune import cut", "imports the room prune"),
        ("rlprune_edge/search/x.py", "import torch", "imports torch"),
        ("rlprune_edge/prune/x.py", "import onnx.helper", "whose home is"),
        ("agents/rlprune_agent/x.py", "from rlprune_edge import records", "the agent knows nobody"),
        ("rlprune_edge/report.py", "from rlprune_agent import protocol", "only the device room may"),
    ],
)
def test_the_rule_sees_an_offence(tmp_path: Path, name: str, source: str, complaint: str) -> None:
    spoiled = tmp_path / "x.py"
    spoiled.write_text(source)
    assert complaint in "".join(offences(spoiled, name))


def unsafe(path: Path) -> list[str]:
    """Where a file would trust any host key, or hand a text that was put together to a shell, here or on a board."""
    wrong = []
    for node in ast.walk(ast.parse(path.read_text())):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
        if name in ("AutoAddPolicy", "WarningPolicy", "MissingHostKeyPolicy"):
            wrong.append(f"{name} trusts host keys that nobody has seen")
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        first = node.args[0] if node.args else None
        if called == "set_missing_host_key_policy" and "RejectPolicy" not in ast.unparse(node):
            wrong.append("a policy for unknown host keys other than RejectPolicy")
        if ast.unparse(node.func) in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"):
            wrong.append(f"{called} runs a shell")
        if any(
            k.arg == "shell" and not (isinstance(k.value, ast.Constant) and not k.value.value) for k in node.keywords
        ):
            wrong.append("shell=True")
        # A command for a board is a constant; what varies goes over its standard input.
        if called in ("converse", "exec_command") or (called == "run" and isinstance(first, ast.JoinedStr | ast.BinOp)):
            named = isinstance(first, ast.Name) and (first.id.isupper() or first.id == "command")
            wrong += (
                []
                if named or isinstance(first, ast.Constant)
                else [f"a command that is put together: {ast.unparse(node)}"]
            )
    return wrong


def test_no_host_key_is_trusted_unseen_and_no_command_is_put_together() -> None:
    found = [f"{path.relative_to(ROOT)}: {wrong}" for path in files() for wrong in unsafe(path)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("client.set_missing_host_key_policy(paramiko.AutoAddPolicy())", "AutoAddPolicy trusts"),
        ("from paramiko import WarningPolicy\np = WarningPolicy()", "WarningPolicy trusts"),
        ("client.set_missing_host_key_policy(mine)", "other than RejectPolicy"),
        ("subprocess.run('ls', shell=True)", "shell=True"),
        ("subprocess.run('ls', shell=wanted)", "shell=True"),
        ("os.system('ls')", "runs a shell"),
        ("session.run(f'rm {path}', seconds=1)", "put together"),
        ("session.run('rm ' + path, seconds=1)", "put together"),
        ("session.converse('agent %s' % word)", "put together"),
        ("session.converse(words.pop())", "put together"),
    ],
)
def test_the_second_rule_sees_an_offence(tmp_path: Path, source: str, complaint: str) -> None:
    spoiled = tmp_path / "x.py"
    spoiled.write_text(source)
    assert complaint in "".join(unsafe(spoiled))


def test_the_second_rule_lets_the_rest_pass(tmp_path: Path) -> None:
    fine = tmp_path / "x.py"
    fine.write_text(
        "client.set_missing_host_key_policy(paramiko.RejectPolicy())\n"
        "subprocess.run(['ls', path], shell=False)\n"
        "session.converse(_AGENT)\nsession.run('uname -m', seconds=1)\n"
    )
    assert unsafe(fine) == []


@pytest.mark.parametrize("words", [["--help"], ["compress", "--help"], ["device", "list"], ["--version"]])
def test_light_commands_import_no_torch(words: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['rlprune-edge', *sys.argv[1:]]\n"
        "from rlprune_edge.__main__ import main\n"
        "code = main()\n"
        "heavy = sorted({'torch', 'onnxruntime', 'datasets', 'stable_baselines3', 'sklearn'} & set(sys.modules))\n"
        "sys.stderr.write('heavy: ' + ' '.join(heavy)); sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "heavy: ")
