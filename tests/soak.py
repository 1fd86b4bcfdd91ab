"""Four processes, one Redis, a bad network in front of each: every read is checked against the history.

``python tests/soak.py redis://localhost:6379/0 --seconds 60 --seed 7``; the seed decides what the processes do and what
befalls them, though not how the machine schedules them.  `make soak` starts the server, too.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

if __package__:
    from .history import Operation, check, read_log
    from .processes import BOUND
    from .proxy import Proxy
else:
    from history import Operation, check, read_log
    from processes import BOUND
    from proxy import Proxy

__all__ = ["soak"]

PROCESSES: Final = 4
_PROGRAM: Final = Path(__file__).with_name("processes.py")


def misbehave(proxy: Proxy, chance: random.Random) -> str:
    """Give a proxy a state drawn from the seed; half of the time nothing is wrong."""
    faults: dict[str, Callable[[], object]] = {
        "delay": lambda: proxy.delay(chance.uniform(0, 0.2), 0.2),
        "long delay": lambda: proxy.delay(0.5, 0.5),
        "drop": proxy.drop,
        "half-open up": lambda: proxy.half_open("up"),
        "half-open down": lambda: proxy.half_open("down"),
        "throttle": lambda: proxy.throttle(2000),
        "reset": lambda: proxy.reset(),
        "one reset": lambda: proxy.reset(once=True),
    }
    name = "resume" if chance.random() < 0.5 else chance.choice(sorted(faults))
    faults.get(name, proxy.resume)()
    return name


async def soak(
    url: str, folder: Path, *, seconds: float, seed: int, disturb: Callable[[str], object] | None = None
) -> tuple[list[Operation], Counter[str]]:
    """Let the processes live; return what they noted, and how often which fault befell them.

    ``disturb`` is called now and then with "pause", and a little later with "resume".
    """
    chance, faults, parts = random.Random(seed), Counter[str](), urlsplit(url)
    assert parts.hostname is not None
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(Proxy(parts.hostname, parts.port or 6379, seed=seed + number))
            for number in range(PROCESSES)
        ]
        logs = [folder / f"{number}.log" for number in range(PROCESSES)]
        children = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, str(_PROGRAM), f"redis://127.0.0.1:{proxy.port}{parts.path}", str(log)),
                *(str(number), str(seed), str(seconds)),
                stderr=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            for number, (proxy, log) in enumerate(zip(proxies, logs, strict=True))
        ]
        ended = asyncio.gather(*[child.communicate() for child in children])
        try:
            async with asyncio.timeout(seconds + 60):
                while not ended.done():
                    await asyncio.wait([ended], timeout=chance.expovariate(PROCESSES))
                    faults[misbehave(chance.choice(proxies), chance)] += 1
                    if disturb is not None and faults.total() % 8 == 4:
                        disturb("pause")
                        await asyncio.sleep(chance.uniform(0, 1))
                        disturb("resume")
                        faults["pause"] += 1
                outputs = await ended
        finally:
            for child in children:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
    for child, (output, errors) in zip(children, outputs, strict=True):
        if child.returncode:
            raise AssertionError(f"a process ended with {child.returncode}: {errors.decode()[-2000:]}{output.decode()}")
    return [operation for log in logs for operation in read_log(log)], faults


def summary(history: list[Operation], faults: Counter[str]) -> str:
    """Say what went on."""
    done = Counter(f"{operation.kind}{'' if operation.confirmed else ' (failed)'}" for operation in history)
    found = sum(operation.kind == "get" and operation.value is not None for operation in history)
    return f"{len(history)} operations: {dict(done)}; {found} reads found a value; faults: {dict(faults)}"


def main() -> int:
    """Be the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="a Redis")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--bound", type=float, default=BOUND, help="seconds for which others may see an old value")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        history, faults = asyncio.run(soak(options.url, Path(folder), seconds=options.seconds, seed=options.seed))
    print(summary(history, faults))
    wrong = check(history, bound=options.bound)
    print("\n".join([f"{len(wrong)} violations", *wrong[:10]]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
