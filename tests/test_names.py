"""Names: two functions never answer for each other, and one function has one name in every process."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from acache import Cache, ConfigurationError

ALREADY = r"is cached here already.*key= or a version="


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


async def test_a_template_names_what_is_fixed():
    """By position or by name, in a key and in a tag, also of an object that may change."""
    cache = Cache()
    a, b = Repo("a"), Repo("b")
    one, other = (cache.cached(key="r:{self.name}:{i}", tags=["of:{self.name}"])(repo.get) for repo in (a, b))
    assert (await one(1), await other(1), one.key(1), other.key(1)) == ("a1", "b1", "r:a:1", "r:b:1")
    await cache.invalidate_tags("of:a")
    assert (one.peek(1), other.peek(1)) == (None, "b1")
    b.name = "c"
    assert await other(1) == "c1"
    many = cache.cached_many(key="m:{self.name}:{items}")(a.get_many)
    assert (await many([1]), await cache.get("m:a:1")) == ({1: "a1"}, "a1")

    async def add(t: int, x: int, *, unit: int = 0) -> int:
        return t + x + unit

    for t in (1, 2):
        assert await cache.cached(key="add:{t}:{x}")(functools.partial(add, t))(1) == t + 1
        assert await cache.cached(key="to:{unit}:{x}", ignore=("t",))(functools.partial(add, t=1, unit=t))(x=1) == t + 2
    with pytest.raises(ConfigurationError, match=r"names 'return', which is not a parameter \(there are: x, unit, t\)"):
        cache.cached(key="{return}")(functools.partial(add, 1))


def _bound(of: str) -> Any:
    return Repo(of).get


def _bound_class(of: str) -> Any:
    return {"a": Repo, "b": Archive}[of].kind


def _partial(of: str) -> Any:
    return functools.partial(Repo.get, Repo(of))


def _by_name(of: str) -> Any:
    return functools.partial(Repo.get, self=Repo(of))


async def _rest(*parts: str, i: int) -> str:
    return f"{parts}{i}"


def _variadic(of: str) -> Any:
    return functools.partial(functools.partial(_rest, "x"), of)


@pytest.mark.parametrize("make", [_bound, _bound_class, _partial, _by_name, _variadic])
def test_a_template_that_leaves_out_what_is_fixed_is_for_one_only(make: Any):
    """Two would answer each other's calls; the same one again, in another namespace or version, is none too many."""
    cache = Cache()
    for _ in range(2):
        cache.cached(key="k:{i}")(make("a"))
    with pytest.raises(ConfigurationError, match=r"key='k:\{i\}' is cached here already for other.*fixed.*version="):
        cache.cached(key="k:{i}")(make("b"))
    cache.cached(key="k:{i}", version=2)(make("b"))
    cache.cached(key="of b:{i}")(make("b"))
    cache.view(namespace="other").cached(key="k:{i}")(make("b"))
    for of in "ab":
        cache.cached(key=lambda *_, **rest: f"f:{rest}")(make(of))


async def test_invalidating_all_leaves_what_is_bound_alone():
    """The keys of a bound method do not begin as those of the method itself do."""
    cache = Cache()
    bound, free = cache.cached()(Repo("a").get), cache.cached()(Repo.get)
    await bound(1)
    await free.invalidate_all()
    assert bound.peek(1) == "a1"
    await bound.invalidate_all()
    assert bound.peek(1) is None


# Two functions of one name -------------------------------------------------------------------------------------------


def _two_lambdas(decorate: Any) -> None:
    decorate(lambda i: i + 1)
    decorate(lambda i: i + 2)


def _two_underscores(decorate: Any) -> None:
    def _(i: int) -> int:
        return i + 1

    decorate(_)

    def _(i: int) -> int:
        return i + 2

    decorate(_)


def _partials_of_closures(decorate: Any) -> None:
    for factor in (1, 2):

        def scale(i: int, more: int, factor: int = factor) -> int:
            return i * factor + more + unit

        unit = factor
        decorate(functools.partial(scale, 1))


def _ignored_defaults(decorate: Any) -> None:
    for t in (1, 2):

        def f(i: int, t: int = t) -> int:
            return i + t

        decorate(f, ignore=("t",))


def _ignored_objects(decorate: Any) -> None:
    for _ in range(2):

        def f(i: int, t: object = object()) -> int:
            return i

        decorate(f, ignore=("t",))


def _classes_of_a_factory(decorate: Any) -> None:
    for factor in (1, 2):

        class Local:
            scale = factor

            def get(self, i: int) -> int:
                return i * self.scale

        decorate(Local.get, ignore=("self",))


@pytest.mark.parametrize(
    "define",
    [_two_lambdas, _two_underscores, _partials_of_closures, _ignored_defaults, _ignored_objects, _classes_of_a_factory],
)
@pytest.mark.parametrize("decorator", ["cached", "cached_many"])
def test_another_function_of_the_same_name_is_refused(define: Any, decorator: str):
    """Both would have the same keys, and answer each other's calls."""
    cache, decorated = Cache(), []

    def decorate(function: Any, **rules: Any) -> None:
        decorated.append(getattr(cache, decorator)(thread=True, **rules)(function))

    with pytest.raises(ConfigurationError, match=ALREADY):
        define(decorate)
    assert len(decorated) == 1
    define(lambda function, **rules: getattr(Cache(), decorator)(thread=True, **rules)(function))


def test_names_are_taken_in_one_namespace():
    """In another one there are other keys; a key of the user's own takes no name, and a version is part of one."""
    cache = Cache()
    for number, rules in enumerate(({}, {"version": 2}, {"key": "k:{i}"}, {"key": "l:{i}"}, {})):
        view = cache.view(namespace="other") if number == 4 else cache
        view.cached(thread=True, **rules)(lambda i, number=number: i)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match=ALREADY):
        cache.view().cached(thread=True)(lambda i, number=1: i + 1)


async def test_one_function_may_be_decorated_twice():
    """With two ttls, say: it is the same function, wherever and however often its ``def`` is run."""
    cache, limit, unit = Cache(), Nameless(), 2

    def define() -> Any:
        async def f(i: int, limit: object = limit, unit: int = 3) -> int:
            return i

        return f

    for _ in range(2):
        cache.cached(ttl=5, ignore=("limit", "unit"))(define())

    async def closure(i: int) -> int:
        return i * unit

    for ttl in (5, 10):
        cache.cached(ttl=ttl)(closure)
        cache.cached(ttl=ttl)(Repo.get)
        cache.cached(ttl=ttl)(functools.partial(Repo.get, Repo("a")))
        cache.cached_many(ttl=ttl)(Repo.get_many)


async def test_a_rule_that_was_refused_takes_no_name():
    """Mended, the decorator is run again."""
    cache, unit = Cache(), 2
    for ignore in (("j",), ()):

        async def f(i: int) -> int:
            return i * unit

        if ignore:
            with pytest.raises(ConfigurationError, match="not a parameter"):
                cache.cached(ignore=ignore)(f)
        else:
            cache.cached(ignore=ignore)(f)


MODULE = """
import functools

def counted(function, by={by}):
    @functools.wraps(function)
    async def call(*args):
        return await function(*args) + by
    return call

class Base:
    async def get(self, i):
        return i

class Shop(Base):
    @cache.cached(ignore=("self",))
    async def get(self, i):
        return await super().get(i) + {code}

@cache.cached()
@counted
async def wrapped(i):
    return i + {code}

@cache.cached()
async def plain(i):
    return [i for i in (i,)][0:1][0] + (lambda: {code})()
"""


def run_module(cache: Cache, text: str) -> dict[str, Any]:
    """Run the text of a module, as a reload of it or a cell of a notebook does."""
    scope: dict[str, Any] = {"__name__": "reloaded", "cache": cache}
    exec(compile(text, "<reloaded>", "exec"), scope)  # noqa: S102 - it is above
    return scope


def test_a_module_may_be_reloaded(caplog: pytest.LogCaptureFixture):
    """A function that is defined again is not refused; where its code is another one, one warning tells."""
    cache = Cache()
    text = MODULE.format(code=1, by=0)
    first = run_module(cache, text)
    with caplog.at_level(logging.WARNING):
        again = run_module(cache, "# lines move\n" + text)
        assert not caplog.records
        last = run_module(cache, MODULE.format(code=2, by=0))
        told = [record.getMessage() for record in caplog.records]
        run_module(cache, MODULE.format(code=2, by=0))
    assert len(told) == len(caplog.records) == 3
    for name in ("Shop.get", "wrapped", "plain"):
        assert any(f"reloaded.{name} " in message and "version=" in message for message in told)
    assert all((first, again, last))  # as long as they are here, so are their functions


async def test_two_wrappers_of_one_function_are_refused():
    """They see other variables, and nobody reloaded anything."""
    cache = Cache()

    def add(more: int) -> Any:
        @functools.wraps(Repo.get)
        async def call(self: Any, i: int) -> str:
            return f"{await Repo.get(self, i)}{more}"

        return call

    cache.cached()(add(1))
    with pytest.raises(ConfigurationError, match=ALREADY):
        cache.cached()(add(2))


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
