"""The least there is to know: decorate, ask, invalidate.  Needs no server."""

import asyncio

from acache import Cache

cache = Cache()


@cache.cached(ttl=60, key="user:{user_id}", tags=["users"])
async def get_user(user_id: int) -> dict[str, str]:
    print(f"  loading user {user_id}")
    await asyncio.sleep(0.1)  # stands for your database
    return {"name": f"user {user_id}"}


async def main() -> None:
    async with cache:
        print("1,000 callers at once:")
        await asyncio.gather(*(get_user(1) for _ in range(1000)))
        print("after invalidation:")
        await get_user.invalidate(1)  # or, for many at a time: await cache.invalidate_tags("users")
        print(" ", await get_user(1))

        await cache.set("greeting", "hello", ttl=10)  # the same cache, by hand
        print(await cache.get("greeting"), await cache.get("nothing", "a default"))
        print(cache.stats())


asyncio.run(main())
