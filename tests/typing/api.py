"""Never run: pins the public types, for ``mypy --strict`` and pyright."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, assert_type

from acache import (
    DEFAULT,
    AcacheError,
    Backend,
    Cache,
    CachedFunction,
    Clock,
    Codec,
    Entry,
    Event,
    Memory,
    MemoryBackend,
    Msgpack,
    NullBackend,
    Observer,
    Policy,
    Stats,
    SystemClock,
    cached,
    current_load,
)
from acache.backends.redis import RedisBackend
from acache.testing import FakeClock, FaultyBackend, Recorder


@dataclass
class User:
    id: int
    name: str


class Session: ...


async def load_user() -> User:
    return User(1, "Ada")


async def load_users(keys: Sequence[str]) -> dict[str, User]:
    return {key: User(1, key) for key in keys}


async def building() -> None:
    cache = Cache()
    assert_type(cache, Cache)
    assert_type(Cache.from_url("memory://"), Cache)
    async with Cache(MemoryBackend(), memory=None, namespace="n", codec=Msgpack(types=[User])) as entered:
        assert_type(entered, Cache)
    assert_type(cache.view(namespace="other", policy=Policy(ttl=5)), Cache)
    Cache(memory=1000)
    Cache(memory=Memory(max_entries=10, max_bytes=10_000, sizeof=len, ttl=timedelta(minutes=1)))
    Cache(RedisBackend.from_url("redis://localhost"), policy=Policy(ttl=None), clock=SystemClock())
    Cache(NullBackend(), clock=FakeClock(), observers=[Recorder(), print])
    assert_type(cache.policy, Policy)
    assert_type(cache.namespace, str)
    assert_type(cache.stats(), Stats)
    assert_type(cache.stats().hits, int)
    assert_type(cache.stats().hit_ratio, float)
    await cache.aclose()


def policies() -> None:
    policy = Policy(ttl=timedelta(hours=1), stale_while_revalidate=30, stale_if_error=timedelta(days=1), jitter=0.1)
    assert_type(policy.ttl, float | None)
    assert_type(policy.stale_while_revalidate, float)
    assert_type(replace(policy, ttl=60), Policy)
    Policy(on_backend_error="raise", refresh_ahead=0.8, early_refresh=1.0, negative_ttl=timedelta(seconds=5))
    Policy(ttl="60")  # type: ignore[arg-type]
    Policy(on_backend_error="ignore")  # type: ignore[arg-type]
    Policy(60)  # type: ignore[call-arg]
    policy.ttl = 5  # type: ignore[misc]


async def reading(cache: Cache) -> None:
    assert_type(await cache.get("k", type=User), User | None)
    assert_type(await cache.get("k", None, type=User), User | None)
    assert_type(await cache.get("k", 0, type=User), User | int)
    assert_type(await cache.get("k", User(0, ""), type=User), User)
    assert_type(await cache.get("k", type=list[User]), list[User] | None)
    assert_type(await cache.get("k", type=dict[str, int]), dict[str, int] | None)
    assert_type(await cache.get("k"), Any)
    assert_type(await cache.get_entry("k"), Entry | None)
    assert_type(cache.peek("k"), Any)
    assert_type(await cache.has("k"), bool)
    assert_type(await cache.ttl("k"), float | None)
    assert_type(await cache.get_many(["a", "b"]), dict[str, Any])
    await cache.get(5)  # type: ignore[call-overload]
    await cache.has(b"k")  # type: ignore[arg-type]
    if (entry := await cache.get_entry("k")) is not None:
        assert_type(entry.created_at, float)
        assert_type(entry.fresh_until, float | None)
        assert_type(entry.tags, tuple[str, ...])


async def writing(cache: Cache) -> None:
    await cache.set("k", User(1, "Ada"), ttl=60, tags=["users"])
    await cache.set("k", 1, ttl=timedelta(minutes=1), tags=("a", "b"))
    await cache.set("k", 1, ttl=None)
    await cache.set("k", 1, ttl=DEFAULT)
    assert_type(await cache.add("k", 1, ttl=5.5), bool)
    await cache.set_many({"a": 1, "b": "2"}, ttl=60)
    assert_type(await cache.touch("k", ttl=60), bool)
    assert_type(await cache.incr("n"), int)
    assert_type(await cache.decr("n", 2, ttl=60), int)
    assert_type(await cache.delete("k"), bool)
    assert_type(await cache.delete_many(["a"]), int)
    await cache.invalidate_tags("users", "user:1")
    await cache.clear()
    await cache.set("k", 1, ttl="60")  # type: ignore[arg-type]
    await cache.set("k", 1, 60)  # type: ignore[call-arg]


async def loading(cache: Cache) -> None:
    assert_type(await cache.get_or_load("k", load_user), User)
    assert_type(await cache.get_or_load("k", load_user, ttl=60, tags=["t"], stale_while_revalidate=5), User)
    assert_type(await cache.get_or_load("k", lambda: load_user(), type=User, policy=Policy()), User)
    assert_type(await cache.refresh("k", load_user), User)
    assert_type(await cache.load_many(["a"], load_users), dict[str, User])

    async def load_mapping(keys: Sequence[str]) -> Mapping[str, int]:
        return dict.fromkeys(keys, 1)

    assert_type(await cache.load_many(("a", "b"), load_mapping, ttl=timedelta(seconds=5)), dict[str, int])
    await cache.get_or_load("k", load_user())  # type: ignore[arg-type]
    await cache.get_or_load("k", lambda: 5)  # type: ignore[arg-type, return-value]


CACHE = Cache()


@CACHE.cached(ttl=60, key="user:{user_id}", tags=["user:{user_id}", "users"])
async def get_user(user_id: int, *, verbose: bool = False) -> User:
    """Return a user."""
    return User(user_id, "Ada")


@cached(ttl=timedelta(minutes=5), max_entries=100, negative_ttl=5, ignore=("session",))
async def find_user(session: Session, name: str, /) -> User | None:
    """Return a user, or None."""
    return None


@CACHE.cached()
async def sizes(*names: str, **options: int) -> dict[str, int]:
    """Take any arguments."""
    return options


async def decorating() -> None:
    await assert_type(get_user(1), Coroutine[Any, Any, User])
    assert_type(await get_user(1), User)
    assert_type(await get_user(user_id=1, verbose=True), User)
    assert_type(await get_user.refresh(1), User)
    assert_type(await get_user.bypass(1, verbose=True), User)
    assert_type(await get_user.invalidate(1), bool)
    assert_type(get_user.key(1), str)
    assert_type(get_user.peek(1), User | None)
    assert_type(get_user.stats(), Stats)
    assert_type(get_user.__name__, str)
    await get_user.set(User(1, "Ada"), 1)
    await get_user.set("not a user", 1)  # type: ignore[arg-type]
    await get_user("1")  # type: ignore[arg-type]
    await get_user()  # type: ignore[call-arg]
    await get_user(1, True)  # type: ignore[call-arg]
    await get_user(1, other=1)  # type: ignore[call-arg]
    await get_user.refresh("1")  # type: ignore[arg-type]
    assert_type(await find_user(Session(), "Ada"), User | None)
    assert_type(find_user.key("Ada"), str)
    assert_type(await sizes("a", "b", c=1), dict[str, int])
    await sizes(c="1")  # type: ignore[arg-type]


def sync(user_id: int) -> User:
    return User(user_id, "Ada")


CACHE.cached()(sync)  # type: ignore[arg-type]
CACHE.cached(sync)  # type: ignore[call-overload]
CACHE.cached(ttl="5")  # type: ignore[call-overload]
CACHE.cached(tll=5)  # type: ignore[call-overload]


@CACHE.cached(ttl=60, thread=True)
def read_user(user_id: int, *, verbose: bool = False) -> User:
    return User(user_id, "Ada")


@cached(ttl=60, max_entries=5, thread=True)
def read_size(name: str) -> int:
    return len(name)


async def threads() -> None:
    await assert_type(read_user(1), Coroutine[Any, Any, User])
    assert_type(await read_user(1, verbose=True), User)
    assert_type(await read_user.refresh(1), User)
    assert_type(await read_user.invalidate_all(), None)
    assert_type(await read_size("a"), int)
    await read_user("1")  # type: ignore[arg-type]


@CACHE.cached_many(ttl=lambda user: user.id, key="user:{ids}", tags=["user:{ids}"], batch_window=0.001)
async def get_users(ids: Sequence[int], *, verbose: bool = False) -> dict[int, User]:
    return {item: User(item, "Ada") for item in ids}


@CACHE.cached_many()
async def get_names(ids: list[str], /, session: Session) -> Mapping[str, str | None]:
    return {}


@CACHE.cached_many(thread=True)
def read_users(ids: list[int]) -> dict[int, User]:
    return {}


async def many() -> None:
    assert_type(await read_users([1]), dict[int, User])
    assert_type(await read_users.one(1), User)
    assert_type(await get_users([1, 2]), dict[int, User])
    assert_type(await get_users((1, 2), verbose=True), dict[int, User])
    assert_type(await get_users.one(1, verbose=True), User)
    assert_type(await get_users.refresh([1]), dict[int, User])
    assert_type(await get_users.bypass([1]), Mapping[int, User])
    assert_type(await get_users.invalidate([1]), int)
    assert_type(get_users.peek([1]), dict[int, User])
    assert_type(get_users.key(1), str)
    assert_type(await get_names(["a"], Session()), dict[str, str | None])
    assert_type(await get_names.one("a", session=Session()), str | None)
    await get_users.set({1: User(1, "Ada")})
    await get_users(["a"])  # type: ignore[list-item]
    await get_users.one("a")  # type: ignore[arg-type]
    await get_users.one(1, 2)  # type: ignore[call-arg, arg-type]


async def inside_a_loader() -> None:
    load = current_load()
    load.ttl = 30
    load.ttl = timedelta(seconds=30)
    load.ttl = None
    load.tags.add("tag")
    load.no_store()
    assert_type(load.stale, Entry | None)
    assert_type(load.key, str)
    load.ttl = "30"  # type: ignore[assignment]
    await CACHE.get_or_load("k", load_user, ttl=lambda user: 5)


class Repository:
    @CACHE.cached(ignore=("self",))
    async def one(self, user_id: int) -> User:
        return User(user_id, "Ada")

    @classmethod
    @CACHE.cached()
    async def two(cls, user_id: int) -> User:
        return User(user_id, "Ada")

    @staticmethod
    @CACHE.cached()
    async def three(user_id: int) -> User:
        return User(user_id, "Ada")

    @classmethod
    @CACHE.cached(thread=True)
    def four(cls) -> User:
        return User(1, "Ada")

    @staticmethod
    @CACHE.cached()
    async def five() -> User:
        return User(1, "Ada")

    @staticmethod
    @CACHE.cached()
    async def six(model: type[User], user_id: int) -> User:
        return model(user_id, "Ada")

    @staticmethod
    @CACHE.cached()
    async def seven(anything: Any, user_id: int) -> User:
        return User(user_id, "Ada")

    @CACHE.cached(ignore=("self",))
    async def eight(self, *names: str, **options: int) -> User:
        return await self.one(options["id"])

    @classmethod
    async def inside(cls) -> User:
        await cls.three(1)
        await cls.four()
        return await cls.two(1)


class Special(Repository): ...


class Catalogue:
    @CACHE.cached_many(ignore=("self",))
    async def one(self, ids: list[int], *, verbose: bool = False) -> dict[int, User]:
        return {}

    @classmethod
    @CACHE.cached_many()
    async def two(cls, ids: Sequence[int]) -> Mapping[int, User]:
        return await cls.three(ids)

    @staticmethod
    @CACHE.cached_many()
    async def three(ids: Sequence[int]) -> dict[int, User]:
        return {}

    @CACHE.cached_many(thread=True)
    def four(self, ids: list[str]) -> dict[str, User]:
        return {}


async def many_methods(catalogue: Catalogue) -> None:
    assert_type(await catalogue.one([1], verbose=True), dict[int, User])
    assert_type(await Catalogue.one(catalogue, {1, 2}), dict[int, User])
    assert_type(await Catalogue.one.one(catalogue, 1), User)
    assert_type(await catalogue.one.one(catalogue, 1), User)
    assert_type(await catalogue.one.refresh(catalogue, [1]), dict[int, User])
    assert_type(await catalogue.one.invalidate([1]), int)
    assert_type(catalogue.one.peek([1]), dict[int, User])
    assert_type(catalogue.one.key(1), str)
    assert_type(catalogue.one.stats(), Stats)
    await catalogue.one(["a"])  # type: ignore[list-item]
    await catalogue.one([1], 2)  # type: ignore[call-arg, arg-type]
    assert_type(await Catalogue.two([1]), dict[int, User])
    assert_type(await catalogue.two([1]), dict[int, User])
    assert_type(await Catalogue.two.one(Catalogue, 1), User)
    assert_type(await Catalogue.three([1]), dict[int, User])
    assert_type(await catalogue.three([1]), dict[int, User])
    assert_type(await catalogue.three.one(1), User)
    assert_type(await catalogue.four(["a"]), dict[str, User])


async def methods(repository: Repository) -> None:
    assert_type(await repository.one(1), User)
    assert_type(await repository.one(user_id=1), User)
    assert_type(await Repository.one(repository, 1), User)
    assert_type(await repository.one.invalidate(1), bool)
    assert_type(repository.one.key(1), str)
    await repository.one("1")  # type: ignore[arg-type]
    assert_type(await repository.one.refresh(repository, 1), User)
    assert_type(await repository.eight("a", "b", id=1), User)
    assert_type(await Special().one(1), User)


async def class_methods(repository: Repository) -> None:
    for found in (Repository.two, repository.two, Special.two, Special().two):
        assert_type(await found(1), User)
        assert_type(await found(user_id=1), User)
        assert_type(await found.invalidate(Repository, 1), bool)
        assert_type(found.key(Repository, 1), str)
        await found("1")  # type: ignore[arg-type]
        await found(1, 2)  # type: ignore[call-arg]
    assert_type(await Repository.four(), User)
    assert_type(await repository.four(), User)


async def static_methods(repository: Repository) -> None:
    for found in (Repository.three, repository.three, Special.three):
        assert_type(await found(1), User)
        assert_type(await found(user_id=1), User)
        assert_type(await found.refresh(1), User)
        assert_type(await found.invalidate(1), bool)
        await found("1")  # type: ignore[arg-type]
    assert_type(await Repository.five(), User)
    assert_type(await repository.five(), User)
    assert_type(await Repository.six(User, 1), User)
    assert_type(await repository.six(User, 1), User)
    # On an instance it cannot be told from a method: a first parameter of any type takes that, too.
    assert_type(await Repository.seven("x", 1), User)


def key_of(user_id: int) -> str:
    return f"user:{user_id}"


@CACHE.cached(key=key_of, condition=lambda user: user.id > 0)
async def keyed(user_id: int) -> User:
    return User(user_id, "Ada")


async def keyed_calls() -> None:
    assert_type(await keyed(1), User)


def takes_a_function(function: Callable[[int], Coroutine[Any, Any, User]]) -> None: ...


def takes_a_cached_function(function: CachedFunction[[int], User]) -> None: ...


takes_a_function(keyed)
takes_a_cached_function(keyed)


class MyBackend:
    """The four coroutines, and nothing inherited."""

    async def get(self, key: str, /) -> bytes | None:
        return None

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None: ...

    async def delete(self, key: str, /) -> bool:
        return False

    async def aclose(self) -> None: ...


class MyCodec:
    """A codec of one's own."""

    name = "mine"

    def encode(self, value: Any, /) -> bytes:
        return b""

    def decode(self, data: bytes, type: Any = None, /) -> Any:
        return None


class MyObserver:
    def __call__(self, event: Event, /) -> None: ...


def seams() -> None:
    backend: Backend = MyBackend()
    backend = MemoryBackend()
    backend = NullBackend()
    backend = FaultyBackend()
    backend = RedisBackend.from_url("redis://")
    codec: Codec = MyCodec()
    codec = Msgpack()
    clock: Clock = SystemClock()
    clock = FakeClock()
    observer: Observer = MyObserver()
    observer = Recorder()
    Cache(backend, codec=codec, clock=clock, observers=[observer])
    Cache("redis://localhost")  # type: ignore[arg-type]
    error: AcacheError = AcacheError()
    assert_type(error, AcacheError)
