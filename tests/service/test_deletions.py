"""Deletions: nothing that is stored about an id remains, and the calls report it."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import text

from service.storage.postgres.repositories import (
    EventBatch,
    Interaction,
)
from service.use_cases.forget import carry_out
from service.use_cases.ingest import ingest
from service.use_cases.retention import drop_old_logs, merge_event_ids
from service.use_cases.verify import verify
from tests.service.api_support import running_app, settings_for
from tests.service.deletion_support import (
    ANN,
    EVERYWHERE,
    LAMP,
    MARK,
    OF_ANN,
    Away,
    delete,
    log_of,
    marked,
    named_in_files,
)
from tests.service.update_support import Bench, scalar

pytestmark = pytest.mark.usefixtures("one_thread")


class TestNothingStays:
    async def test_of_a_user(self, full: Bench, tmp_path: Path) -> None:
        assert await marked(full.database, ANN) >= {name for name in EVERYWHERE if not name.startswith("clicks")}
        others = await scalar(full.database, "SELECT count(*) FROM interactions WHERE user_id <> :ann", ann=ANN)
        deletion = await delete(full)
        assert await marked(full.database, ANN) == set()
        # Of her events nothing is left either, such as the clicks, which do not name her.
        left = "SELECT count(*) FROM {} WHERE strpos(request_id, 'shown-gone') > 0"
        for table in ("impressions", "clicks"):
            assert await scalar(full.database, left.format(table)) == 0
        assert deletion.id is None
        assert deletion.removed == {
            "rows": 1,
            "interactions": 3 * OF_ANN + 2,  # of the period that is resolved, two items that were shown
            "impressions": 3,
            "clicks": 3,
            "unresolved": 2,
            "histories": 1,
            "passes": 1,
        }
        assert await scalar(full.database, "SELECT count(*) FROM interactions WHERE user_id <> :ann", ann=ANN) == others
        assert (await verify(full.database, tmp_path)).findings == []

    async def test_of_an_item(self, full: Bench, tmp_path: Path) -> None:
        assert await marked(full.database, LAMP) >= {*EVERYWHERE, "items"}
        deletion = await delete(full, "item", LAMP)
        assert await marked(full.database, LAMP) == set()
        assert deletion.removed["catalogue"] == deletion.removed["rows"] == 1
        assert deletion.removed["impressions"] == 2 * 3
        # What else was shown stays where it was; what showed nothing else is gone.
        query = (
            "SELECT array_agg(ROW(item_ids, positions, scores)::text ORDER BY request_id) FROM impressions "
            "WHERE period = {}"
        )
        rest = {5: '"{5,7}","{0.5,0.25}"', 4: '"{0,2}",'}
        for number, of_other in rest.items():
            found = await scalar(full.database, query.format(number))
            assert found == ['("{item1,item2}",,)', f'("{{item1,item2}}",{of_other})']
        assert (await verify(full.database, tmp_path)).findings == []
        # Ann's other clicks are in her history yet.
        async with full.database.read() as session:
            history = [event.item_id for event in await session.past.recent(ANN)]
        assert LAMP not in history and history

    async def test_again_it_changes_nothing_but_what_came_since(self, full: Bench) -> None:
        first = await delete(full)
        assert (await carry_out(full.database, full.context.histories, full.settings.journal, first)) == first
        second = await delete(full)
        assert second.removed == {} and second.deletion != first.deletion
        # An event that is sent again is about a stranger: it is stored, and can be deleted.
        again = EventBatch.of([event for event in log_of(3) if event.user_id == ANN])
        assert (await ingest(full.database, full.context.histories, again)).accepted == OF_ANN
        assert (await delete(full)).removed == {"interactions": OF_ANN}

    async def test_what_an_impression_would_have_become_is_not_reserved_any_more(
        self, full: Bench, tmp_path: Path
    ) -> None:
        """The ids are reserved shortly before the interactions are made, and a worker may die in between."""
        async with full.database.unit_of_work() as work:
            later = datetime.now(UTC) + timedelta(days=1)
            assert await work.labels.reserve(4, later, full.settings.attribution_window) == 2 + 3 + 1
            await work.commit()
        reserved = "SELECT count(*) FROM event_ids WHERE kind = 0 AND period = 4 AND strpos(event_id, 'shown') > 0"
        assert await scalar(full.database, reserved) == 6
        await delete(full)
        assert await scalar(full.database, reserved) == 4
        await delete(full, "item", LAMP)
        assert await scalar(full.database, reserved) == 2
        assert await marked(full.database, MARK) == set()
        assert (await verify(full.database, tmp_path)).findings == []

    async def test_closed_and_learned_after_it_all_is_whole(self, full: Bench, tmp_path: Path) -> None:
        before = {n: (await scalar(full.database, f"SELECT events FROM periods WHERE number = {n}")) for n in (2, 3)}
        await delete(full)
        await delete(full, "item", LAMP)
        # Snapshots and states of before stay, and name nobody.
        assert await named_in_files(full) == []
        for number in (4, 5):
            if number == 5:
                await full.close(5)
            await full.update(number)
            await merge_event_ids(full.database)
            await drop_old_logs(full.database, full.settings)
        assert (await verify(full.database, tmp_path)).findings == []
        assert await marked(full.database, MARK) == set()
        assert any(full.settings.serving_dir.iterdir()) and await named_in_files(full) == []
        for n in (2, 3):  # what was counted once stays
            assert await scalar(full.database, f"SELECT events FROM periods WHERE number = {n}") == before[n]

    async def test_a_period_of_which_nothing_is_left_is_no_failure(self, full: Bench) -> None:
        """Whether the deletion comes before its update or during it."""
        await full.update(4)
        await full.close(5)
        await full.update(5)
        for number in (6, 7):
            events = [Interaction(f"{number}-{n}", ANN, "item1", n % 2, datetime.now(UTC)) for n in range(4)]
            await ingest(full.database, full.context.histories, EventBatch.of(events))
            await full.close(number)
            if number == 7:
                async with full.database.unit_of_work() as work:
                    await work.stages.start(7, "resolve")
                    await work.stages.finish(7, "resolve", 0.0, {"events": 4, "sampling": None})
                    await work.periods.set_labels(7, {}, 4)
                    await work.commit()
            await delete(full)
            await full.update(number)
            version = (await full.outcome())["versions"][number]
            assert version["kind"] == "previous"


ONLY_FOLDED = "INSERT INTO {} VALUES ('old user', '{{{},item1}}', '{{e1,e2}}', ARRAY[now(), now()])"
ONLY_WAITING = """
    INSERT INTO unresolved_positives (interaction_id, period, user_id, item_id, shown_at)
    VALUES ('i', 5, 'old user', 'waiting', now())
"""


class TestCalls:
    async def test_what_is_stored_is_told_and_then_nothing_is(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        user, item = f"/users/{quote(ANN, safe='')}", f"/items/{quote(LAMP, safe='')}"
        async with running_app(full.settings) as one, running_app(full.settings) as two:
            found = (await one.client.get(user)).json()
            assert found["user_id"] == ANN and found["known_to_model"] and found["row"] >= 1
            assert LAMP in found["history"] and len(found["history"]) <= 30
            assert found["recent"]["interactions"] == 30 > found["recent"]["clicks"] > 0
            log = found["log"]
            assert [period["period"] for period in log["periods"]] == [5, 4, 3]
            assert (log["interactions"], log["impressions"], log["clicks"]) == (3 * OF_ANN + 2, 3, 3)
            assert [period["interactions"] for period in log["periods"]] == [OF_ANN, OF_ANN, OF_ANN + 2]
            page = (await one.client.get(f"{user}?limit=1&before=5")).json()["log"]
            assert ([period["period"] for period in page["periods"]], page["next"]) == ([4], 4)
            found = (await one.client.get(item)).json()
            assert (found["item_id"], found["categories"], found["known_to_model"]) == (LAMP, ["c0", "c1"], True)
            assert found["log"]["impressions"] == 6 and found["log"]["clicks"] == 3
            assert found["histories"] >= 2 and found["unresolved"] == 2  # Ann and user1; periods 4 and 5
            for app in (one, two):  # both remember the history
                question = {"user_id": ANN, "items": ["item1"]}
                assert (await app.client.post("/predict", json=question)).status_code == 200
                assert app.state.histories.known(ANN) is not None
            for path, kind in ((user, "user"), (item, "item")):
                answer = await one.client.delete(path)
                assert (answer.status_code, answer.json()["status"]) == (200, "done"), answer.text
                assert answer.json()["removed"]["interactions"] > 0
                again = await one.client.delete(path)
                assert (again.status_code, again.json()["status"], again.json()["removed"]) == (200, "done", {})
                entries = (await one.client.get("/admin/audit?limit=4")).json()["entries"]
                assert {entry["action"] for entry in entries} == {f"delete_{kind}", f"deleted_{kind}"}
                assert MARK not in str(entries)
            assert (await full.redis.keys("asmg:past*")) == []
            for _ in range(100):
                if two.state.histories.known(ANN) is None:
                    break
                await asyncio.sleep(0.02)
            for app in (one, two):
                assert app.state.histories.known(ANN) is None
            await full.update(4)
            while one.state.serving.current().version < 4:  # until the api processes are known to have it
                await one.state.serving.refresh()
                await asyncio.sleep(0.02)
            for path in (user, item):
                answer = await one.client.get(path)
                assert (answer.status_code, answer.json()["title"]) == (404, "Nothing stored")
            async with full.database.unit_of_work() as work:  # what is nowhere else
                await work.connection.execute(text(ONLY_FOLDED.format("user_histories", "folded")))
                await work.connection.execute(text(ONLY_FOLDED.format("user_passes", "passed")))
                await work.connection.execute(text(ONLY_WAITING))
                await work.commit()
            for path, counts in (
                ("/items/folded", (1, 0, 0)),
                ("/items/passed", (0, 1, 0)),
                ("/items/waiting", (0, 0, 1)),
            ):
                found = (await one.client.get(path)).json()
                assert (found["histories"], found["passes"], found["unresolved"]) == counts
                assert (await one.client.delete(path)).json()["status"] == "done"
                assert (await one.client.get(path)).status_code == 404

    async def test_where_it_cannot_be_done_now_it_is_noted(
        self, full: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running_app(full.settings) as api:
            with monkeypatch.context() as patch:
                patch.setattr(api.state.histories, "forget_user", Away().forget_user)
                answer = await api.client.delete(f"/users/{quote(ANN, safe='')}")
                assert (answer.status_code, answer.json()["status"]) == (202, "pending")
            (record,) = [each for each in caplog.records if "not carried out yet" in each.getMessage()]
            assert record.levelname == "WARNING" and "Redis does not answer" in record.getMessage()
            assert answer.json()["deletion"] in record.getMessage() and MARK not in record.getMessage()
            again = await api.client.delete(f"/users/{quote(ANN, safe='')}")
            assert (again.status_code, again.json()["deletion"]) == (200, answer.json()["deletion"])

    async def test_ids_in_paths(self, postgres_dsn: str, redis_url: str, tmp_path: Path) -> None:
        ids = ["a/b", "/a//b/", "ü 漢", "100%", "%2F", "q?x=1#f", "a+b", "..a", "\ufffd", "x" * 256, "é" * 256]
        async with running_app(settings_for(postgres_dsn, redis_url, tmp_path)) as api:
            for kind in ("user", "item"):
                for n, id_ in enumerate(ids):
                    event = {"event_id": f"{kind}{n}", "user_id": "u", "item_id": "i", "label": 0}
                    body = {"interactions": [{**event, f"{kind}_id": id_, "timestamp": "2024-05-01T12:00:00Z"}]}
                    assert (await api.client.post("/interactions", json=body)).json()["accepted"] == 1
                    path = f"/{kind}s/{quote(id_, safe='')}"
                    found = await api.client.get(path)
                    assert (found.status_code, found.json().get(f"{kind}_id")) == (200, id_), found.text
                    assert (await api.client.delete(path)).json()["removed"] == {"interactions": 1}
                for wrong in ("%00", "a%00b", "x" * 257, "%ff", "a%C3", "", "%EF%BF%BD%ff"):
                    for method in ("GET", "DELETE"):
                        answer = await api.client.request(method, f"/{kind}s/{wrong}")
                        assert answer.status_code == 422, (wrong, answer.text)
            for query in ("limit=0", "limit=201", "before=-1", f"before={2**31}", "before=" + "9" * 5000):
                assert (await api.client.get(f"/users/u?{query}")).status_code == 422
            assert await scalar(api.state.database, "SELECT count(*) FROM deletions") == 2 * len(ids)
