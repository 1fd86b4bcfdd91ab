"""`MemcachedBackend` keeps the contract, and the promises of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acache.backends.memcached import MemcachedBackend
from acache.testing import BackendConformance

if TYPE_CHECKING:
    from acache.backends import Backend


class TestMemcachedBackend(BackendConformance):
    """A real server; its own clock ends the entries."""

    @pytest.fixture
    def backend(self, memcached_url: str) -> Backend:
        return MemcachedBackend.from_url(memcached_url)
