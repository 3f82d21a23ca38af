"""What the machine tells of its power: how its clock is governed, and the energy that its processors took. Linux; many
machines, and most virtual ones, tell neither.
"""

from pathlib import Path

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
METERS = Path("/sys/class/powercap")  # Intel's and AMD's running average power limit (RAPL)


def governor() -> str | None:
    """Name of the frequency governor; None where the machine does not tell."""
    try:
        return GOVERNOR.read_text().strip()
    except OSError:
        return None


def meters() -> dict[Path, int] | None:
    """Microjoules that each processor package has counted; None where the machine does not tell, or not this user."""
    try:
        return {
            zone: int((zone / "energy_uj").read_text())
            for zone in METERS.glob("*-rapl:*")
            if zone.name.count(":") == 1
        } or None
    except (OSError, ValueError):
        return None


def joules(before: dict[Path, int] | None, after: dict[Path, int] | None) -> float | None:
    """Energy between two readings of `meters`; counters start again at their range."""
    if not before or not after:
        return None
    return (
        sum(
            (after[zone] - count) % (int((zone / "max_energy_range_uj").read_text()) + 1)
            for zone, count in before.items()
        )
        / 1e6
    )
