"""Every fault that can be made on one Linux machine: what comes of it, and how long its tests take.

    .venv/bin/python tools/bench/faults.py [F4 F7 ...]

Runs the tests whose name or first line names a fault (F1 to F45) and prints a table. The seconds are the
longest of the fault's tests, from the injection to the outcome and with all set-up in them: an upper bound. F46 (pull
the plug, hair-dryer, weak supply) needs a board and a person.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

TESTS = Path(__file__).parents[2] / "tests"
FAULTS = {
    1: ("connection drops in mid-upload", "goes on where it was, nothing is sent twice"),
    2: ("upload stalls without an end", "noticed, sent again"),
    3: ("upload arrives damaged", "refused by its checksum, sent again"),
    4: ("connection drops in mid-measurement", "the job goes on, its result is fetched once"),
    5: ("host killed in mid-job", "lease runs out, child killed, board free"),
    6: ("host restarted with --resume", "nothing finished is measured again"),
    7: ("board loses power in mid-job", "waited for, golden run, measured once more"),
    8: ("board never comes back", "exit code 3, with how to go on"),
    9: ("disk full", "`disk_full` before the transfer, or nothing half-written stays"),
    10: ("disk read-only", "an operator's error, the agent lives"),
    11: ("child runs out of memory", "`oom`, the candidate's fault; the next job is fine"),
    12: ("agent killed", "started again, journal replayed, job done afresh"),
    13: ("model asks for a huge tensor", "refused before onnxruntime sees it"),
    14: ("board throttles in mid-block", "block dropped, pause, taken again, flagged"),
    15: ("supply too weak all the time", "`undervoltage`, refused with what to do"),
    16: ("clock drops silently", "`clock_unstable` after three blocks"),
    17: ("board never cools", "flagged or refused, as the mode wants"),
    18: ("sensor missing, or says nonsense", "goes on without it, and says so"),
    19: ("wall clock jumps", "no duration hangs on it"),
    20: ("agent hangs", "given up and asked again; the service manager's watchdog kills it"),
    21: ("child never ends", "`timeout_model`, its group killed"),
    22: ("child crashes, or importing onnxruntime does", "`load_failed` or `runtime_missing`, with the reason"),
    23: ("another host key", "stops at once, both fingerprints shown, nothing sent"),
    24: ("unknown host", "stops, with what to type"),
    25: ("known_hosts with every kind of line", "read; revoked keys refused, bad lines warned of"),
    26: ("login fails, too many keys", "`auth_failed`, names the keys"),
    27: ("old agent and new host, and the reverse", "upgraded side by side, or a clear refusal"),
    28: ("shell noise before the protocol", "skipped up to 4 KiB, else shown"),
    29: ("file in the board's cache rots", "noticed before use, sent again"),
    30: ("truncated, garbage or unknown ONNX", "`load_failed` with onnxruntime's line"),
    31: ("values in other files, however linked", "refused before onnxruntime sees it"),
    32: ("two hosts at once", "one measures, the other waits; a stale owner is refused"),
    33: ("job submitted twice", "run once, one result"),
    34: ("frames that are too long, deep or no JSON", "conversation closed, the agent lives"),
    35: ("impossible latency", "the figure is refused, whatever it would have been worth"),
    36: ("other load appears", "waited for, then `busy`"),
    37: ("swapping", "`swapping`"),
    38: ("governor or power mode changes", "`config_changed`"),
    39: ("cores go offline", "`config_changed`"),
    40: ("upgrade interrupted", "the old agent still works"),
    41: ("cache is tidied while a job runs", "files of jobs stay"),
    42: ("wrong output", "`output_mismatch`, never positive"),
    43: ("ssh_config with Include, ProxyJump, alias", "the same target as `ssh HOST`"),
    44: ("the same model twice, on a drifting, throttling board", "`same`"),
    45: ("a gain of 5 % there", "found; one of 2 % never `slower`"),
}


def tagged() -> dict[str, set[int]]:
    """The faults of each test, by `file::function`, or of a whole file by its docstring."""
    found: dict[str, set[int]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        everywhere = _tags(ast.get_docstring(tree) or "")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                named = re.match(r"test_f(\d+)_", node.name)
                tags = _tags((ast.get_docstring(node) or "").split("\n")[0]) | everywhere
                tags |= {int(named[1])} if named else set()
                if tags:
                    found[f"{path.relative_to(TESTS.parent)}::{node.name}"] = tags
    return found


def _tags(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\bF(\d{1,2})\b", text) if 1 <= int(number) <= 45}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="F1 to F45; all of them if none is named")
    names = parser.parse_args().faults
    if unknown := [name for name in names if name.upper() not in {f"F{number}" for number in FAULTS}]:
        parser.error(f"no test can show {', '.join(unknown)}")
    wanted = {int(name[1:]) for name in names} or set(FAULTS)
    tests = {test: tags & wanted for test, tags in tagged().items() if tags & wanted}
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "junit.xml"
        words = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *tests]
        status = subprocess.run(words, cwd=TESTS.parent, check=False).returncode
        cases = list(ElementTree.parse(report).iter("testcase"))
    seconds: dict[int, list[float]] = {}
    bad: set[int] = set()
    for case in cases:
        place = case.attrib["classname"].replace(".", "/") + ".py::" + case.attrib["name"].split("[")[0]
        for number in tests.get(place, ()):
            if case.find("skipped") is None:
                seconds.setdefault(number, []).append(float(case.attrib["time"]))
            if case.find("failure") is not None or case.find("error") is not None:
                bad.add(number)
    lines = ["| fault | what happens | outcome | tests | longest, s |", "|---|---|---|---|---|"]
    for number in sorted(wanted):
        taken = seconds.get(number, [])
        outcome = FAULTS[number][1] if taken and number not in bad else "**NOT SHOWN**"
        longest = f"{max(taken):.1f}" if taken else "-"
        lines.append(f"| F{number} | {FAULTS[number][0]} | {outcome} | {len(taken)} | {longest} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return status or int(any(number not in seconds for number in wanted))


if __name__ == "__main__":
    sys.exit(main())
