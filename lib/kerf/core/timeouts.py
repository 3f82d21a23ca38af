"""How long is waited for a network that does not answer: a few seconds, and never for ever.

Only silence is bounded, not the time that a download takes.
"""

SECONDS = 3.0
OF_PIP = ("--timeout", f"{SECONDS:.0f}", "--retries", "0")


def bound_hub() -> None:
    """Give the hub's client a limit where it has none: asking what is in a repository, it would wait for ever."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks
    if _bound not in hooks["request"]:
        get_session().event_hooks = {**hooks, "request": [*hooks["request"], _bound]}


def _bound(request) -> None:
    limits = request.extensions.get("timeout") or dict.fromkeys(
        ("connect", "read", "write", "pool")
    )
    request.extensions["timeout"] = {
        key: SECONDS if limit is None else limit for key, limit in limits.items()
    }
