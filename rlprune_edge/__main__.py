"""Start the command line; `bundle` commands also work where only numpy and onnxruntime are installed."""

from __future__ import annotations

import sys


def main() -> int:
    """Entry point of `rlprune-edge`; returns the exit code."""
    try:
        from rlprune_edge.cli import run
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "rich", "pydantic"):
            raise
        if sys.argv[1:3] == ["bundle", "verify"]:
            from rlprune_edge.bundle.verify import main as verify

            return verify(sys.argv[3:])
        sys.stderr.write(
            f"rlprune-edge is installed without {missing.name}; only `rlprune-edge bundle verify` works like that.\n"
            "For everything else: pip install rlprune-edge\n"
        )
        return 2
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
