"""Names: two functions never answer for each other, and one function has one name in every process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from acache import Cache, ConfigurationError


class Repo:
    """Has a text of its own, and takes it where it is bound."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__cache_key__ = name

    async def get(self, i: int) -> str:
        return f"{self.name}{i}"

    async def get_many(self, items: list[int]) -> dict[int, str]:
        return {i: f"{self.name}{i}" for i in items}

    @classmethod
    async def kind(cls, i: int) -> str:
        return f"{cls.__name__}{i}"


class Archive(Repo):
    """Inherits its class method."""


class Nameless:
    """Has no stable text."""

    async def get(self, i: int) -> int:
        return i

    async def get_many(self, items: list[int]) -> dict[int, int]:
        return {i: i for i in items}


# Bound methods -------------------------------------------------------------------------------------------------------


async def test_a_bound_method_is_a_function_of_its_instance():
    """Those of two instances do not answer for each other, and those of equal ones do."""
    cache = Cache()
    a, b, again = (cache.cached()(Repo(name).get) for name in "aba")
    assert (await a(1), await b(1)) == ("a1", "b1")
    assert a.key(1) == again.key(1) != b.key(1)
    assert a.key(1) != cache.cached()(Repo.get).key(Repo("a"), 1)


async def test_an_instance_under_a_partial_application_is_part_of_the_key():
    """However deep it is, beside what was fixed."""
    cache = Cache()
    fixed = [functools.partial(Repo(name).get, i) for name in "ab" for i in (1, 2)]
    outer = [functools.partial(functools.partial(Repo(name).get), i=i) for name in "ab" for i in (1, 2)]
    for functions in (fixed, outer):
        assert [await cache.cached()(function)() for function in functions] == ["a1", "a2", "b1", "b2"]


async def test_a_bound_class_method_is_a_function_of_its_class():
    """A class has its name for a text."""
    cache = Cache()
    assert await cache.cached()(Repo.kind)(1) == "Repo1"
    assert await cache.cached()(Archive.kind)(1) == "Archive1"


async def test_a_bound_method_of_many_is_a_function_of_its_instance():
    """With `cached_many` too."""
    cache = Cache()
    a, b = (cache.cached_many()(Repo(name).get_many) for name in "ab")
    assert (await a([1]), await b([1])) == ({1: "a1"}, {1: "b1"})


async def test_a_method_of_a_builtin_is_a_function_of_its_value():
    """What a function written in C is bound to counts; its module does not."""
    cache = Cache()
    one, other = (cache.cached(thread=True)(text.replace) for text in ("aa", "ba"))
    assert (await one("a", "c"), await other("a", "c")) == ("cc", "bc")
    assert cache.cached(thread=True)(divmod).key(7, 2) == "builtins.divmod(x=7,y=2)"


@pytest.mark.parametrize("decorator", ["cached", "cached_many"])
async def test_a_bound_method_of_something_unstable_needs_a_key(decorator: str):
    """The error says what to do; with a key of the user's own it is nobody's business."""
    cache, wanted = Cache(), Nameless()
    method = wanted.get if decorator == "cached" else wanted.get_many
    with pytest.raises(ConfigurationError, match=r"Nameless.*bound to.*key=.*__cache_key__.*in the class"):
        getattr(cache, decorator)()(method)
    assert await cache.cached(key="k:{i}")(wanted.get)(1) == 1


async def test_invalidating_all_leaves_what_is_bound_alone():
    """The keys of a bound method do not begin as those of the method itself do."""
    cache = Cache()
    bound, free = cache.cached()(Repo("a").get), cache.cached()(Repo.get)
    await bound(1)
    await free.invalidate_all()
    assert bound.peek(1) == "a1"
    await bound.invalidate_all()
    assert bound.peek(1) is None


# Programs ------------------------------------------------------------------------------------------------------------

SCRIPT = """
import enum
import multiprocessing
import sys
from acache import Cache

class Colour(enum.Enum):
    RED = 1

@Cache().cached()
async def get(i, colour=Colour.RED):
    return i

class Repo:
    @classmethod
    async def kind(cls):
        return 1

keys = [get.key(1), Cache().cached()(Repo.kind).key()]

def tell(_):
    return keys

if __name__ == "__main__":
    print(keys)
    if "spawn" in sys.argv:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(tell, [1])[0])
"""


def run(where: Path, *arguments: str, text: str = "") -> list[str]:
    """Run Python there and return the lines it prints."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=where,
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{where}"},
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def keys_of(module: str) -> str:
    return str([f"{module}.get(i=1,colour={module}.Colour.RED)", f"{module}.Repo.kind<type<{module}.Repo>>()"])


def test_a_script_s_functions_are_named_after_it(tmp_path: Path):
    """Two scripts have two keys, and one script has one in every process, imported or run, however it is started."""
    package = tmp_path / "package"
    package.mkdir()
    for path in ("a.py", "b.py", "package/__init__.py", "package/job.py", "package/__main__.py"):
        (tmp_path / path).write_text("" if path.endswith("__init__.py") else SCRIPT)
    for name in ("a", "b"):
        assert run(tmp_path, f"{name}.py", "spawn") == [keys_of(name)] * 2
    assert run(package, "../a.py") == [keys_of("a")]
    assert run(tmp_path, "-c", "import a; print(a.keys)") == [keys_of("a")]
    assert run(tmp_path, "-m", "a", "spawn") == [keys_of("a")] * 2
    assert run(tmp_path, "-m", "package.job", "spawn") == [keys_of("package.job")] * 2
    assert run(tmp_path, "-m", "package") == [keys_of("package.__main__")]
    assert run(tmp_path, "package") == run(package, ".") == [keys_of("package.__main__")]


def test_a_session_s_functions_are_main_s(tmp_path: Path):
    """Without a file there is no better name."""
    text = SCRIPT.partition("if __name__")[0] + "print(keys)\n"
    assert run(tmp_path, "-c", text) == run(tmp_path, "-", text=text) == [keys_of("__main__")]
