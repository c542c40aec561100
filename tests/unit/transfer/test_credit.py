"""Credit: never above its limit, first come first served, and nothing is lost by giving up."""

import asyncio

from baton_transfer.peers import Credit


async def test_who_came_first_is_served_first_and_a_big_wish_is_not_overtaken() -> None:
    credit, served = Credit(10), []

    async def want(name: str, size: int) -> int:
        taken = await credit.take(size)
        served.append(name)
        return taken

    first = await want("first", 8)
    waiting = [asyncio.create_task(want(*wish)) for wish in (("big", 99), ("small", 1))]
    await asyncio.sleep(0)
    assert served == ["first"], "small fits, but big came before it"
    credit.give(first)
    assert await waiting[0] == 10, "more than the limit is all of it"
    assert not waiting[1].done()
    credit.give(10)
    assert await waiting[1] == 1
    assert served == ["first", "big", "small"]


async def test_who_gives_up_waiting_leaves_its_credit_to_the_next() -> None:
    for admitted in (False, True):
        credit = Credit(10)
        await credit.take(10)
        gone, next_one = (asyncio.create_task(credit.take(10)) for _ in range(2))
        await asyncio.sleep(0)
        if admitted:  # its credit has come, and it is cancelled before it runs again
            credit.give(10)
            gone.cancel()
        else:
            gone.cancel()
            await asyncio.wait([gone])
            credit.give(10)
        assert await asyncio.wait_for(next_one, 5) == 10
        assert gone.cancelled()
