"""What a run tells its user."""

from __future__ import annotations


def say(text: str) -> None:
    """Print a line of progress at once."""
    print(text, flush=True)
