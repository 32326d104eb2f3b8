from __future__ import annotations

import asyncio

import pytest

import biobracket
from tests.support.http import SECRET


def test_extract_get_search_and_delete(served):
    with biobracket.Client(served.url) as client:
        made = client.extract("asthma", id="病历/1?", lang="en", types=["disease"])
        assert made.entities[0].text == "a"
        assert client.get("病历/1?") == made
        assert [m.document_id for m in client.search("A", type="disease", limit=5)] == ["病历/1?"]
        client.delete("病历/1?")
        assert served.world.erased == ["病历/1?"]
        with pytest.raises(biobracket.ApiError, match="404, id: no result") as refused:
            client.get("病历/1?")
        assert (refused.value.status, refused.value.field) == (404, "id")


def test_the_asynchronous_client_does_the_same(served):
    async def use():
        async with biobracket.AsyncClient(served.url) as client:
            made = await asyncio.gather(*(client.extract("asthma", id=str(i)) for i in range(8)))
            assert [e.document_id for e in made] == [str(i) for i in range(8)]
            assert await client.get("3") == made[3]
            assert len(await client.search("a")) == 8
            await client.delete("3")
            served.refusals = [(503, {"Retry-After": "0"})]
            assert (await client.get("4")).document_id == "4"

    asyncio.run(use())


def test_a_busy_server_is_asked_again(served):
    served.refusals = [(503, {"Retry-After": "0"}), (429, {"Retry-After": "0"})]
    with biobracket.Client(served.url) as client:
        assert client.extract("asthma").entities
    assert len(served.seen) == 3
    served.refusals = [(503, {"Retry-After": "0"})] * 3
    with biobracket.Client(served.url, retries=1) as client, pytest.raises(biobracket.ApiError, match="503"):
        client.extract(SECRET)
    assert len(served.seen) == 5


def test_an_error_does_not_hold_what_was_sent(served):
    with biobracket.Client(served.url) as client, pytest.raises(biobracket.ApiError) as refused:
        client.extract(SECRET, types=[SECRET])
    assert refused.value.status == 422
    assert SECRET not in str(refused.value)


def test_the_token_is_sent(served, tmp_path):
    file = tmp_path / "token"
    file.write_text("key-1\n")
    with biobracket.Client(served.url, token_file=file) as client:
        client.extract("asthma")
    assert served.seen[-1]["authorization"] == "Bearer key-1"


def test_no_server(served):
    with (
        biobracket.Client("http://127.0.0.1:9", retries=0) as client,
        pytest.raises(biobracket.BiobracketError, match="nothing answers"),
    ):
        client.get("a")
