"""Fire real traffic at app.py, without its cache and with it, and draw the difference.

    make demo

It starts the application twice, each time in a process of its own on a free port of this machine, and ends by itself
in well under a minute.  The exit code is 0 only if every answer was right and the stampede cost one load.
"""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from database import CATEGORIES, ranking
from rich.console import Console
from rich.markup import escape
from rich.table import Table

REQUESTS = int(os.environ.get("ACACHE_DEMO_REQUESTS", "10000"))
UNCACHED = REQUESTS * 3 // 10
"""The first of the same requests: all of them would take half a minute, and say the same."""
CLIENTS = 20
CALLERS = 1_000
HERE = Path(__file__).resolve().parent


class Failed(Exception):
    """The demo did not show what it promises."""


# The server ----------------------------------------------------------------------------------------------------------


@contextmanager
def server(folder: Path, **environment: str) -> Iterator[int]:
    """Run the application under uvicorn, and yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(HERE), "--port", str(port)]
    log = folder / f"{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--log-level", "warning", "--no-access-log"],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        try:
            wait_until_ready(process, port)
            yield port
        finally:
            stop(process)
    except (Failed, OSError, asyncio.IncompleteReadError) as error:
        raise Failed(f"{error}\n{tail(log)}") from error
    if complaints := tail(log):
        raise Failed(f"the server had something to complain about:\n{complaints}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Failed(f"the server ended at once, with exit code {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise Failed("the server did not get ready")


# The clients ---------------------------------------------------------------------------------------------------------


class Client:
    """One keep-alive connection.

    As little HTTP as will do: a full client library would need more time for a request than the server does for a
    cached answer, and the demo would measure the library.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request; return the JSON of the answer."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: demo\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        answer = await self._reader.readexactly(int(headers.get("content-length", 0)))
        if status.split()[1][0] != "2":
            raise Failed(f"{method} {path} was answered {status}: {answer.decode()}")
        return json.loads(answer) if answer else None


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def ask(port: int, method: str, path: str, body: Any = None) -> Any:
    """Send one request on a connection of its own."""
    async with connect(port) as client:
        return await client.ask(method, path, body)


def make_traffic(count: int) -> list[str]:
    """Draw requests as people make them: few things are asked for often, and most things rarely (Zipf)."""
    rng = random.Random(1)
    products = ranking()
    weights = [1 / rank**1.1 for rank, _ in enumerate(products, start=1)]
    pages = rng.choices(("/products/{}", "/products/{}/reviews", "/categories/{}"), (70, 20, 10), k=count)
    drawn = rng.choices(products, weights, k=count)
    return [
        page.format(rng.choice(CATEGORIES) if page.startswith("/categories") else product_id)
        for page, product_id in zip(pages, drawn, strict=True)
    ]


# What is measured ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run of everything."""

    requests: int
    seconds: float
    latencies: Sequence[float]
    """Seconds, sorted."""
    queries: int
    refreshed: int
    """Those of the queries that the background worker made; nobody waited for them."""
    hit_ratio: float
    stampede_queries: int
    stampede_seconds: float

    def percentile(self, share: float) -> float:
        """Return a latency in milliseconds."""
        return self.latencies[int(share * (len(self.latencies) - 1))] * 1000


async def measure(port: int, requests: Sequence[str]) -> Result:
    """Run the traffic, then a write, then the stampede."""
    async with asyncio.timeout(60):
        await ask(port, "DELETE", "/cache")  # a Redis may still know the answers of the last run
        before = await ask(port, "GET", "/stats")
        started = time.perf_counter()
        latencies = await run_traffic(port, requests)
        seconds = time.perf_counter() - started
        after = await ask(port, "GET", "/stats")
        await check_that_a_write_is_seen(port)
        stampede_queries, stampede_seconds = await run_stampede(port)
        await ask(port, "DELETE", "/cache")  # and needs not keep those of this one
    return Result(
        requests=len(requests),
        seconds=seconds,
        latencies=sorted(latencies),
        queries=sum(after["queries"].values()) - sum(before["queries"].values()),
        refreshed=after["refreshed_behind"] - before["refreshed_behind"],
        hit_ratio=after["stats"]["hit_ratio"],
        stampede_queries=stampede_queries,
        stampede_seconds=stampede_seconds,
    )


async def run_traffic(port: int, requests: Sequence[str]) -> list[float]:
    """Let a few clients work off the requests, each its next one when it has the answer to its last."""
    waiting = iter(requests)
    latencies: list[float] = []

    async def work() -> None:
        async with connect(port) as client:
            for path in waiting:
                started = time.perf_counter()
                await client.ask("GET", path)
                latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return latencies


async def check_that_a_write_is_seen(port: int) -> None:
    """Change a product that is surely cached, and read it back."""
    path = f"/products/{ranking()[0]}"
    product = await ask(port, "GET", path)
    await ask(port, "PUT", f"{path}/price", {"price": product["price"] + 1})
    if (await ask(port, "GET", path))["price"] != product["price"] + 1:
        raise Failed(f"{path} was still answered with the old price after it was changed")


async def run_stampede(port: int) -> tuple[int, float]:
    """Ask for a thing that nobody asked for yet, everybody at once; return the queries it cost, and the seconds."""
    before = await ask(port, "GET", "/stats")
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(connect(port)) for _ in range(CALLERS)]
        started = time.perf_counter()
        answers = await asyncio.gather(*(caller.ask("GET", "/categories/toys/report") for caller in callers))
        seconds = time.perf_counter() - started
    after = await ask(port, "GET", "/stats")
    if any(answer != answers[0] for answer in answers):
        raise Failed("the callers of the stampede got different answers")
    return after["queries"]["report"] - before["queries"].get("report", 0), seconds


# What is shown -------------------------------------------------------------------------------------------------------


def show(console: Console, without: Result, cached: Result) -> None:
    """Print the table, then the same as a picture."""
    table = Table(title="A FastAPI application in front of a slow database", title_justify="left")
    table.add_column("")
    table.add_column("without cache", justify="right")
    table.add_column("with acache", justify="right", style="bold green")

    def row(name: str, form: str, value: Callable[[Result], float]) -> None:
        table.add_row(name, form.format(value(without)), form.format(value(cached)))

    row("requests", "{:,.0f}", lambda run: run.requests)
    row("database queries", "{:,.0f}", lambda run: run.queries)
    row("  by the background worker", "{:,.0f}", lambda run: run.refreshed)
    row("hit ratio", "{:.0%}", lambda run: run.hit_ratio)
    row("latency p50", "{:,.1f} ms", lambda run: run.percentile(0.5))
    row("latency p99", "{:,.1f} ms", lambda run: run.percentile(0.99))
    row("requests per second", "{:,.0f}", lambda run: run.requests / run.seconds)
    table.add_section()
    row("callers at once on one cold key", "{:,.0f}", lambda _: CALLERS)
    row("  database queries", "{:,.0f}", lambda run: run.stampede_queries)
    row("  until all had their answer", "{:,.2f} s", lambda run: run.stampede_seconds)
    console.print()
    console.print(table)

    def bars(name: str, unit: str, value: Callable[[Result], float]) -> None:
        console.print(f"\n{name}")
        longest = max(value(without), value(cached))
        for label, run, style in (("without", without, "red"), ("acache", cached, "green")):
            bar = block * max(1, round(value(run) / longest * 48))
            console.print(f"  {label:8}[{style}]{bar}[/] {value(run):,.0f}{unit}")

    block = "\u2588" if console.encoding.startswith("utf") else "#"
    bars("database queries per 1,000 requests", "", lambda run: run.queries / run.requests * 1000)
    bars("latency, p50", " ms", lambda run: run.percentile(0.5))
    bars("requests per second", "", lambda run: run.requests / run.seconds)
    bars("database queries of the stampede", "", lambda run: run.stampede_queries)


def allow_many_connections() -> None:
    """Raise the limit of open files, which the server inherits: the usual 1,024, or 256, is not enough for 1,000."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * CALLERS + 100
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    console = Console(highlight=False)
    # SIGTERM would end this process at once, and leave the server behind; an exception stops it first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    allow_many_connections()
    requests = make_traffic(REQUESTS)
    try:
        with TemporaryDirectory() as folder:
            console.print(f"Without cache: {UNCACHED:,} requests by {CLIENTS} clients, a write, a stampede ...")
            with server(Path(folder), ACACHE_DEMO_CACHE="off") as port:
                without = asyncio.run(measure(port, requests[:UNCACHED]))
            console.print(f"With acache, cold: {REQUESTS:,} such requests, the same write and stampede ...")
            with server(Path(folder), ACACHE_DEMO_CACHE="on") as port:
                cached = asyncio.run(measure(port, requests))
    except Failed as error:
        console.print(f"[bold red]failed:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        return 130
    show(console, without, cached)
    if cached.stampede_queries != 1:
        console.print(f"\n[bold red]failed:[/] the stampede cost {cached.stampede_queries} queries instead of 1")
        return 1
    console.print(
        "\nTo explore further (app.py in docs/examples/fastapi_app is what ran):\n"
        "  make serve                                       http://127.0.0.1:8000/docs\n"
        "  make serve ACACHE_URL=redis://localhost:6379/0   the same in front of a Redis\n"
        "  make demo  ACACHE_URL=redis://localhost:6379/0   and measured there"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
