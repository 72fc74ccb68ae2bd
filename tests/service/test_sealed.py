"""Files of a running installation are changed, truncated and replaced, without effect on what is served."""

import asyncio
import errno
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.files import create, find
from service.serving.loading import load_snapshot
from service.serving.prior import prior_snapshot
from service.serving.sealed import NOTE_PREFIX, seal
from service.storage.artifacts.store import ArtifactStore
from tests.service.api_support import Api, eventually, running_app, settings_for
from tests.service.programs import program, wait_for
from tests.service.test_swap import SUFFIX, Source, digest, following, harm, serving_of

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux has memory files")

QUESTION = {"user_id": "u", "items": ["a", "b"], "history": ["c"]}


def flip(path: Path) -> None:
    """Change a byte in the middle of a file, in place."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        if byte := file.read(1):  # the notes are empty
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0xFF]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def is_replaced(path: Path, content: bytes) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_mode & 0o777 == 0o400 and path.read_bytes() == content
    return False


def all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_two_processes_answer_alike_whatever_happens_to_their_files(
    postgres_dsn: str, redis_url: str, tmp_path: Path
) -> None:
    """Every file in the serving folder is damaged in every way that its owner or root could, under load."""
    given = {"ASMG_POSTGRES_DSN": postgres_dsn, "ASMG_REDIS_URL": redis_url, "ASMG_DATA_DIR": str(tmp_path / "data")}
    given |= {"ASMG_SNAPSHOT_CHECK_SECONDS": "0.1", "ASMG_API_WORKERS": "2", "ASMG_PRIOR_CTR": "0.25"}
    serving = tmp_path / "data" / "serving"
    with program(tmp_path, "--no-worker", **given) as running:
        api = [child for child in running.children() if "api" in child.cmdline()]
        assert len(api) == 2
        answers: set[tuple[int, str]] = set()
        asked, stop = [0], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                with httpx.Client(base_url=running.url, timeout=20) as client:  # another connection: either process
                    for _ in range(20):
                        response = client.post("/predict", json=QUESTION)
                        answers.add((response.status_code, str(response.json().get("scores"))))
                        asked[0] += 1

        clients = [threading.Thread(target=ask) for _ in range(2)]
        for client in clients:
            client.start()
        try:
            for harm_it in (flip, cut, empty, overwrite):
                [path] = wait_for(lambda: list(serving.glob("*" + SUFFIX)))
                content = path.read_bytes()
                assert path.stat().st_mode & 0o777 == 0o400
                for file in all_files(serving):
                    file.chmod(0o600)
                    harm_it(file)
                # It is found, and another file takes the place of this one.
                wait_for(partial(is_replaced, path, content))
            reached = asked[0]
            wait_for(lambda: asked[0] > reached + 100)
        finally:
            stop.set()
            for client in clients:
                client.join()
        assert answers == {(200, "[0.25, 0.25]")}
        assert all(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in api)
        assert {child.pid for child in running.children()} >= {child.pid for child in api}  # none was started anew
        metrics = httpx.get(f"{running.url}/metrics").text
        assert float(re.findall(r"^asmg_snapshot_damage_total (\S+)", metrics, re.MULTILINE)[0]) >= 4
        assert "its file, which is not what is served, has changed since it was loaded" in running.err
        # One copy in memory, however many processes.
        inodes = {inode for child in api for inode in held("memfd:asmg:", child.pid)}
        assert len(inodes) == 1
        # A process that starts now maps it too, although the one that copied it may be gone.
        api[0].kill()
        wait_for(lambda: len(both := holders(serving)) == 2 and api[0].pid not in both)
        assert {inode for process in holders(serving) for inode in held("memfd:asmg:", process)} == inodes
        assert (serving.stat().st_mode & 0o777) == 0o700


def holders(folder: Path) -> set[int]:
    """Processes that say that they hold a copy."""
    return {int(note.name.removeprefix(NOTE_PREFIX).split("-")[0]) for note in folder.glob(f"{NOTE_PREFIX}*")}


def made(folder: Path, content: bytes = b"content" * 1000) -> Path:
    with create(folder, SUFFIX) as file:
        file.write(content)
    assert file.path is not None
    return file.path


class TestSeal:
    def test_nobody_can_change_it(self, tmp_path: Path) -> None:
        sealed = seal(made(tmp_path))
        try:
            descriptor = os.open(sealed.path, os.O_RDWR)
            for change in (
                lambda: os.pwrite(descriptor, b"x", 0),
                lambda: os.ftruncate(descriptor, 1),
                lambda: os.ftruncate(descriptor, 10**6),
                lambda: os.truncate(sealed.path, 1),
                lambda: os.pwrite(descriptor, b"x", 7000),
            ):
                with pytest.raises(PermissionError):
                    change()
            os.close(descriptor)
            assert sealed.path.read_bytes() == b"content" * 1000
        finally:
            sealed.close()

    def test_there_is_one_copy_until_the_last_has_closed_it(self, tmp_path: Path) -> None:
        path = made(tmp_path)
        first, second = seal(path), seal(path)
        assert os.path.samefile(first.path, second.path)
        first.close()
        third = seal(path)  # the note of the first is gone, that of the second leads to it
        assert os.path.samefile(second.path, third.path)
        inode = os.stat(third.path).st_ino
        for one in (second, third):
            one.close()
        assert list(tmp_path.glob(f"{NOTE_PREFIX}*")) == []
        last = seal(path)
        assert os.stat(last.path).st_ino != inode
        last.close()

    @pytest.mark.parametrize("process, descriptor", [(str(2**22 + 1), "3"), ("self", "0"), ("1", "x"), ("this", "1")])
    def test_a_note_that_leads_nowhere_is_removed(self, tmp_path: Path, process: str, descriptor: str) -> None:
        path = made(tmp_path)
        process = str(os.getpid()) if process == "this" else process
        note = tmp_path / f"{NOTE_PREFIX}{process}-{descriptor}-{path.stem}-{socket.gethostname()}"
        note.touch()
        sealed = seal(path)
        assert not note.exists()
        assert sealed.path.read_bytes() == path.read_bytes()
        sealed.close()

    def test_all_that_lead_nowhere_are_removed_wherever_they_stand(self, tmp_path: Path) -> None:
        path = made(tmp_path)
        stale = [f"{2**22 + number}-3-{path.stem}-{socket.gethostname()}" for number in range(1, 21)]
        first = seal(path)
        for name in stale:
            (tmp_path / f"{NOTE_PREFIX}{name}").touch()
        second = seal(path)
        assert os.path.samefile(first.path, second.path)
        assert holders(tmp_path) == {os.getpid()}
        first.close()
        second.close()

    @pytest.mark.parametrize("name", ["{pid}-7-{stem}-other-container", "{pid}-7-{stem}", "made_by_mkstemp"])
    def test_what_another_container_holds_is_left_alone(self, tmp_path: Path, name: str) -> None:
        """Containers number their processes separately: the process with that number here did not write the note."""
        path = made(tmp_path)
        note = tmp_path / f"{NOTE_PREFIX}{name.format(pid=os.getpid(), stem=path.stem)}"
        note.touch()
        first, second = seal(path), seal(path)
        assert os.path.samefile(first.path, second.path)
        for one in (first, second):
            one.close()
        assert note.exists()
        os.utime(note, times=(time.time() - 90_000,) * 2)  # of a container that is gone for a day
        seal(path).close()
        assert not note.exists()

    def test_containers_that_share_a_folder_hold_a_copy_each(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = made(tmp_path)
        own = seal(path)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: "other-container")
            others = [seal(path), seal(path)]
            assert os.path.samefile(others[0].path, others[1].path)
            assert not os.path.samefile(own.path, others[0].path)
        again = seal(path)
        assert os.path.samefile(own.path, again.path)
        for one in (own, *others, again):
            one.close()
        assert list(tmp_path.glob(f"{NOTE_PREFIX}*")) == []

    def test_a_memory_file_without_seals_is_not_taken(self, tmp_path: Path) -> None:
        path = made(tmp_path)
        other = os.memfd_create(f"asmg:{path.stem}", os.MFD_ALLOW_SEALING)
        os.write(other, b"something else")
        note = tmp_path / f"{NOTE_PREFIX}{os.getpid()}-{other}-{path.stem}-{socket.gethostname()}"
        note.touch()
        sealed = seal(path)
        assert sealed.path.read_bytes() == path.read_bytes()
        sealed.close()
        os.close(other)

    def test_a_snapshot_that_nobody_uses_any_more_is_freed(self, tmp_path: Path) -> None:
        path = made(tmp_path, prior_snapshot(0.5))
        snapshot = load_snapshot(path, 1, 1)
        assert len(held(path.stem)) == 2  # the mapping has one too
        del snapshot
        wait_for(lambda: not held(path.stem))
        assert list(tmp_path.glob(f"{NOTE_PREFIX}*")) == []


def held(name: str, process: int | str = "self") -> list[int]:
    """Inodes of the descriptors of a process whose file is called so."""
    found = []
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed while the list was read
            if name in os.readlink(descriptor):
                found.append(descriptor.stat().st_ino)
    return found


UNTRUSTED: dict[str, Callable[[Path, Path], None]] = {
    "a symbolic link": lambda path, kept: (kept.symlink_to(path.rename(path.with_suffix(".moved"))), None)[1],
    "a hard link": lambda path, kept: os.link(path, path.with_suffix(".other")),
    "writable by others": lambda path, kept: path.chmod(0o646),
    "writable by the group": lambda path, kept: path.chmod(0o460),
    "a pipe": lambda path, kept: (path.unlink(), os.mkfifo(kept))[1],
    "of another user": lambda path, kept: os.chown(path, 12345, -1),
}


@pytest.mark.parametrize("kind", UNTRUSTED)
async def test_a_file_that_others_could_change_is_fetched_anew(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "of another user" and os.geteuid():
        pytest.skip("only root can give files away")
    source = Source(tmp_path)
    source.publish(1, at=time.time())
    await serving_of(source).refresh()
    path = find(tmp_path, digest(1), SUFFIX)
    assert path is not None
    UNTRUSTED[kind](path, path)
    model = serving_of(source)
    await model.refresh()
    assert source.fetched == [digest(1)] * 2
    assert path.is_file() and not path.is_symlink()
    assert (path.stat().st_mode & 0o777, path.stat().st_nlink) == (0o400, 1)
    assert "is removed, to be fetched again" in caplog.text
    assert model.current().predict("u", ["a"], []).scores == pytest.approx([0.5])


class TestCheck:
    """Without memory files the served snapshot could still be changed; here through /proc."""

    @pytest.fixture
    def without_memory_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> int:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(os, "memfd_create", refuse)

    @staticmethod
    def served_file(folder: Path) -> Path:
        """The file without a name that this process maps."""
        [found] = {
            os.readlink(f"/proc/self/fd/{fd}"): Path(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}") and str(folder / NOTE_PREFIX) in os.readlink(f"/proc/self/fd/{fd}")
        }.values()
        return found

    @pytest.mark.parametrize("damage", [flip, cut])
    async def test_what_is_served_is_found_damaged_and_replaced(
        self,
        tmp_path: Path,
        damage: Callable[[Path], None],
        without_memory_files: None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        source, counted = Source(tmp_path), []
        model = serving_of(source, check_seconds=0.05, on_damage=lambda: counted.append(1))
        source.publish(1, at=time.time())
        async with following(model):
            await model.wait_loaded()
            first = model.current()
            descriptor = self.served_file(tmp_path)
            with caplog.at_level(logging.WARNING):
                damage(descriptor)
                await eventually(lambda: model.current() is not first)
            assert "model version 1: what is served of it has changed since it was loaded" in caplog.text
            assert model.current().version == 1
            assert model.current().predict("u", ["a"], []).scores == pytest.approx([0.5])
            assert len(counted) == 1
            await eventually(lambda: model.damage is None)

    async def test_readiness_says_so_until_it_is_mended(self, tmp_path: Path) -> None:
        source = Source(tmp_path)
        model = serving_of(source, check_seconds=0.05)
        source.publish(1, at=time.time())
        async with following(model):
            await model.wait_loaded()
            path = find(tmp_path, digest(1), SUFFIX)
            assert path is not None
            source.failing = True
            harm(path, b"other")
            await eventually(lambda: model.damage is not None, seconds=60)
            await eventually(lambda: len(source.fetched) >= 3)  # it is tried again and again
            assert model.damage is not None
            assert model.current().predict("u", ["a"], []).scores == pytest.approx([0.5])
            source.failing = False
            await eventually(lambda: model.damage is None)
            assert path.read_bytes() == source.content

    async def test_a_file_that_is_gone_comes_back_and_is_no_damage(self, tmp_path: Path) -> None:
        source, counted = Source(tmp_path), []
        model = serving_of(source, check_seconds=0.05, on_damage=lambda: counted.append(1))
        source.publish(1, at=time.time())
        async with following(model):
            await model.wait_loaded()
            path = find(tmp_path, digest(1), SUFFIX)
            assert path is not None
            path.unlink()
            await eventually(path.exists)
        assert counted == []


async def test_readyz_names_the_damage(
    postgres_dsn: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, fetch = asyncio.Event(), ArtifactStore.fetch_file
    release.set()

    async def fetch_slowly(self: ArtifactStore, digest: str, folder: Path) -> Path:
        await release.wait()
        return await fetch(self, digest, folder)

    monkeypatch.setattr(ArtifactStore, "fetch_file", fetch_slowly)
    settings = settings_for(postgres_dsn, redis_url, tmp_path, snapshot_check_seconds=0.05)
    async with running_app(settings) as api:
        release.clear()
        [path] = settings.serving_dir.glob("*" + SUFFIX)
        harm(path, b"other")
        await eventually(lambda: api.state.serving.damage is not None, seconds=60)
        assert (await model_check(api)).startswith("version 0: its file, which is not what is served, has changed")
        assert "asmg_snapshot_damage_total 1.0" in (await api.client.get("/metrics")).text
        release.set()
        await eventually(lambda: api.state.serving.damage is None)
        assert await model_check(api) == "ok"


async def model_check(api: Api) -> str:
    return str((await api.client.get("/readyz")).json()["checks"]["model"])
