"""One load per missing value: flights, the marks that guard their fills, and batches."""

from .batch import ABSENT, Batch, Part, Window, close_batches
from .context import LoadContext, current_load, running_load
from .flight import UNSERVED, Flight, Flights, end_loads
from .load import Load
from .watch import Mark, Watch

__all__ = [
    "ABSENT",
    "UNSERVED",
    "Batch",
    "Flight",
    "Flights",
    "Load",
    "LoadContext",
    "Mark",
    "Part",
    "Watch",
    "Window",
    "close_batches",
    "current_load",
    "end_loads",
    "running_load",
]
