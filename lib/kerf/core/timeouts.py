"""Timeouts for a network that does not answer. Only silence is bounded, not the duration of a download."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

SECONDS = 3.0
OF_PIP = ("--timeout", f"{SECONDS:.0f}", "--retries", "0")


def bound_hub() -> None:
    """Give the hub's HTTP client a timeout where it has none, as when it lists a repository."""
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _bound not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _bound]}


def _bound(request: httpx.Request) -> None:
    limits = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {
        key: SECONDS if limits.get(key) is None else limits[key]
        for key in ("connect", "read", "write", "pool")
    }
