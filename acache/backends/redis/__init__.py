"""`RedisBackend`: Redis and Valkey - one server, Sentinel or Cluster - by way of the ``redis`` package."""

from .backend import RedisBackend

__all__ = ["RedisBackend"]
