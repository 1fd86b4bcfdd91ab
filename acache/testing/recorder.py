"""An observer that remembers."""

from __future__ import annotations

from typing import Final, TypeVar

from ..events import Event

__all__ = ["Recorder"]

E = TypeVar("E", bound=Event)


class Recorder:
    """Collects events: ``Cache(observers=[recorder])``, then ``recorder.of(Hit)``."""

    def __init__(self) -> None:
        self.events: Final[list[Event]] = []

    def __call__(self, event: Event, /) -> None:
        """Remember ``event``."""
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one class, oldest first."""
        return [event for event in self.events if isinstance(event, kind)]

    def clear(self) -> None:
        """Forget everything."""
        self.events.clear()
