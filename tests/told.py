"""A stand-in for what shows a sweep's progress."""

from typing import Any


class Told:
    """Keeps the notes, and what is told of copies elsewhere."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.copies: list[tuple[int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def elsewhere(self, running: int, epochs: int) -> None:
        self.copies.append((running, epochs))

    def start(self, *args: Any) -> None:
        pass

    epoch = waiting = start
