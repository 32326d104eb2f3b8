from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from services.ingest.turns import Turns


@given(ids=st.lists(st.sampled_from("abc"), max_size=12), data=st.data())
def test_documents_of_one_id_go_in_order_and_others_meanwhile(ids: list[str], data: st.DataObject) -> None:
    async def run() -> None:
        turns = Turns()
        running: list[int] = []
        events = [asyncio.Event() for _ in ids]

        async def one(place: int) -> None:
            async with turns.turn(ids[place]):
                running.append(place)
                await events[place].wait()

        tasks = [asyncio.create_task(one(place)) for place in range(len(ids))]
        left = set(range(len(ids)))
        while left:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            # The first of each id, and all of these.
            firsts = {min(place for place in left if ids[place] == id_) for id_ in {ids[place] for place in left}}
            assert set(running) & left == firsts
            ended = data.draw(st.sampled_from(sorted(left)))
            if ended in firsts:
                events[ended].set()
            else:  # it gives up waiting
                tasks[ended].cancel()
            left.remove(ended)
            await asyncio.wait([tasks[ended]])
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(turns) == 0

    asyncio.run(run())
