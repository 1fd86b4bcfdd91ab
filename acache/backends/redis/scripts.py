"""What has to happen in one step, and no single command does: scripts in Lua, each on one key or on keys of one slot.

A script that fails half-way keeps what it did, so each does what may fail first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from ...entry import HEAD_BYTES
from .body import HEAD_FIELD
from .transport import Argument, Transport, UnknownScript

__all__ = ["APPEND", "FINISH", "INCREMENT", "SET_IF", "SNAPSHOT", "SWAP", "Script", "run"]


class Script:
    """Source and the digest by which a server knows it."""

    def __init__(self, source: str) -> None:
        self.source: Final = source
        self.digest: Final = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


async def run(transport: Transport, script: Script, keys: Sequence[bytes], *arguments: Argument) -> Any:
    """Return what the script returns; a server that has not seen it yet is given its source."""
    try:
        return await transport.execute("EVALSHA", script.digest, len(keys), *keys, *arguments)
    except UnknownScript:
        return await transport.execute("EVAL", script.source, len(keys), *keys, *arguments)


_STORE: Final = """
if ARGV[2] == '' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
"""

SET_IF: Final = Script(f"""
local kind = redis.call('TYPE', KEYS[1])['ok']
if kind ~= 'none' then
  local seen
  if kind == 'hash' then
    seen = 'body:' .. (redis.call('HGET', KEYS[1], '{HEAD_FIELD}') or '')
  else
    seen = 'data:' .. redis.call('GETRANGE', KEYS[1], 0, {HEAD_BYTES - 1})
  end
  if seen ~= ARGV[3] then
    return 0
  end
end
{_STORE}
return 1
""")
"""ARGV: the data, the milliseconds or "", the version that was seen."""

SWAP: Final = Script(f"""
local kind = redis.call('TYPE', KEYS[1])['ok']
local before = false
if kind == 'string' then
  before = redis.call('GETRANGE', KEYS[1], 0, {HEAD_BYTES - 1})
elseif kind == 'hash' then
  before = string.sub(redis.call('HGET', KEYS[1], '0') or '', 1, {HEAD_BYTES})
elseif kind ~= 'none' then
  before = ''
end
{_STORE}
return before
""")
"""ARGV: the data, the milliseconds or ""."""

INCREMENT: Final = Script("""
if ARGV[2] == '' then
  redis.call('SET', KEYS[1], 0, 'NX')
else
  redis.call('SET', KEYS[1], 0, 'NX', 'PX', ARGV[2])
end
redis.call('INCRBY', KEYS[1], ARGV[1])
return redis.call('GET', KEYS[1])
""")
"""ARGV: the delta, the milliseconds or "".  The sum is returned as text: Lua's numbers hold 53 bits."""

APPEND: Final = Script("""
if ARGV[1] ~= '0' and redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""")
"""KEYS: what is written beside an entry.  ARGV: the chunk's number, the chunk, milliseconds until it is abandoned."""

FINISH: Final = Script(f"""
if redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[1]) then
  return 0
end
redis.call('HSET', KEYS[2], '{HEAD_FIELD}', ARGV[3])
if ARGV[2] == '' then
  redis.call('PERSIST', KEYS[2])
else
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
redis.call('UNLINK', KEYS[1])
redis.call('RENAME', KEYS[2], KEYS[1])
return 1
""")
"""KEYS: the entry, what was written beside it.  ARGV: how many chunks that must have, the milliseconds or "", its head.

The UNLINK takes a long entry apart in the background, which RENAME would do at once."""

SNAPSHOT: Final = Script("""
if redis.call('COPY', KEYS[1], KEYS[2]) == 0 then
  return 0
end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return 1
""")
"""KEYS: the entry, its copy.  ARGV: milliseconds until the copy is abandoned."""
