"""The near tier: live objects in this process, bounded, synchronous."""

from .near import Cause, Memory, Space
from .record import CONDITIONAL, TICK, Dates, Record, Terms, extra_of, fresh_until_of, make_record, stored_at, terms_of

__all__ = [
    "CONDITIONAL",
    "TICK",
    "Cause",
    "Dates",
    "Memory",
    "Record",
    "Space",
    "Terms",
    "extra_of",
    "fresh_until_of",
    "make_record",
    "stored_at",
    "terms_of",
]
