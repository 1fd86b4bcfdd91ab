"""The examples run, warnings being errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def run(example: str, **environment: str) -> str:
    command = [sys.executable, "-W", "error", EXAMPLES / example]
    env = {key: value for key, value in os.environ.items() if not key.startswith("ACACHE_")} | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_quickstart_loads_once_and_again_after_the_invalidation():
    """A thousand callers print one load."""
    assert run("quickstart.py").count("loading user 1") == 2


def test_worker_runs():
    """And ends by itself."""
    assert run("worker.py")


def test_redis_tier_runs(redis_url: str):
    """Against a real server."""
    assert run("redis_tier.py", ACACHE_REDIS_URL=redis_url)


def test_redis_tier_says_what_it_needs():
    """Without a URL it ends with one sentence."""
    with pytest.raises(AssertionError, match="ACACHE_REDIS_URL"):
        run("redis_tier.py")


@pytest.mark.parametrize("tier", ["memory", "redis"])
def test_the_demo_shows_one_load_in_its_stampede(tier: str, request: pytest.FixtureRequest):
    """`make demo` in small: the application under uvicorn, real traffic, with and without the cache."""
    url = "memory://" if tier == "memory" else request.getfixturevalue("redis_url")
    shown = run("fastapi_app/demo.py", ACACHE_DEMO_REQUESTS="600", ACACHE_URL=url)
    assert re.search(r"callers at once on one cold key\D+1,000\D+1,000", shown)
    assert re.search(r"  database queries\D+1,000\D+1\b", shown)
