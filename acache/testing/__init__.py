"""Tools for testing code that uses acache, and for proving backends of your own.

`FakeClock` moves only when told; `Recorder` remembers events; `FaultyBackend` fails or stops on demand;
`BackendConformance` is the contract of `acache.backends.base` as a test class.
"""

from .clock import FakeClock
from .conformance import BackendConformance
from .faults import FaultyBackend
from .recorder import Recorder

__all__ = ["BackendConformance", "FakeClock", "FaultyBackend", "Recorder"]
