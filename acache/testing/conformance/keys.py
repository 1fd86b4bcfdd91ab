"""Any text is a key, and no key is anything but text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from ...backends.base import Add, Backend, Batch, Cas, Counter, Stream, Touch
from ...cache import Cache
from ...errors import InvalidKey
from ...policy import Policy
from .harness import LONG, Harness, expecting, promises, witnesses

__all__ = ["KeyChecks"]

_HARD: Final = (
    *("a", "A", "aa", "a:b", "a::b", "a*", "a?", "a[b]", "a\\", "a\\*", "{a}", "{a}b", "$a", "$where", "a.b"),
    *(".", "..", "../a", "/etc/a", "a/b", "a//b", "a%00", "%61", "a+b", "a=b&c", "a#b", '"a"', "'a'", "a;b", "a|b"),
    *("~", "a~", "-a", "0", "00", "-1", "None", "con", " a", "a ", "a b", "a\tb", "a\r\nb", "a\nset x 0 0 1\r\n1"),
    *(
        "a\x00",
        "a\x00b",
        "\x7f",
        "é",
        "e\u0301",
        "ß",
        "ss",
        "日本語",
        "🐍",
        "\ufeffa",
        "\u2028",
        "\uffff",
        "\U0010ffff",
    ),
    *("@", "@@", "@tag:a", "@#a", "*", "?", "[]", "{}", "a,b", "a`b", "$(a)", "^a$", "(a", "a|", "\\", "\\x00", "\\n"),
)

promise = promises("keys")


class KeyChecks(Harness):
    """Equal keys are equal, different keys are different, and no key means anything to the engine."""

    @promise
    async def test_different_keys_are_different(self, backend: Backend) -> None:
        """Keys that look alike to globs, paths, case folding, normal forms or number parsers are kept apart."""
        stem = self.key("")
        keys = [stem + name for name in self.names(backend, *_HARD)]
        for index, key in enumerate(keys):
            await backend.set(key, b"%d" % index, ttl=LONG)
        for index, key in enumerate(keys):
            assert await backend.get(key) == b"%d" % index, f"the value of {key!r} is another key's"
        assert await backend.delete(keys[0]) is True
        for index, key in enumerate(keys[1:], 1):
            assert await backend.get(key) == b"%d" % index, f"{key!r} went with another key"

    @promise
    async def test_a_key_is_whole_in_every_operation(self, backend: Backend) -> None:
        """What one operation stores under a hard key, each other one finds under it."""
        stem = self.key("")
        for name in self.names(backend, "a b", "a\r\nb", "a\x00b", "é🐍", "../a*?[]{}", "$where", "a;b|c&d", "%d%s"):
            key = stem + name
            await backend.set(key, b"v", ttl=LONG)
            if isinstance(backend, Batch):
                assert await backend.get_many([key, stem]) == {key: b"v"}
                await backend.set_many({key: b"v"}, ttl=LONG)
            if isinstance(backend, Add):
                assert await backend.add(key, b"w", ttl=LONG) is False, repr(key)
            if isinstance(backend, Touch):
                assert await backend.touch(key, ttl=LONG) is True, repr(key)
                assert await backend.ttl(key) is not None, repr(key)
            if isinstance(backend, Cas):
                data, version = await backend.get_versioned(key)
                assert data == b"v", repr(key)
                assert await backend.set_if(key, b"w", version, ttl=LONG) is True, repr(key)
                assert await backend.swap(key, b"v", ttl=LONG) == b"w", repr(key)
            if isinstance(backend, Stream):
                async with backend.open(key) as chunks:
                    assert chunks is not None, repr(key)
                    assert b"".join([chunk async for chunk in chunks]) == b"v"
            assert await backend.delete(key) is True, repr(key)
            if isinstance(backend, Counter):
                assert await backend.incr(key, 2, ttl=LONG) == 2
            assert await backend.get(stem) is None, f"{key!r} was cut"

    @promise
    async def test_the_longest_keys_are_whole(self, backend: Backend) -> None:
        """Keys of the greatest length that differ in the last character are two."""
        longest = self.key_limits(backend).max_bytes
        stem = self.key("").ljust(longest - 1, "k")
        await backend.set(stem + "1", b"1", ttl=LONG)
        await backend.set(stem + "2", b"2", ttl=LONG)
        assert await backend.get(stem + "1") == b"1"
        assert await backend.get(stem + "2") == b"2"

    @promise
    async def test_what_is_no_key_is_refused(self, backend: Backend) -> None:
        """Empty, no str, no Unicode text, a byte too long, or not within the limits: InvalidKey."""
        for key in self._not_keys(backend):
            await expecting(InvalidKey, backend.get(key), key)
            await expecting(InvalidKey, backend.set(key, b"v", ttl=LONG), key)
            await expecting(InvalidKey, backend.delete(key), key)

    @promise
    async def test_every_operation_refuses_what_is_no_key(self, backend: Backend) -> None:
        """And the next answers are those to the next questions."""
        _, version = await backend.get_versioned(self.key()) if isinstance(backend, Cas) else (None, None)
        seen = witnesses(self.key(""))
        for key, data in seen.items():
            await backend.set(key, data, ttl=LONG)
        for key in self._not_keys(backend):
            for operation in _operations(backend, version):
                await expecting(InvalidKey, operation(key), key)
        for key, data in seen.items():
            assert await backend.get(key) == data

    @promise
    async def test_no_key_of_a_batch_is_sent_when_one_is_refused(self, backend: Backend) -> None:
        """InvalidKey comes before anything is sent: nothing is stored or removed."""
        if not isinstance(backend, Batch):
            return
        there, new = self.key("there"), self.key("new")
        await backend.set(there, b"v", ttl=LONG)
        await expecting(InvalidKey, backend.set_many({new: b"v", "": b"v"}, ttl=LONG))
        await expecting(InvalidKey, backend.delete_many([there, ""]))
        await expecting(InvalidKey, backend.get_many([there, ""]))
        assert await backend.get_many([there, new]) == {there: b"v"}

    @promise
    async def test_a_cache_takes_any_text_as_key(self, backend: Backend) -> None:
        """Through the facade keys have no limits: a megabyte, newlines, NUL, emoji, globs, paths and operators."""
        megabyte = "k" * (1 << 20)
        keys = [*_HARD, megabyte, megabyte[:-1], megabyte + "x", "é" * (1 << 19), "\n" * (1 << 20), "/.." * 400_000]
        keys += ["k" * length for length in range(180, 260)]
        expected = {key: index for index, key in enumerate(keys)}
        assert len(expected) == len(keys)
        policy = Policy(backend_timeout=30.0, on_backend_error="raise")
        async with Cache(backend, memory=None, namespace=self.key("n").replace(":", "."), policy=policy) as cache:
            await cache.set_many(expected, ttl=LONG)
            found = await cache.get_many(keys)
            assert {key[:80] for key in keys if found.get(key) != expected[key]} == set()
            for key in (keys[0], "../a", megabyte, "a\x00b"):
                assert await cache.delete(key) is True, key[:80]
                del expected[key]
            assert await cache.get_many(keys) == expected
            await cache.delete_many(keys)

    def _not_keys(self, backend: Backend) -> list[Any]:
        limits = self.key_limits(backend)
        refused: list[Any] = ["", None, b"bytes", 1, ("a",), "\ud800", "a\udfffb", "k" * (limits.max_bytes + 1)]
        if limits.printable:
            refused += ["a b", "a\n", "a\r\nb", "a\x00", "é", "\x7f", "a\t"]
        else:
            refused += ["é" * (limits.max_bytes // 2 + 1)]
        return refused


def _operations(backend: Backend, version: object) -> list[Callable[[Any], Awaitable[object]]]:
    found: list[Callable[[Any], Awaitable[object]]] = []
    if isinstance(backend, Batch):
        found += [
            lambda key: backend.get_many([key]),
            lambda key: backend.set_many({key: b"v"}, ttl=LONG),
            lambda key: backend.delete_many([key]),
        ]
    if isinstance(backend, Add):
        found.append(lambda key: backend.add(key, b"v", ttl=LONG))
    if isinstance(backend, Counter):
        found.append(lambda key: backend.incr(key, 1, ttl=LONG))
    if isinstance(backend, Touch):
        found += [lambda key: backend.touch(key, ttl=LONG), backend.ttl]
    if isinstance(backend, Cas):
        found += [
            backend.get_versioned,
            lambda key: backend.set_if(key, b"v", version, ttl=LONG),
            lambda key: backend.swap(key, b"v", ttl=LONG),
        ]
    if isinstance(backend, Stream):

        async def read(key: Any) -> None:
            async with backend.open(key):
                pass

        found += [read, lambda key: backend.store(key, [b"v"], ttl=LONG)]
    return found
