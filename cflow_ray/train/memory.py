"""The largest resident memory of this process over a stretch of work, as Linux counts it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_PROCESS = Path("/proc/self")


class PeakMemory:
    """Counts from the moment it is made."""

    def __init__(self) -> None:
        with suppress(OSError):
            (_PROCESS / "clear_refs").write_text("5")  # sets the kernel's peak back to what is resident now

    def peak_mb(self) -> float | None:
        """In MB of 10^6 bytes; None where the system does not tell."""
        try:
            lines = (_PROCESS / "status").read_text().splitlines()
        except OSError:
            return None
        peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
        return round(peaks[0] * 1024 / 1e6, 1) if peaks else None
