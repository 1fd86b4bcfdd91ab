"""URLs of Redis and Valkey: one server, several Sentinels, or some nodes of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

__all__ = ["SCHEMES", "Address", "parse"]

Kind = Literal["server", "sentinel", "cluster"]

_SERVER: Final = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}
_SEVERAL: Final = frozenset(f"{name}+{kind}" for name in set(_SERVER) - {"unix"} for kind in ("sentinel", "cluster"))
SCHEMES: Final = frozenset(_SERVER) | _SEVERAL
_PORTS: Final[Mapping[Kind, int]] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_OF_SENTINELS: Final = {"sentinel_username": "username", "sentinel_password": "password"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to connect; its repr shows neither passwords nor options."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    """The server, the Sentinels, or the nodes to ask for the others; empty for a socket in the file system."""
    service: str = ""
    """What the Sentinels call the master."""
    sentinel_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """How to log in at the Sentinels."""
    url: str = field(repr=False)
    """Everything else, in the form that the ``redis`` package reads: scheme, login, one server, database, options."""


def parse(url: str) -> Address:
    """Read a URL of one of the `SCHEMES`.

    Raises:
        ValueError: it is no such URL; the message holds no password.
    """
    scheme, _, rest = url.partition("://")
    name, _, suffix = scheme.lower().partition("+")
    if scheme.lower() not in SCHEMES:
        msg = f"unknown scheme {scheme!r}; known are {', '.join(sorted(SCHEMES))}"
        raise ValueError(msg)
    kind: Kind = "sentinel" if suffix == "sentinel" else "cluster" if suffix == "cluster" else "server"
    known = _SERVER[name]
    authority, tail = _cut(rest)
    login, at, places = authority.rpartition("@")
    if known == "unix":
        if not urlsplit(f"//{rest}").path.strip("/"):
            msg = "the path of the socket is missing, as in unix:///run/redis.sock"
            raise ValueError(msg)
        return Address(kind=kind, hosts=(), url=f"unix://{rest}")
    names = places.split(",") if kind != "server" else [places]
    hosts = tuple(_host(place, _PORTS[kind]) for place in names)
    parts = urlsplit(tail)
    path = unquote(parts.path.strip("/"))
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if kind == "sentinel":
        if not path or "/" in path:
            msg = "the service is missing, as in redis+sentinel://host:26379/mymaster?db=0"
            raise ValueError(msg)
        logins = {_OF_SENTINELS[key]: options.pop(key) for key in _OF_SENTINELS if key in options}
        one = f"{known}://{login}{at}{_joined(hosts[0])}?{urlencode(options)}"
        return Address(kind=kind, hosts=hosts, service=path, sentinel_options=logins, url=one)
    if path and not (path.isascii() and path.isdigit()):
        msg = f"the database is a number, not {path!r}"
        raise ValueError(msg)
    if kind == "cluster" and (path.strip("0") or options.get("db", "0").strip("0")):
        msg = "a cluster has one database, number 0"
        raise ValueError(msg)
    return Address(kind=kind, hosts=hosts, url=f"{known}://{login}{at}{_joined(hosts[0])}{tail}")


def _cut(rest: str) -> tuple[str, str]:
    end = min((at for at in (rest.find(mark) for mark in "/?#") if at >= 0), default=len(rest))
    return rest[:end], rest[end:]


def _host(place: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
        return unquote(parts.hostname or "localhost"), parts.port or port
    except ValueError:
        msg = f"{place!r} is not host:port"
        raise ValueError(msg) from None


def _joined(host: tuple[str, int]) -> str:
    name = f"[{host[0]}]" if ":" in host[0] else host[0]
    return f"{name}:{host[1]}"
