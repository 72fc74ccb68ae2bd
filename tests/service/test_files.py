"""Files that are written whole or not at all, whichever process is killed in between."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import xxhash

from service import files
from service.files import check_of, create, create_slowly, find, keep_newest, only_one
from tests.service.api_support import eventually

SUFFIX = ".safetensors"
CONTENT = b"weights" * 1000


def made(folder: Path, content: bytes, *, suffix: str = SUFFIX) -> Path:
    with create(folder, suffix) as file:
        file.write(content)
    assert file.path is not None
    return file.path


def content(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


class TestCreate:
    def test_a_file_is_named_by_what_it_holds(self, tmp_path: Path) -> None:
        folder = tmp_path / "not" / "yet"
        with create(folder, SUFFIX) as file:
            file.write(CONTENT[:100])
            assert (file.path, file.size) == (None, 100)
            file.write(memoryview(CONTENT)[100:])
        sha256, xxh3 = hashlib.sha256(CONTENT).hexdigest(), xxhash.xxh3_128_hexdigest(CONTENT)
        assert file.path == folder / f"{sha256}.{xxh3}{SUFFIX}"
        assert (file.digest, file.size) == (sha256, len(CONTENT))
        assert file.path.read_bytes() == CONTENT
        assert list(folder.iterdir()) == [file.path]
        assert find(folder, sha256, SUFFIX) == file.path
        assert check_of(file.path) == xxh3

    def test_an_error_leaves_nothing(self, tmp_path: Path) -> None:
        for error in (RuntimeError, KeyboardInterrupt):
            with pytest.raises(error), create(tmp_path, SUFFIX) as file:
                file.write(CONTENT)
                raise error
            assert file.path is None
            assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            made(tmp_path, CONTENT)
        assert list(tmp_path.iterdir()) == []

    def test_nobody_finds_it_before_it_is_whole(self, tmp_path: Path) -> None:
        with create(tmp_path, SUFFIX) as file:
            file.write(CONTENT)
            assert find(tmp_path, file.digest, SUFFIX) is None
        assert find(tmp_path, file.digest, SUFFIX) is not None

    def test_the_same_content_by_many_at_once(self, tmp_path: Path) -> None:
        paths: list[Path] = []
        threads = [threading.Thread(target=lambda: paths.append(made(tmp_path, CONTENT))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(paths) == 8
        assert list(tmp_path.iterdir()) == [*set(paths)]
        assert paths[0].read_bytes() == CONTENT

    async def test_slowly_is_the_same_and_never_on_the_event_loop(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[int] = []
        fsync = os.fsync

        def noted(descriptor: int) -> None:
            synced.append(threading.get_ident())
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", noted)
        async with create_slowly(tmp_path, SUFFIX) as file:
            await asyncio.to_thread(file.write, CONTENT)
        assert file.path == made(tmp_path / "other", CONTENT).parent.parent / file.name(SUFFIX)
        assert synced[:2] and threading.get_ident() not in synced[:2]
        with pytest.raises(RuntimeError):
            async with create_slowly(tmp_path, SUFFIX) as other:
                other.write(b"other")
                raise RuntimeError
        assert content(tmp_path) == [file.path.name, "other"]

    async def test_slowly_leaves_nothing_when_it_is_cancelled(self, tmp_path: Path) -> None:
        begun = asyncio.Event()

        async def write() -> None:
            async with create_slowly(tmp_path, SUFFIX) as file:
                file.write(CONTENT)
                begun.set()
                await asyncio.sleep(3600)

        task = asyncio.create_task(write())
        await asyncio.wait_for(begun.wait(), 30)
        assert len(content(tmp_path)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert content(tmp_path) == []


class TestNames:
    @pytest.mark.parametrize(
        "name, check",
        [
            (f"{'a' * 64}.{'b' * 32}.safetensors", "b" * 32),
            (f"{'a' * 64}.safetensors", None),
            (f"{'a' * 64}.short.safetensors", None),
            ("model", None),
        ],
    )
    def test_the_check_in_a_name(self, name: str, check: str | None) -> None:
        assert check_of(Path("/folder") / name) == check

    def test_only_this_content_of_this_kind_is_found(self, tmp_path: Path) -> None:
        path = made(tmp_path, CONTENT)
        digest = path.name.partition(".")[0]
        assert find(tmp_path, digest, ".other") is None
        assert find(tmp_path, digest[:-1], SUFFIX) is None
        assert find(tmp_path, "0" * 64, SUFFIX) is None
        assert find(tmp_path / "none", digest, SUFFIX) is None


def keep(*paths: Path) -> None:
    keep_newest(paths[0].parent, SUFFIX, [path.name.partition(".")[0] for path in paths])


class TestKeepNewest:
    def test_all_that_are_used_stay_however_many(self, tmp_path: Path) -> None:
        paths = [made(tmp_path, bytes([n])) for n in range(9)]
        for place, path in enumerate(paths):
            age(path, 1000 - place)
        keep(*paths[2:7])
        assert set(tmp_path.iterdir()) == set(paths[2:7])

    def test_all_but_the_last_three_used_go(self, tmp_path: Path) -> None:
        paths = [made(tmp_path, bytes([n])) for n in range(6)]
        for place, path in enumerate(paths):
            age(path, 1000 - place)
        other = made(tmp_path, b"of another kind", suffix=".txt")
        keep(paths[1])  # an old one that is used again
        assert set(tmp_path.iterdir()) == {paths[1], paths[5], paths[4], other}
        assert time.time() - paths[1].stat().st_mtime < 100

    def test_what_was_begun_long_ago_goes_and_what_is_under_way_stays(self, tmp_path: Path) -> None:
        path = made(tmp_path, CONTENT)
        with create(tmp_path, SUFFIX) as file:
            file.write(CONTENT)
            dead = tmp_path / f"{files.UNFINISHED}dead"
            dead.write_bytes(CONTENT)
            age(dead, files.UNFINISHED_SECONDS + 60)
            keep(path)
            assert not dead.exists()
        assert file.path == path

    def test_a_file_that_somebody_else_removed_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        paths = [made(tmp_path, bytes([n])) for n in range(5)]
        real = Path.iterdir

        def iterdir(folder: Path) -> list[Path]:
            found = list(real(folder))
            for path in paths[:2]:
                path.unlink()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", iterdir)
            keep(paths[4])
        assert set(tmp_path.iterdir()) == set(paths[2:])

    def test_a_process_goes_on_with_a_file_that_was_removed(self, tmp_path: Path) -> None:
        path = made(tmp_path, CONTENT)
        with path.open("rb") as opened:
            age(path, 1000)
            for number in range(3):
                keep(made(tmp_path, bytes([number])))
            assert not path.exists()
            assert opened.read() == CONTENT


WRITE = """
import sys
from pathlib import Path
from service.files import create

with create(Path(sys.argv[1]), ".safetensors") as file:
    for _ in range(64):
        file.write(b"x" * 100_000)
    print("half", flush=True)
    sys.stdin.readline()
"""

HOLD = """
import asyncio, sys
from pathlib import Path
from service.files import only_one

async def hold():
    async with only_one(Path(sys.argv[1]), "fetch"):
        print("held", flush=True)
        sys.stdin.readline()

asyncio.run(hold())
"""


def child(program: str, folder: Path) -> "subprocess.Popen[str]":
    """A process that has come to its first line."""
    command = [sys.executable, "-c", program, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() in ("half\n", "held\n")
    return process


def end(process: "subprocess.Popen[str]", *, kill: bool) -> None:
    if kill:
        process.kill()
    process.communicate("\n", timeout=30)
    assert process.returncode == (-signal.SIGKILL if kill else 0)


def test_a_killed_writer_leaves_what_is_tidied_up_later(tmp_path: Path) -> None:
    end(child(WRITE, tmp_path), kill=True)
    [left] = tmp_path.iterdir()
    assert left.name.startswith(files.UNFINISHED)
    assert find(tmp_path, hashlib.sha256(left.read_bytes()).hexdigest(), SUFFIX) is None
    path = made(tmp_path, CONTENT)
    keep(path)
    assert set(tmp_path.iterdir()) == {left, path}  # its writer could still be at work
    age(left, files.UNFINISHED_SECONDS + 1)
    keep(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_was_not_killed_leaves_the_file(tmp_path: Path) -> None:
    end(child(WRITE, tmp_path), kill=False)
    [path] = tmp_path.iterdir()
    assert path.name.partition(".")[0] == hashlib.sha256(b"x" * 6_400_000).hexdigest()


class TestOnlyOne:
    @pytest.mark.parametrize("kill", [False, True])
    async def test_another_process_is_waited_for_until_it_ends_or_dies(self, tmp_path: Path, kill: bool) -> None:
        folder = tmp_path / "new"
        holder = await asyncio.to_thread(child, HOLD, folder)
        inside = asyncio.Event()

        async def enter() -> None:
            async with only_one(folder, "fetch"):
                inside.set()

        waiting = asyncio.create_task(enter())
        await asyncio.sleep(4 * files.LOCK_POLL_SECONDS)
        assert not inside.is_set()
        async with only_one(folder, "something else"):  # another name is another lock
            pass
        await asyncio.to_thread(end, holder, kill=kill)
        await waiting
        assert inside.is_set()

    async def test_tasks_of_one_process_exclude_each_other(self, tmp_path: Path) -> None:
        inside, most = 0, 0

        async def enter() -> None:
            nonlocal inside, most
            async with only_one(tmp_path, "fetch"):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1

        await asyncio.gather(*(enter() for _ in range(5)))
        assert (inside, most) == (0, 1)

    async def test_an_error_and_a_cancelled_waiter_free_it(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError):
            async with only_one(tmp_path, "fetch"):
                raise RuntimeError
        entered: list[str] = []

        async def enter(name: str) -> None:
            async with only_one(tmp_path, "fetch"):
                entered.append(name)

        async with only_one(tmp_path, "fetch"):
            waiters = [asyncio.create_task(enter(name)) for name in ("cancelled", "patient")]
            await asyncio.sleep(0.01)
            waiters[0].cancel()
            await asyncio.wait(waiters[:1])
        await eventually(waiters[1].done)
        assert entered == ["patient"]
