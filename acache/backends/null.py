"""`NullBackend`: a far tier that holds nothing, for switching one off without other code."""

from __future__ import annotations

__all__ = ["NullBackend"]


class NullBackend:
    """Every read is a miss; writes are accepted and forgotten."""

    async def get(self, key: str, /) -> bytes | None:  # noqa: ARG002 - the seam's signature
        """Return ``None``."""
        return None

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """Forget ``data``."""

    async def delete(self, key: str, /) -> bool:  # noqa: ARG002 - the seam's signature
        """Return ``False``: nothing was there."""
        return False

    async def clear(self, prefix: str, /) -> None:
        """Do nothing: nothing is there."""

    async def aclose(self) -> None:
        """Do nothing."""

    def __repr__(self) -> str:
        return "NullBackend()"
