"""How weights share a scale and zero_point, for a weight of (rows, columns)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PerChannel:
    """One per row (output channel): a weight of (384, 1536) has a scale of (384, 1)."""

    def group_size(self, columns: int) -> int:
        """Columns that share a scale."""
        return columns


@dataclass(frozen=True)
class PerTensor(PerChannel):
    """One for the whole weight: scale (1, 1)."""


@dataclass(frozen=True)
class PerGroup:
    """One per `size` columns of a row: with 64, a weight of (384, 1536) has a scale of (384, 24)."""

    size: int

    def group_size(self, columns: int) -> int:
        """Columns that share a scale."""
        return self.size


Granularity = PerTensor | PerChannel | PerGroup
