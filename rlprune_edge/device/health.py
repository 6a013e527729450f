"""Is a device to be used? Failures that are nobody's fault are counted; after three in a row it has to prove itself.

The proof is a run of the golden model: right outputs, and as fast as when the device was calibrated. Kept in a file,
because a device that failed at the end of one run is not better at the beginning of the next.
"""

# health file: {"format": 1, "failures", "last" (kind of the last one), "quarantined": reason or null,
#               "drifted_at": wall clock of the last golden run that was off by more than 5 %, or 0}

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rlprune_edge import whole_file

log = logging.getLogger(__name__)

FORMAT = 1
FAILURES_MAX = 3
DRIFT_WARNED = 0.05
DRIFT_REFUSED = 0.15
GOLDEN_EVERY_SECONDS = 3600.0


@dataclass
class _State:
    format: int = FORMAT
    failures: int = 0
    last: str = ""
    quarantined: str | None = None
    drifted_at: float = 0.0


class Health:
    """The health of one device, in the file `path`. `golden_ms` is its calibrated time for the golden model."""

    def __init__(self, path: Path, *, golden_ms: float | None = None) -> None:
        self._path = path
        self.golden_ms = golden_ms
        self._state = _load(path)
        self._golden_at: float | None = None
        self._rebooted = False

    @property
    def failures(self) -> int:
        """Failures in a row that were nobody's fault."""
        return self._state.failures

    @property
    def last(self) -> str:
        """Kind of the last one."""
        return self._state.last

    @property
    def quarantined(self) -> str | None:
        """Why the device is not to be used, `None` if it is."""
        return self._state.quarantined

    @property
    def drifted_at(self) -> float:
        """Wall clock (seconds since 1970) since which older figures do not hold for this device any more."""
        return self._state.drifted_at

    def golden_run_due(self) -> bool:
        """Has the device to prove itself first? Where it is calibrated, on first use and every hour as well."""
        if self.quarantined or self.failures >= FAILURES_MAX or self._rebooted:
            return True
        if self.golden_ms is None:
            return False
        return self._golden_at is None or time.monotonic() - self._golden_at > GOLDEN_EVERY_SECONDS

    def failed(self, kind: str) -> None:
        """Count a failure that was nobody's fault."""
        self._state.failures += 1
        self._state.last = kind
        self._save()

    def worked(self) -> None:
        """A job came to its end."""
        if self._state.failures and not self._state.quarantined:
            self._state.failures, self._state.last = 0, ""
            self._save()

    def rebooted(self) -> None:
        """The device was restarted since it was last seen."""
        self._rebooted = True

    def judge(self, milliseconds: float) -> str | None:
        """Take a golden run's figure; why it does not pass, `None` if it does, which lifts the quarantine."""
        drift = 0.0 if self.golden_ms is None else milliseconds / self.golden_ms - 1
        if abs(drift) > DRIFT_WARNED:
            self._state.drifted_at = time.time()
            log.warning("the golden model took %.1f ms, %+.0f %% against the calibration", milliseconds, 100 * drift)
        if abs(drift) > DRIFT_REFUSED:
            reason = (
                f"the golden model took {milliseconds:.1f} ms, which is {100 * drift:+.0f} % against the "
                f"{self.golden_ms:.1f} ms it was calibrated at"
            )
            self.quarantine(reason)
            return reason
        self._golden_at, self._rebooted = time.monotonic(), False
        self._state.failures, self._state.last, self._state.quarantined = 0, "", None
        self._save()
        return None

    def quarantine(self, reason: str) -> None:
        """Do not use the device until a golden run passes."""
        self._state.quarantined = reason
        self._save()

    def _save(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            whole_file.write_text(self._path, json.dumps(asdict(self._state)), shared=True)
        except OSError as error:  # it still holds for this run
            log.warning("cannot write %s: %s", self._path, error.strerror)


def _load(path: Path) -> _State:
    try:
        state = _State(**json.loads(path.read_text(encoding="utf-8")))
        if state.format == FORMAT and isinstance(state.failures, int):
            return state
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as error:
        log.warning("ignoring a damaged file (%s): %s", path, error)
    return _State()
