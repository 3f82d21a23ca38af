"""Peak resident memory of this process."""

import contextlib
import resource
import sys
import threading
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_rss() -> None:
    """Start the peak anew where the system can (Linux); elsewhere it is of the whole process."""
    if _CLEAR.exists():
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")


def anonymous_bytes() -> int:
    """Resident memory of this process that no file stands behind, now. Linux only."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def anonymous_peak(work) -> int:
    """Peak of anonymous memory while work() runs, above what it was before, in bytes. Linux only."""
    before, highest, stop = anonymous_bytes(), [0], threading.Event()

    def watch():
        while not stop.wait(0.003):
            highest[0] = max(highest[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        stop.set()
        watcher.join()
    return highest[0] - before


def peak_rss_bytes() -> int:
    """Peak resident set since the start, or since `reset_peak_rss`."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
