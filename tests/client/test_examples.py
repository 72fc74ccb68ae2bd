"""The examples of the client, against the real service."""

import asyncio

import pytest

from asmg_client import Client
from asmg_client.examples import feed, web_shop
from tests.client.conftest import Service
from tests.conftest import in_thread


def test_the_web_shop(service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ASMG_KEY", service.key)
    web_shop.main(service.url)
    assert capsys.readouterr().out.splitlines()[-1] == "6 events are stored, 0 were refused, 0 are lost"
    with Client(service.url) as client:
        assert client.get_item("boots").categories == ["shoes"]
        assert client.get_user("ann").log.clicks == 1


def test_a_shop_without_its_service_shows_its_products() -> None:
    shop = web_shop.Shop("http://127.0.0.1:9")
    assert shop.ranked("ann", ["a", "b"]) == (["a", "b"], None)
    shop.close()


def test_the_feed(service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ASMG_KEY", service.key)

    async def run() -> None:
        running = asyncio.create_task(feed.main(service.url))
        with Client(service.url) as client:
            while (await asyncio.to_thread(client.list_periods)).periods[0].period == 1:
                assert not running.done(), running
                await asyncio.sleep(0.05)
        await asyncio.to_thread(service.end_period, 1)
        await running

    in_thread(asyncio.run, run())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "20 events are stored, 0 are lost"
    assert lines[-1] == "period 1: updated"
