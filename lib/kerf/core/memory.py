"""Peak memory of this process."""

import contextlib
import resource
import sys
from pathlib import Path


def _status_bytes(name: str) -> int:
    """A size that /proc/self/status holds; 0 on a system without this file."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def reset_peak_rss() -> None:
    """Reset the peak of `peak_rss_bytes` where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int:
    """Peak resident set since the start of the process, or since `reset_peak_rss`."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status_bytes("VmHWM") or (peak if sys.platform == "darwin" else peak * 1024)


def anonymous_bytes() -> int:
    """Current resident memory that is not backed by a file. Linux only."""
    return _status_bytes("RssAnon")
