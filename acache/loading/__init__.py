"""One load per missing value: flights, the marks that guard their fills, and batches."""

from .batch import Batch, NotLoaded, Window
from .context import LoadContext, current_load, running_load
from .flight import UNSERVED, Flight, Flights
from .load import Load
from .watch import Mark, Watch

__all__ = [
    "UNSERVED",
    "Batch",
    "Flight",
    "Flights",
    "Load",
    "LoadContext",
    "Mark",
    "NotLoaded",
    "Watch",
    "Window",
    "current_load",
    "running_load",
]
