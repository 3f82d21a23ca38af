"""Frequency governor and energy counters. Linux only; most virtual machines expose neither."""

from pathlib import Path

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
METERS = Path("/sys/class/powercap")  # running average power limit (RAPL) of Intel and AMD


def governor() -> str | None:
    """Name of the frequency governor; None where it cannot be read."""
    try:
        return GOVERNOR.read_text().strip()
    except OSError:
        return None


def meters() -> dict[Path, int] | None:
    """Energy counter of each processor package, in microjoules; None where it cannot be read."""
    packages = (zone for zone in METERS.glob("*-rapl:*") if zone.name.count(":") == 1)
    try:
        return {zone: int((zone / "energy_uj").read_text()) for zone in packages} or None
    except (OSError, ValueError):
        return None


def joules(before: dict[Path, int] | None, after: dict[Path, int] | None) -> float | None:
    """Energy between two readings of `meters`, whose counters wrap around at their range."""
    if not before or not after:
        return None
    ranges = {zone: int((zone / "max_energy_range_uj").read_text()) + 1 for zone in before}
    return sum((after[zone] - count) % ranges[zone] for zone, count in before.items()) / 1e6
