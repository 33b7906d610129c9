"""Who makes which shard: one at a time, in a folder and in a bucket; who dies lets go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sum import claims as claims_module
from sum import s3, uploads
from sum.claims import BucketClaims, Claims, FolderClaims
from sum.errors import NotFound, StorageError
from sum.shard_work import open_shards
from sum.shares import SHARE, BucketShare, FolderShare, open_share
from tests.s3_store import BUCKET, bucket

PROJECT = Path(__file__).parents[1]
LEASE = 0.4  # s


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with bucket(tmp_path) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}/run"


@pytest.fixture(params=["folder", "bucket"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Claims, Claims]:
    """The claims as two processes see them."""
    if request.param == "folder":
        return FolderClaims(tmp_path / "claims"), FolderClaims(tmp_path / "claims")
    uri = request.getfixturevalue("uri")
    return BucketClaims(uri, lease=LEASE), BucketClaims(uri, lease=LEASE)


def test_one_at_a_time(two: tuple[Claims, Claims]) -> None:
    one, other = two
    with one.take("a") as mine, other.take("a") as too, other.take("b") as another:
        assert (mine, too, another) == (True, False, True)
    with other.take("a") as mine, one.take("a") as too:
        assert (mine, too) == (True, False)


def test_an_error_lets_go(two: tuple[Claims, Claims]) -> None:
    one, other = two
    with pytest.raises(ZeroDivisionError), one.take("a"):
        _ = 1 / 0
    with other.take("a") as mine:
        assert mine


def test_a_lease_that_is_renewed_is_not_taken_over(uri: str) -> None:
    one, other = BucketClaims(uri, lease=LEASE), BucketClaims(uri, lease=LEASE)
    with one.take("a") as mine:
        assert mine
        cannot_take(other, seconds=3 * LEASE)


def cannot_take(claims: Claims, *, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with claims.take("a") as mine:
            assert not mine
        time.sleep(LEASE / 8)


@pytest.mark.slow
def test_of_many_that_see_a_dead_holder_one_takes_over(uri: str) -> None:
    uploads.put(f"{uri}/a", b'{"worker": "gone", "beat": 7}')
    watchers = [BucketClaims(uri, lease=LEASE) for _ in range(4)]
    for watcher in watchers:
        with watcher.take("a") as mine:
            assert not mine  # seen for the first time: it may be alive
    time.sleep(1.2 * LEASE)
    got, meet = [], threading.Barrier(len(watchers))

    def try_it(watcher: BucketClaims) -> None:
        meet.wait()
        with watcher.take("a") as mine:
            got.append(mine)
            meet.wait()

    threads = [threading.Thread(target=try_it, args=(watcher,)) for watcher in watchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False, False, False, True]
    with pytest.raises(NotFound):
        s3.look_up(f"{uri}/a")  # let go of


def test_a_lease_whose_answer_was_lost_is_known_as_ones_own(uri: str) -> None:
    claims = BucketClaims(uri, lease=LEASE)
    uploads.put(f"{uri}/a", claims._sign(0))  # arrived; the answer did not, and the write was tried again
    with claims.take("a") as mine:
        assert mine


@pytest.mark.slow
def test_a_holder_whose_renewal_got_no_answer_keeps_the_lease(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write arrived and its answer did not: the next try meets the holder's own lease."""
    one, other = BucketClaims(uri, lease=LEASE), BucketClaims(uri, lease=LEASE)
    lost, real = [], claims_module.put

    def put_and_lose(where: str, data: bytes, *, replacing: str | None = None) -> str | None:
        etag = real(where, data, replacing=replacing)
        if replacing and not lost and b'"beat": 1' in data:
            lost.append(etag)
            return None
        return etag

    monkeypatch.setattr(claims_module, "put", put_and_lose)
    with one.take("a") as mine:
        assert mine
        cannot_take(other, seconds=4 * LEASE)
    assert lost


def test_a_late_holder_does_not_end_the_lease_of_its_successor(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BucketClaims, "_renew", lambda *_: None)  # as in a pause longer than the lease
    one, other, third = (BucketClaims(uri, lease=LEASE / 4) for _ in range(3))
    with one.take("a") as mine:
        assert mine
        with other.take("a"):
            pass  # seen for the first time
        time.sleep(LEASE / 2)
        successor = other.take("a")
        assert successor.__enter__()
    with third.take("a") as too:
        assert not too
    successor.__exit__(None, None, None)
    with third.take("a") as now:
        assert now


def test_what_was_made_alone_is_shown_when_there_is_a_share(uri: str, tmp_path: Path) -> None:
    work(FolderShare(tmp_path / "one"), [])
    made = list[str]()
    work(BucketShare(tmp_path / "one", uri, lease=LEASE), made)
    work(BucketShare(tmp_path / "two", uri, lease=LEASE), made)
    assert made == []
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == NAMES


def test_a_killed_holder_lets_go_of_a_folder_at_once(tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from sum.claims import FolderClaims
with FolderClaims(Path({str(tmp_path / "claims")!r})).take("a") as mine:
    print(mine, flush=True)
    time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        claims = FolderClaims(tmp_path / "claims")
        with claims.take("a") as mine:
            assert not mine
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with claims.take("a") as mine:
            assert mine


def test_conditional_writes(uri: str) -> None:
    first = uploads.put(f"{uri}/x", b"1", replacing="")
    assert first
    assert uploads.put(f"{uri}/x", b"2", replacing="") is None
    second = uploads.put(f"{uri}/x", b"3", replacing=first)
    assert second
    assert uploads.put(f"{uri}/x", b"4", replacing=first) is None
    reply = s3.get(f"{uri}/x")
    assert reply is not None
    assert (reply.body, reply.head.etag) == (b"3", second)
    uploads.delete(f"{uri}/x")
    uploads.delete(f"{uri}/x")
    with pytest.raises(NotFound):
        uploads.put(f"{uri}/x", b"5", replacing=second)


NAMES = [f"{number:02d}" for number in range(12)]


def work(share: FolderShare | BucketShare, made: list[str]) -> None:
    for name in open_shards(NAMES, share=share, is_done=lambda name, path: path.read_text() == name):
        made.append(name)
        time.sleep(0.01)
        share.folder.mkdir(parents=True, exist_ok=True)
        (share.folder / name).write_text(name)


@pytest.mark.parametrize("kind", ["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def test_several_workers_make_every_shard_once_and_all_see_all(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "folder":
        shares = [FolderShare(tmp_path / "shards") for _ in range(3)]
    else:
        uri = request.getfixturevalue("uri")
        shares = [BucketShare(tmp_path / str(n), uri, lease=LEASE) for n in range(3)]
    made: list[list[str]] = [[], [], []]
    workers = [threading.Thread(target=work, args=pair) for pair in zip(shares, made, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(name for part in made for name in part) == NAMES
    for share in shares:
        share.refresh()
        assert all(share.has(name) and (share.folder / name).read_text() == name for name in NAMES)


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    share, made = FolderShare(tmp_path), list[str]()
    for name in NAMES:
        (tmp_path / name).write_text(name if name != "03" else "damaged")
    work(share, made)
    assert made == ["03"]


def test_other_processes_of_torchrun_do_not_wait_for_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share, made = FolderShare(tmp_path), list[str]()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with FolderClaims(tmp_path / "claims").take("05"):
        work(share, made)
    assert made == [*NAMES[6:], *NAMES[:5]]  # begins in the middle


def test_the_place_to_share_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHARE, raising=False)
    folder = Path("work/pseudo_label/abc")
    assert open_share(folder).folder == folder
    monkeypatch.setenv(SHARE, str(tmp_path))
    assert open_share(folder).folder == tmp_path / folder
    monkeypatch.setenv(SHARE, "s3://shared/all")
    share = open_share(folder)
    assert isinstance(share, BucketShare)
    assert share.folder == folder
    monkeypatch.setenv(SHARE, str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match=r"SUM_SHARE is '.*nowhere', which is no folder"):
        open_share(folder)
