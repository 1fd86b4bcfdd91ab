"""`Tokens`: what the far tier says of one namespace's tags, and of the namespace itself.

Each tag has a random token there, and so has the namespace: its *epoch*.  An entry carries the tokens that it was
stored under and is valid while they are current.  `invalidate_tags` replaces the tokens of tags and `clear` the epoch,
so both cost the same whatever the number of entries.  A token that is lost is made anew with another value: everything
under it is invalid, the safe side.

Where the far tier tells of changes, tokens are mirrored in the cells of `Tags` and asked for once a minute, lest a
server that evicts what is not used takes the mirrors' silence for disuse.  Elsewhere they are asked for beside each
read, those of one turn of the event loop together.

Counters are plain digits and carry no epoch.  So the record of the epoch has one byte more once the namespace may hold
counters, and only then does `clear` have to look for keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, cast

from .backends.base import Add, Cas, Copies, Touch
from .calls import Calls, by_key
from .clock import FOREVER, Clock
from .coherence import EPOCH, TagCell, Tags, Trust
from .entry import NO_EPOCH, TOKEN_BYTES, new_token
from .errors import BackendError, BackendUnavailable, DecodeError, KeyMissing
from .keys import WireKeys
from .replay import Replay

__all__ = ["TOMBSTONE_TTL", "Tokens"]

TOMBSTONE_TTL: Final = 60.0
"""Seconds a delete is remembered, and the invalidation of a tag."""
TAG_TTL: Final = 30 * 86400.0
"""Seconds a tag's token is kept; losing one invalidates what is under it."""
_MIRRORED_FOR: Final = 60.0
"""Seconds after which a token is asked for again."""
_ROUGH: Final = 1.0
"""Seconds by which two clocks may count the same minute differently."""
_ATTEMPTS: Final = 50
_COUNTED: Final = b"+"
"""What the record of an epoch ends with if there may be counters."""


class Tokens:
    """The tokens of one namespace.

    Args:
        calls: the backend.
        keys: the names of its records.
        tags: the cells of this process.
        trust: until when changes are known to be told.
        clock: for the minute.
        replay: what the far tier has not learnt yet.
        namespace: for the replay.
        sealed: whether entries carry an epoch.
    """

    __slots__ = (
        *(
            "_add",
            "_calls",
            "_cas",
            "_clock",
            "_copies",
            "_keys",
            "_namespace",
            "_replay",
            "_rough",
            "_round",
            "_rounds",
        ),
        *("_tags", "_touch", "_trust", "seal"),
    )

    def __init__(
        self,
        calls: Calls,
        keys: WireKeys,
        *,
        tags: Tags,
        trust: Trust,
        clock: Clock,
        replay: Replay,
        namespace: str,
        sealed: bool,
    ) -> None:
        backend = calls.backend
        self._calls: Final = calls
        self._keys: Final = keys
        self._tags: Final = tags
        self._trust: Final = trust
        self._clock: Final = clock
        self._replay: Final = replay
        self._namespace: Final = namespace
        self._add: Final = backend if isinstance(backend, Add) else None
        self._cas: Final = backend if isinstance(backend, Cas) else None
        self._touch: Final = backend if isinstance(backend, Touch) else None
        self._copies: Final = backend if isinstance(backend, Copies) else None
        self._rough: Final = _ROUGH + getattr(backend, "ttl_granularity", 0.0)
        self._round: _Round | None = None
        """The question that goes out with the next turn of the loop."""
        self._rounds: Final[set[asyncio.Task[None]]] = set()
        self.seal: Final = (EPOCH,) if sealed else ()
        """The name of the epoch, where there is one."""

    @property
    def copied(self) -> bool:
        """Whether what the engine says of tokens may be a copy from a while ago."""
        return self._copies is not None

    # Asking ---------------------------------------------------------------------------------------------------------

    def known(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return those tokens that are mirrored and current, as far as anybody has told."""
        now, tokens = self._clock.monotonic(), dict[str, bytes]()
        if now < self._trust.until < FOREVER:
            for name in names:
                cell = self._tags.mirrored(name)
                if cell is not None and cell.token is not None and now - cell.seen_at < _MIRRORED_FOR:
                    tokens[name] = cell.token
        return tokens

    def ask(self, names: Sequence[str]) -> asyncio.Future[Mapping[str, bytes]]:
        """Ask the far tier, in the next turn of the loop, together with whoever else asks in this one.

        The future is the caller's own; it holds a `BackendError` if the tokens cannot be had.

        Raises:
            BackendUnavailable: the far tier has not yet learnt that one of them was invalidated.
        """
        self._check(names)
        loop = asyncio.get_running_loop()
        if self._round is None or self._round.loop is not loop:
            self._round = _Round(loop)
            self._round.task = task = loop.create_task(self._run(self._round), name="acache tokens")
            self._rounds.add(task)
            task.add_done_callback(self._rounds.discard)
        return self._round.join(names)

    async def _run(self, asked: _Round) -> None:
        if self._round is asked:
            self._round = None  # who asks from now on may know of a change that this question is too early for
        if not asked.awaited:
            return
        try:
            asked.answer(await self._fetch(list(asked.names)), {})
        except BackendError as error:
            found = {name: _token(record) for name, record in error.found.items()}
            asked.answer(found, error.failed or dict.fromkeys(asked.names, error))
        except Exception as error:  # noqa: BLE001 - it is theirs
            asked.answer({}, dict.fromkeys(asked.names, error))
        except BaseException:
            asked.abandon()
            raise

    async def read(self, names: Sequence[str], *, anew: bool = False) -> dict[str, bytes]:
        """Ask the far tier now, whatever is mirrored; a tag without a token is left out.

        Args:
            names: of tags, and of the epoch.
            anew: as an engine of layers has them at its bottom, whatever copies it has.

        Raises:
            BackendError: as for `ask`, or the far tier failed.
        """
        self._check(names)
        return await self._fetch(names, anew=anew)

    async def _fetch(self, names: Sequence[str], *, anew: bool = False) -> dict[str, bytes]:
        if not names:
            return {}
        taking = _Taking(self, names)
        try:
            if anew and self._copies is not None:
                for wire in taking.wires:
                    await self._calls.one(self._copies.drop_copy, wire)
            found = await self._records(list(taking.wires))
        except BackendError as error:
            raise by_key(error, taking.wires)  # noqa: B904 - the same error
        return taking.end({taking.wires[wire]: record for wire, record in found.items()})

    async def _records(self, wires: Sequence[str]) -> Mapping[str, bytes]:
        if len(wires) > 1:
            return await self._calls.get_many(wires)
        # As an entry is read: an engine of layers leaves a copy close by, and answers with it when it must.
        with suppress(DecodeError):  # what stands there is no token of anybody's
            record = await self._calls.one(self._calls.backend.get, wires[0])
            return {} if record is None else {wires[0]: record}
        return {}

    async def read_with_epoch(self, wires: Sequence[str]) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Read these keys of the engine and the epoch at once; return what is there, and the epoch.

        Raises:
            BackendError: as of `Batch`; of the epoch then nothing is known.
        """
        taking = _Taking(self, self.seal)
        (mine,) = taking.wires
        try:
            found = await self._calls.get_many([*wires, mine])
        except BackendError as error:
            error.found = {wire: data for wire, data in error.found.items() if wire != mine}
            error.failed = {wire: why for wire, why in error.failed.items() if wire != mine}
            raise
        record = found.pop(mine, None)
        return found, taking.end({} if record is None else {EPOCH: record})

    def _check(self, names: Iterable[str]) -> None:
        if self._replay and (tags := [name for name in names if name != EPOCH]):
            self._replay.check_tags(self._namespace, tags)

    # Making ---------------------------------------------------------------------------------------------------------

    async def make(self, names: Sequence[str], found: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
        """Return the tokens of all of ``names``, making those that are missing.

        Args:
            names: of tags, or `seal`.
            found: what the far tier answered a moment ago when it was asked for them; ``None``: it was not.

        Raises:
            BackendError: as for `read`.
        """
        if found is None:
            found = self.known(names)
            if missing := [name for name in names if name not in found]:
                found |= await self.read(missing, anew=True)  # nothing may be stored under a token that is gone
        return {name: found[name] if name in found else await self._make(name) for name in names}

    async def _make(self, name: str) -> bytes:
        token, taking = new_token(), _Taking(self, (name,))
        (wire,), ttl = taking.wires, None if name == EPOCH else TAG_TTL
        if name == EPOCH and self._tags.ever_counted:
            token += _COUNTED
        if self._add is None:
            # Two makers at once: the first one's entries carry a token that is gone, and are invalid: the safe side.
            await self._calls.change(self._calls.backend.set, wire, token, ttl=ttl)
        elif not await self._calls.change(self._add.add, wire, token, ttl=ttl):
            return (await self._fetch((name,))).get(name) or _token(token)  # lost again: one that nobody has, invalid
        return taking.end({name: token})[name]

    async def make_late(self, names: Sequence[str], *, since: float) -> dict[str, bytes] | None:
        """Do as `make`, for tags that a load learnt of while it ran.

        ``None``: one of them was invalidated since the load began at ``since`` (monotonic), or a moment before: after
        it had read what it is made of, perhaps.

        An invalidation writes its note first and the token second, and here they are read in the opposite order: who
        sees the new token sees the note too, and who sees the old one stores what is invalid at once.  The note is
        there for longer than any load may take to its fill.
        """
        tokens = await self.make(names)
        for note in await self._calls.get_many([self._keys.invalidated(name) for name in names]):
            if await self._age(note) <= self._clock.monotonic() - since + self._rough:
                return None
        return tokens

    async def _age(self, note: str) -> float:
        """Tell how long a note has been there, by the engine's clock: from what is left of its time."""
        if self._touch is None:
            return 0.0
        try:
            left = await self._calls.one(self._touch.ttl, note)
        except KeyMissing:
            return TOMBSTONE_TTL
        return 0.0 if left is None else TOMBSTONE_TTL - left

    async def replace(self, names: Iterable[str]) -> None:
        """Give tags new tokens: what carries the old ones is invalid from now on."""
        names = tuple(names)
        await self._calls.set_many({self._keys.invalidated(name): new_token() for name in names}, TOMBSTONE_TTL)
        tokens = {self._keys.tag(name): new_token() for name in names}
        async with self._calls.changing(tokens):
            await self._calls.set_many(tokens, TAG_TTL)

    # The epoch ------------------------------------------------------------------------------------------------------

    @property
    def latest_epoch(self) -> bytes:
        """The epoch as it was seen last, perhaps long ago; `NO_EPOCH` if it was not seen yet, or there is none."""
        return self.known(self.seal).get(EPOCH) or (self._tags.latest_epoch if self.seal else None) or NO_EPOCH

    async def epoch_after(self, epoch: bytes) -> bytes | None:
        """Return the epoch to store under what was to be stored under ``epoch`` a while ago.

        That is the present one, if it is the same, or if that one was lost with everything else and this is what was
        made in its place here.  ``None``: the namespace may have been cleared since.
        """
        known = await self.read(self.seal, anew=True)
        present = (await self.make(self.seal, known))[EPOCH]
        if not known:
            self._tags.heir = (epoch, present)
        return present if epoch in (NO_EPOCH, present) or self._tags.heir == (epoch, present) else None

    async def renew_epoch(self) -> bool:
        """Give the namespace another epoch; tell whether it may hold counters.

        By compare-and-set: who notes at this moment that there are counters is not overwritten.  Where somebody else
        has given it another one since this began, that will do.
        """
        assert self._cas is not None  # noqa: S101 - what sealed says
        wire = self._keys.tag(EPOCH)
        before, version = await self._calls.one(self._cas.get_versioned, wire)
        for _ in range(_ATTEMPTS):
            # Where it was lost, so was what it said of counters.
            counted = before is None or _is_counted(before) or self._tags.ever_counted
            if await self._replace_epoch(version, counted=counted):
                return counted
            record, version = await self._calls.one(self._cas.get_versioned, wire)
            if record is None or before is None or _token(record) != _token(before):
                return counted or _is_counted(record)
            before = record  # it was noted that there are counters
        raise self._too_busy()

    async def note_counters(self) -> None:
        """See that `clear` looks for counters from now on."""
        assert self._cas is not None  # noqa: S101 - what sealed says
        if self._tags.counted and EPOCH in self.known(self.seal):
            return
        for _ in range(_ATTEMPTS):
            taking = _Taking(self, self.seal)
            record, version = await self._calls.one(self._cas.get_versioned, self._keys.tag(EPOCH))
            if _is_counted(record):
                taking.end({EPOCH: cast("bytes", record)})
                return
            if await self._replace_epoch(version, counted=True, token=record):
                return
        raise self._too_busy()

    @property
    def counted(self) -> bool:
        """Whether the latest word of the far tier was that the namespace may hold counters."""
        return self._tags.counted

    async def renew_counted_epoch(self) -> None:
        """Give the namespace another epoch, whatever there is, and leave it noted that there may be counters."""
        record, taking = new_token() + _COUNTED, _Taking(self, self.seal)
        await self._calls.change(self._calls.backend.set, self._keys.tag(EPOCH), record, ttl=None)
        taking.end({EPOCH: record})  # nobody tells this process of what it writes itself

    async def _replace_epoch(self, version: object, *, counted: bool, token: bytes | None = None) -> bool:
        assert self._cas is not None  # noqa: S101 - what sealed says
        record = (_token(token) if token else new_token()) + (_COUNTED if counted else b"")
        taking = _Taking(self, self.seal)
        if not await self._calls.change(self._cas.set_if, self._keys.tag(EPOCH), record, version, ttl=None):
            return False
        taking.end({EPOCH: record})
        return True

    def _too_busy(self) -> BackendError:
        return BackendUnavailable(f"the epoch of the namespace {self._namespace!r} was changed by others all the time")


class _Round:
    """The question of one turn of the loop."""

    __slots__ = ("_waiters", "_waiting", "loop", "names", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self.task: asyncio.Task[None] | None = None
        self.names: Final[dict[str, None]] = {}
        self._waiters: Final[list[tuple[asyncio.Future[Mapping[str, bytes]], Sequence[str]]]] = []
        self._waiting = 0

    def join(self, names: Sequence[str]) -> asyncio.Future[Mapping[str, bytes]]:
        """Ask for these, too."""
        self.names.update(dict.fromkeys(names))
        waiter: asyncio.Future[Mapping[str, bytes]] = self.loop.create_future()
        self._waiters.append((waiter, names))
        self._waiting += 1
        waiter.add_done_callback(self._left)
        return waiter

    def _left(self, _: object) -> None:
        self._waiting -= 1  # no look at all of them: ten thousand ask in one turn, and each of them leaves
        if self.task is not None and not self._waiting:
            self.task.cancel()  # a late failure would count against a server that is back; harmless when it has ended

    @property
    def awaited(self) -> bool:
        """Whether somebody still waits for it."""
        return not all(waiter.done() for waiter, _ in self._waiters)

    def answer(self, found: Mapping[str, bytes], failed: Mapping[str, Exception]) -> None:
        """Tell everybody; those who asked for something that failed get the error."""
        for waiter, names in self._waiters:
            if waiter.done():
                continue
            error = next((failed[name] for name in names if name in failed), None) if failed else None
            if error is None:
                # His own, as he keeps it: all, for each of ten thousand, would be a hundred million.
                waiter.set_result({name: found[name] for name in names if name in found})
            else:
                waiter.set_exception(error)

    def abandon(self) -> None:
        """Let nobody wait any longer."""
        for waiter, _ in self._waiters:
            waiter.cancel()


class _Taking:
    """The cells of some tokens from before they are asked for, or written, until they are known."""

    __slots__ = ("_cells", "_era", "_since", "_tokens", "wires")

    def __init__(self, tokens: Tokens, names: Sequence[str]) -> None:
        tags, trust = tokens._tags, tokens._trust  # noqa: SLF001 - its own
        self._tokens: Final = tokens
        self._cells: Final[tuple[TagCell, ...]] = tags.cells(names)
        self._since: Final = tokens._clock.monotonic()  # noqa: SLF001 - its own
        self._era: Final = tags.era if self._since < trust.until < FOREVER else -1
        self.wires: Final = {tokens._keys.tag(name): name for name in names}  # noqa: SLF001 - its own

    def end(self, found: Mapping[str, bytes]) -> dict[str, bytes]:
        """Take note of what is there, and return the tokens."""
        tags, taken = self._tokens._tags, {name: _token(record) for name, record in found.items()}  # noqa: SLF001
        for cell in self._cells:
            token = taken.get(cell.tag)
            if cell.tag == EPOCH:
                tags.latest_epoch, tags.counted = token, _is_counted(found.get(EPOCH))
                tags.ever_counted = tags.ever_counted or tags.counted
            if self._era != tags.era or cell.spoilt:
                continue
            if cell.token is not None and cell.token != token:
                tags.spoil((cell.tag,))  # ahead of the message, which is on its way
            else:
                cell.token, cell.seen_at = token, self._since
        return taken


def _is_counted(record: bytes | None) -> bool:
    return record is not None and len(record) > TOKEN_BYTES


def _token(record: bytes) -> bytes:
    """Return what entries carry of a record; of whatever stands in its place, too."""
    return bytes(record[:TOKEN_BYTES]).ljust(TOKEN_BYTES, b"\0")
