"""What a read costs while the far tier is known to be away: the breaker is open, and nothing is asked."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cases import CAPACITY, TTL, VALUE, Case
from contenders import Contender, Operation
from measure import Effort, time_case

from acache import BackendUnavailable, Cache, Policy

__all__ = ["misses"]

_CASES = (
    Case("miss-get", "get, a miss", "get", "many", "await cache.get(key)"),
    Case("miss-load", "get or load, a miss", "load", "new", "await cache.get_or_load(key, load)"),
)
_ATTEMPTS = 100
"""Failures within which the breaker must be open."""


async def misses(effort: Effort) -> list[dict[str, Any]]:
    """Measure near misses without a far tier, and with one whose breaker is open.

    Once in a while, after a second at first, a read is let through to see whether the far tier is back: that one is
    in the numbers too, but the median over the rounds does not know it.
    """
    with socket.socket() as nobody, _quiet():
        nobody.bind(("127.0.0.1", 0))  # and does not listen: whoever connects is refused
        url = f"redis://127.0.0.1:{nobody.getsockname()[1]}"
        sides = [_side("no far tier", None), _side("breaker open", url)]
        return [
            {"name": case.name, "title": case.title, "rows": await time_case(case, sides, effort, base=sides[0])}
            for case in _CASES
        ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Log no warnings: each change of the breaker is one."""
    logger = logging.getLogger("acache")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _side(name: str, url: str | None) -> Contender:
    async def load() -> str:
        return VALUE

    async def prepare(case: Case) -> Operation:
        policy = Policy(ttl=TTL)
        if url is None:
            cache = Cache(memory=CAPACITY, policy=policy)
        else:
            cache = Cache.from_url(url, memory=CAPACITY, policy=policy)
            await _open_breaker(cache)
        return Operation(case.statement, {"cache": cache, "load": load}, cache.aclose)

    return Contender(name, None, "", prepare, kind="reference" if url is None else "ours")


async def _open_breaker(cache: Cache) -> None:
    strict = cache.view(policy=Policy(ttl=TTL, on_backend_error="raise"))  # it has the same breaker
    for _ in range(_ATTEMPTS):
        try:
            await strict.get("key")
        except BackendUnavailable as error:
            if "left alone" in str(error):
                return
    msg = "the breaker did not open"
    raise RuntimeError(msg)
