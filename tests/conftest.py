"""What the tests share: the URLs of real servers, and a loud word when one is missing.

`make test` starts the servers; tests/services.py says how to do it by hand, tests/compose.yaml how with Docker.
Servers are shared by all tests: isolate by a key prefix, a database or a table name of the test's own.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from _pytest.unittest import TestCaseFunction
from hypothesis import HealthCheck, settings

from acache.testing import BackendConformance

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator
    from types import ModuleType

    from tests.services import PrivateDynamoDB, PrivateMemcached, PrivateMongoDB, PrivateRedis, PrivateSentinel

for name in ("ci", "local"):  # the same examples in each run, or new ones
    settings.register_profile(
        name,
        deadline=None,  # the machine may be busy
        derandomize=name == "ci",
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("ci" if os.environ.get("CI") else "local")

SECONDS_TO_HANG = 120
REQUIRED = os.environ.get("ACACHE_REQUIRE_SERVICES") == "1"
MISSING = re.compile(r"([A-Z-]+) NOT AVAILABLE: (.*)", re.DOTALL)


def missing(service: str, why: str) -> NoReturn:
    """Skip the test that needs this service, or fail it where services are required."""
    text = f"{service.upper()} NOT AVAILABLE: {why}"
    if REQUIRED:
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def url(service: str) -> str:
    """Return a service's URL from the environment."""
    variable = f"ACACHE_{service.upper().replace('-', '_')}_URL"
    return os.environ.get(variable) or missing(
        service, f"{variable} is not set; `make test SERVICES={service}` sets it"
    )


@pytest.fixture(scope="session")
def redis_url() -> str:
    """Return the URL of a Redis."""
    return url("redis")


@pytest.fixture(scope="session")
def redis_cluster_url() -> str:
    """Return the URL of a node of a Redis Cluster of three masters."""
    return url("redis-cluster")


@pytest.fixture(scope="session")
def valkey_url() -> str:
    """Return the URL of a Valkey."""
    return url("valkey")


@pytest.fixture(scope="session")
def memcached_url() -> str:
    """Return the URL of a Memcached."""
    return url("memcached")


@pytest.fixture(scope="session")
def mongodb_url() -> str:
    """Return the URL of a MongoDB."""
    return url("mongodb")


@pytest.fixture(scope="session")
def dynamodb_url() -> str:
    """Return the endpoint of a DynamoDB; any credentials and any region will do."""
    return url("dynamodb")


@pytest.fixture(scope="session")
def moto_url() -> str:
    """Return the endpoint of a moto, which is another DynamoDB; any credentials and any region will do."""
    return url("moto")


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[Callable[..., PrivateRedis]]:
    """Start Redis servers of the test's own, which it may kill, pause, resume, stop and restart.

    `server = private_redis("--maxmemory", "10mb")`; `server.url` and `server.port` stay the same over a restart.
    """
    yield from private("redis", "PrivateRedis", tmp_path)


@pytest.fixture(scope="module")
def module_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., PrivateRedis]]:
    """Start Redis servers that a module's tests share."""
    yield from private("redis", "PrivateRedis", tmp_path_factory.mktemp("redis"))


@pytest.fixture(scope="module")
def module_sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., PrivateSentinel]]:
    """Start Sentinels that a module's tests share: `sentinel = module_sentinel(master.port)`."""
    yield from private("redis", "PrivateSentinel", tmp_path_factory.mktemp("sentinel"))


@pytest.fixture
def private_sentinel(tmp_path: Path) -> Iterator[Callable[..., PrivateSentinel]]:
    """Start Sentinels of the test's own, as `module_sentinel` does."""
    yield from private("redis", "PrivateSentinel", tmp_path / "sentinel")


@pytest.fixture
def private_memcached(tmp_path: Path) -> Iterator[Callable[..., PrivateMemcached]]:
    """Start Memcached servers of the test's own, as `private_redis` does."""
    yield from private("memcached", "PrivateMemcached", tmp_path)


@pytest.fixture(scope="module")
def module_memcached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., PrivateMemcached]]:
    """Start Memcached servers that a module's tests share."""
    yield from private("memcached", "PrivateMemcached", tmp_path_factory.mktemp("memcached"))


@pytest.fixture
def private_mongodb(tmp_path: Path) -> Iterator[Callable[..., PrivateMongoDB]]:
    """Start MongoDBs of the test's own, as `private_redis` does: `server = private_mongodb("--auth")`."""
    yield from private("mongodb", "PrivateMongoDB", tmp_path)


@pytest.fixture(scope="module")
def module_mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., PrivateMongoDB]]:
    """Start MongoDBs that a module's tests share."""
    yield from private("mongodb", "PrivateMongoDB", tmp_path_factory.mktemp("mongodb"))


@pytest.fixture
def private_dynamodb(tmp_path: Path) -> Iterator[Callable[..., PrivateDynamoDB]]:
    """Start DynamoDBs of the test's own, as `private_redis` does: `server = private_dynamodb("moto")`."""
    yield from private("dynamodb", "PrivateDynamoDB", tmp_path)


def private(service: str, kind: str, folder: Path) -> Iterator[Callable[..., Any]]:
    """Give what starts servers of this kind, and stop them in the end."""
    try:
        services = load_services()
    except ImportError as error:  # fcntl: not on this platform
        missing(service, str(error))
    servers: list[Any] = []

    def start(*options: Any) -> Any:
        try:
            server = getattr(services, kind)(folder / f"{service}-{len(servers)}", *options)
        except services.UnavailableError as error:
            missing(service, str(error))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def load_services() -> ModuleType:
    """Import tests/services.py by its path: the tests are no package."""
    name = "acache_tests_services"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("services.py"))
        if spec is None or spec.loader is None:
            raise ImportError(name)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """Say after everything else what was not tested for want of a server."""
    yield
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if found := MISSING.search(reason):
            counts[found[1]] += 1
    if counts:
        terminalreporter.section("SERVICES NOT AVAILABLE", sep="!", red=True, bold=True)
        for service, count in sorted(counts.items()):
            terminalreporter.line(f"{service} NOT AVAILABLE: {count} test{'s' * (count > 1)} SKIPPED", red=True)
        terminalreporter.line(
            "`make test SERVICES=all` starts every server; ACACHE_REQUIRE_SERVICES=1 forbids to skip."
        )


# Outcomes by need: what tests/table.py makes the table in docs/backends.md of ---------------------------------------

OUTCOMES: list[dict[str, str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make conformance` asks for."""
    parser.addoption("--outcomes", type=Path, help="write the outcome of each test that has a place in the table here")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Make a test that waits for ever one that fails, and let each of a backend know its place in the table.

    The failure tells where the test waited.  What cannot be cancelled, as a fixture, ends by the `timeout` of
    pyproject.toml, which takes the process along.  The place travels with the report, also between processes.
    """
    for item in items:
        if isinstance(item, pytest.Function) and not isinstance(item, TestCaseFunction):
            item.obj = in_time(item.obj) if inspect.iscoroutinefunction(item.obj) else item.obj
        if (place := place_of(item)) is not None:
            item.user_properties.append(("place", place))
            if config.option.collectonly:
                declared = getattr(getattr(item, "cls", None), "capabilities", None) or ()
                names = ", ".join(sorted(one.__name__ for one in declared))
                OUTCOMES.append({**place, "outcome": "collected", "capabilities": names})


def in_time(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Let an asynchronous test fail that takes longer than any should."""

    @functools.wraps(test)
    async def timed(*args: Any, **options: Any) -> None:
        async with asyncio.timeout(SECONDS_TO_HANG):
            await test(*args, **options)

    return timed


def place_of(item: pytest.Item) -> dict[str, str] | None:
    """Return the need and the engine of a conformance test, or of one that is marked with a need."""
    cls, need = getattr(item, "cls", None), getattr(getattr(item, "function", None), "need", None)
    if isinstance(cls, type) and issubclass(cls, BackendConformance) and need is not None:
        title = cls.title or cls.__name__.removeprefix("Test").removesuffix("Backend")
        callspec = getattr(item, "callspec", None)
        return {"need": need, "engine": " ".join([title, *([callspec.id] if callspec else [])])}
    if (marker := item.get_closest_marker("need")) is not None:
        return {"need": str(marker.args[0]), "engine": str(marker.kwargs["engine"])}
    return None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember how it went: by its call, and by its set-up and its end if they went wrong."""
    place = dict(report.user_properties).get("place")
    if isinstance(place, dict) and (report.when == "call" or not report.passed):
        missed = report.skipped and MISSING.search(str(report.longrepr))
        OUTCOMES.append({**place, "outcome": "not run" if missed else report.outcome})


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the outcomes; of several processes the one that has all of them does."""
    path = session.config.option.outcomes
    if path is not None and not hasattr(session.config, "workerinput"):
        path.write_text(json.dumps(OUTCOMES), encoding="utf-8")
