"""`BackendConformance`: the contract of `acache.backends.base`, as a test class to subclass.

::

    class TestMyBackend(BackendConformance):
        capabilities = {Batch, Add, Clear}

        @pytest.fixture
        def backend(self):
            return MyBackend(...)

Each test runs in an event loop of its own and closes the backend, so no plugin is needed and a backend must connect
lazily.  A capability that the backend does not have is skipped, with `unittest.SkipTest`; one that it has must hold.
Keys are unique to each test, so a shared server will do; entries are removed or expire within a few minutes.
"""

from __future__ import annotations

from .atomic import AtomicChecks
from .batch import BatchChecks
from .cancellation import CancellationChecks
from .cas import CasChecks
from .keys import KeyChecks
from .lifecycle import LifecycleChecks
from .lifetimes import LifetimeChecks
from .listing import ListingChecks
from .messages import MessageChecks
from .stream import StreamChecks
from .values import ValueChecks

__all__ = ["BackendConformance"]


class BackendConformance(
    ValueChecks,
    KeyChecks,
    LifetimeChecks,
    BatchChecks,
    AtomicChecks,
    ListingChecks,
    CasChecks,
    StreamChecks,
    MessageChecks,
    CancellationChecks,
    LifecycleChecks,
):
    """Subclass it, and give it a ``backend`` fixture that returns a fresh, unconnected backend.

    A backend holds what it declares as class attributes - ``key_limits``, ``value_limit``, ``ttl_granularity`` - and
    what the subclass declares as ``capabilities``.
    """
