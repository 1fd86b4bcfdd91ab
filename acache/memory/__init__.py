"""The near tier: live objects in this process, bounded, synchronous."""

from .near import Memory, Record, Space, stored_at

__all__ = ["Memory", "Record", "Space", "stored_at"]
