"""What ``import acache`` gives, and what it does not need for that."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import textwrap
import typing
from pathlib import Path

import pytest

import acache

EXTRAS = (
    "aiobotocore", "aiohttp", "aiomcache", "boto3", "fastapi", "hiredis", "httpx", "motor", "opentelemetry",
    "prometheus_client", "pydantic", "pymongo", "redis", "rich", "starlette", "uvicorn",
)  # fmt: skip
MODULES = sorted(module.name for module in pkgutil.walk_packages(acache.__path__, "acache.") if "._" not in module.name)


def run(source: str, *blocked: str) -> subprocess.CompletedProcess[str]:
    """Run ``source`` in a Python of its own, to which the blocked libraries are not installed."""
    prelude = f"""
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {set(blocked)!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Blocker())
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(source)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=Path(acache.__file__).parents[1],
    )


def public_names(module: object) -> list[str]:
    """Return the names that a module's own ``__all__`` holds."""
    return list(getattr(module, "__all__", []))


def test_all_is_sorted_and_holds_each_name_once():
    """``__all__`` is in the order in which ruff keeps it: constants, classes, functions."""

    def order(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    assert acache.__all__ == sorted(set(acache.__all__), key=order)


def test_all_is_real():
    """Everything in ``__all__`` is there."""
    assert [name for name in acache.__all__ if not hasattr(acache, name)] == []


def test_all_is_complete():
    """Every public name that the package binds, other than its modules, stands in ``__all__``."""
    bound = {name for name, value in vars(acache).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert bound == set(acache.__all__)


def test_the_design_s_names_are_exported():
    """The names that the design gives to users can be imported from the top."""
    promised = {
        *("Cache", "cached", "Entry", "Memory", "Policy", "Stats", "Backend", "Codec", "Clock", "Observer"),
        *("MemoryBackend", "NullBackend", "Msgpack", "SystemClock"),
        *("AcacheError", "ConfigurationError", "InvalidKey", "KeyMissing", "CacheClosed", "RecursiveLoad"),
        *("LoadTimeout", "CodecError", "EncodeError", "DecodeError", "BackendError", "BackendUnavailable"),
        *("BackendTimeout", "BackendRefused", "ValueTooLarge", "Unsupported"),
    }
    assert promised - set(acache.__all__) == set()


@pytest.mark.parametrize(
    ("error", "parents"),
    [
        (acache.ConfigurationError, (acache.AcacheError, ValueError)),
        (acache.InvalidKey, (acache.AcacheError, ValueError)),
        (acache.KeyMissing, (acache.AcacheError, KeyError)),
        (acache.CacheClosed, (acache.AcacheError,)),
        (acache.RecursiveLoad, (acache.AcacheError,)),
        (acache.LoadTimeout, (acache.AcacheError, TimeoutError)),
        (acache.EncodeError, (acache.CodecError, TypeError)),
        (acache.DecodeError, (acache.CodecError,)),
        (acache.BackendUnavailable, (acache.BackendError, ConnectionError)),
        (acache.BackendTimeout, (acache.BackendError, TimeoutError)),
        (acache.BackendRefused, (acache.BackendError, PermissionError)),
        (acache.ValueTooLarge, (acache.BackendError,)),
        (acache.Unsupported, (acache.BackendError,)),
        (acache.CodecError, (acache.AcacheError,)),
        (acache.BackendError, (acache.AcacheError,)),
    ],
)
def test_the_error_tree_is_as_drawn(error: type[Exception], parents: tuple[type[Exception], ...]):
    """Each error is its acache parent and the builtin that people catch."""
    assert all(issubclass(error, parent) for parent in parents)


@pytest.mark.parametrize("name", sorted(acache.__all__))
def test_a_public_name_is_documented(name: str):
    """Every public class and function has a docstring, and so has every public method and property of it."""
    value = getattr(acache, name)
    if name == "DEFAULT":
        value = type(value)
    assert inspect.getdoc(value)
    if inspect.isclass(value) and value.__module__.startswith("acache"):
        bare = [
            member
            for member, thing in vars(value).items()
            if not member.startswith("_")
            and (inspect.isfunction(thing) or isinstance(thing, (property, classmethod)))
            and not inspect.getdoc(getattr(value, member))
        ]
        assert bare == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is(name: str):
    """Every module has a docstring and an ``__all__`` that is real."""
    module = importlib.import_module(name)
    assert module.__doc__
    assert [public for public in public_names(module) if not hasattr(module, public)] == []


def test_annotations_resolve_at_run_time():
    """Frameworks that read annotations find every name of the facade's signatures."""
    for function in (
        acache.Cache.__init__,
        acache.Cache.get,
        acache.Cache.set,
        acache.Cache.get_or_load,
        acache.cached,
    ):
        assert typing.get_type_hints(function)


def test_import_needs_no_extra():
    """With nothing but anyio and msgspec beside it, acache imports, and its memory works."""
    code = """
        import asyncio
        import acache
        import acache.backends, acache.codecs, acache.memory

        async def main():
            @acache.cached(ttl=60)
            async def double(x: int) -> int:
                return 2 * x
            async with acache.Cache(acache.MemoryBackend(), namespace="n") as cache:
                await cache.set("k", (1, {2}))
                print(await cache.get("k"), await double(4), await double(4))

        asyncio.run(main())
    """
    result = run(code, *EXTRAS)
    assert result.stderr == ""
    assert result.stdout == "(1, {2}) 8 8\n"


def test_testing_tools_need_no_extra():
    """The tools for tests import without pytest and without any engine's client."""
    result = run("import acache.testing; print(acache.testing.FakeClock())", *EXTRAS, "pytest", "hypothesis")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("extra", "source"),
    [
        ("redis", "from acache.backends.redis import RedisBackend"),
        ("redis", "import acache; acache.Cache.from_url('redis://localhost')"),
        ("redis", "import acache; acache.Cache.from_url('valkey://localhost')"),
        ("mongodb", "from acache.backends.mongodb import MongoDBBackend"),
        ("mongodb", "import acache; acache.Cache.from_url('mongodb://localhost/d')"),
        ("mongodb", "import acache; acache.Cache.from_url('mongodb+srv://cluster.invalid/d')"),
        ("memcached", "from acache.backends.memcached import MemcachedBackend"),
        ("memcached", "import acache; acache.Cache.from_url('memcached://localhost')"),
    ],
)
def test_a_missing_extra_names_its_remedy(extra: str, source: str):
    """Without the client library the error is an ImportError with the command to type."""
    result = run(source, *EXTRAS)
    assert result.returncode == 1
    assert result.stderr.rstrip().splitlines()[-1].startswith("ImportError: ")
    assert f"pip install 'acache[{extra}]'" in result.stderr


def test_import_loads_no_client_library():
    """Although they are installed here, ``import acache`` leaves every extra's library alone."""
    result = run(f"import acache; print(sorted(set(sys.modules) & {set(EXTRAS)!r}))")
    assert result.stderr == ""
    assert result.stdout == "[]\n"


def test_storing_plain_data_loads_no_client_library():
    """Encoding, decoding and caching builtin values imports nothing of an extra either."""
    code = f"""
        import asyncio, acache
        async def main():
            cache = acache.Cache(acache.MemoryBackend())
            await cache.set("k", [1, (2,), {{3: 4}}])
            await acache.Cache(acache.MemoryBackend()).get("k", type=list[int])
        asyncio.run(main())
        print(sorted(set(sys.modules) & {set(EXTRAS)!r}))
    """
    assert run(code).stdout == "[]\n"


def test_the_package_is_typed():
    """The marker for type checkers is there, and every public function has all its annotations."""
    assert (Path(acache.__file__).parent / "py.typed").exists()
    bare = []
    for path in Path(acache.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is None:
                bare.append(f"{path.name}:{node.lineno} {node.name}")
    assert bare == []
