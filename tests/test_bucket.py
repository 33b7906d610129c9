"""A bucket as data, through a server that fails: everything arrives, byte for byte, and nothing is fetched twice."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sum import downloads, s3
from sum.data.archives import list_members
from sum.data.layouts import LAYOUTS
from sum.data.selection import Selection, run_jobs
from sum.data.sources import Problem, Sample, Source
from sum.errors import DataError, NotFound, Refused, StorageError
from sum.storage import exists, fetch, keep, list_files, open_whole, read_bytes, size_of
from tests.fault_server import FAULTS, FaultServer, fault_server
from tests.s3_store import empty_bucket, environment, s3_server

log = logging.getLogger(__name__)
PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def moto() -> Iterator[tuple[str, int]]:
    """An S3 server."""
    with s3_server() as place:
        yield place


@pytest.fixture
def proxy(moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultServer]:
    """The server behind a proxy, an empty bucket, an empty cache, quick pauses."""
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_MAX_ATTEMPTS", "SUM_CACHE_GB", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(s3, "TIMEOUT", 2.0)  # s: a busy machine answers late too
    monkeypatch.setattr(s3, "PAUSE", 0.01)
    empty_bucket("photos")
    with fault_server(moto) as server:
        for name, value in environment(tmp_path, url=server.url).items():
            monkeypatch.setenv(name, value)
        yield server


def put(key: str, body: bytes) -> str:
    """Past HTTP, into the store of the server in this process."""
    from moto.s3.models import s3_backends

    s3_backends["123456789012"]["aws"].put_object("photos", key, body)
    return f"s3://photos/{key}"


def delete(key: str) -> None:
    from moto.s3.models import s3_backends

    s3_backends["123456789012"]["aws"].delete_object("photos", key)


def objects(folder: Path) -> list[Path]:
    return [path for path in folder.glob("cache/objects/*/*") if not path.name.startswith(".")]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=[pytest.mark.slow] if name == "stall" else []) for name in FAULTS]
)
def test_each_fault_is_got_over(proxy: FaultServer, fault: str) -> None:
    body = os.urandom(200_000)
    uri = put("a.jpg", body)
    proxy.first(fault, 2)
    assert read_bytes(uri) == body
    assert (proxy.gets, proxy.faults) == (3, {fault: 2})


@pytest.mark.parametrize("fault", ["SlowDown", "truncate", "flip", "reset"])
def test_what_does_not_pass_ends_after_the_attempts_that_the_environment_allows(
    proxy: FaultServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    uri = put("a.jpg", b"x" * 1000)
    proxy.first(fault, 99)
    with pytest.raises(StorageError, match=r"s3://photos/a\.jpg.*\(tried 3 times\)"):
        read_bytes(uri)
    assert proxy.gets == 3


def test_a_known_hash_is_answered_without_the_server_and_an_unknown_one_with_a_question(proxy: FaultServer) -> None:
    body = os.urandom(5000)
    uri = put("a.jpg", body)
    assert read_bytes(uri) == body
    assert read_bytes(uri, sha256=sha(body)) == body
    assert proxy.gets == 1
    assert read_bytes(uri) == body
    assert proxy.statuses == {200: 1, 304: 1}
    put("a.jpg", b"other")
    assert read_bytes(uri) == b"other"
    assert read_bytes(uri, sha256=sha(body)) == body  # the version of the manifest is still here
    [old] = [path for path in objects(Path()) if path.name == sha(body)]
    old.write_bytes(b"damaged on the disk")
    with pytest.raises(DataError, match=r"a\.jpg is not what it was at ingest .* the file has changed"):
        read_bytes(uri, sha256=sha(body))
    assert not old.exists()
    assert read_bytes(uri, sha256=sha(b"other")) == b"other"


def test_the_same_bytes_under_two_names_are_kept_once(proxy: FaultServer) -> None:
    for name in ("a.jpg", "b.jpg"):
        assert read_bytes(put(name, b"same")) == b"same"
    assert [path.name for path in objects(Path())] == [sha(b"same")]


def test_the_cache_is_bounded_and_what_was_used_last_stays(proxy: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUM_CACHE_GB", "0.001")  # 1 MB
    bodies = [os.urandom(100_000) for _ in range(30)]
    for number, body in enumerate(bodies):
        assert read_bytes(put(f"{number}.jpg", body)) == body
        assert read_bytes("s3://photos/0.jpg", sha256=sha(bodies[0])) == bodies[0]  # in use all the time
        assert sum(path.stat().st_size for path in Path("cache").rglob("*") if path.is_file()) <= 1_000_000
    assert proxy.gets == 30  # number 0 was never lost
    kept = {path.name for path in objects(Path())}
    assert {sha(bodies[0]), sha(bodies[29])} <= kept
    assert 5 <= len(kept) <= 9
    monkeypatch.setenv("SUM_CACHE_GB", "0")
    monkeypatch.setenv("SUM_CACHE", "none")
    assert read_bytes("s3://photos/3.jpg") == bodies[3]
    assert not Path("none").exists()
    for wrong in ("many", "-1", "inf", "nan"):
        monkeypatch.setenv("SUM_CACHE_GB", wrong)
        with pytest.raises(StorageError, match=f"SUM_CACHE_GB is '{wrong}'"):
            read_bytes("s3://photos/3.jpg")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Downloads in parts of 64 KiB, of which a small object has many."""
    from sum import storage

    monkeypatch.setattr(downloads, "PART", 1 << 16)
    monkeypatch.setattr(storage, "PART", 1 << 16)
    return 1 << 16


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_a_large_object_comes_in_parts_by_both_ways_in_spite_of_faults(proxy: FaultServer, tmp_path: Path) -> None:
    body = os.urandom((20 << 16) + 77)
    uri = put("big.json", body)
    proxy.every(7, ("500", "SlowDown", "truncate", "reset"))
    assert read_bytes(uri) == body
    assert len(set(proxy.ranges())) == 21
    assert read_bytes(uri) == body  # kept: the server only says that it is the same
    assert proxy.statuses[304] == 1
    assert not list(Path("cache/parts").glob("*/data"))
    target = fetch(uri, tmp_path / "weights")
    assert (target.name, target.read_bytes()) == ("big.json", body)
    proxy.every(7, ("flip",))  # no part has a checksum: the whole has
    put("big2.json", body[::-1])
    assert fetch("s3://photos/big2.json", tmp_path / "weights").read_bytes() == body[::-1]
    assert proxy.faults["flip"]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(5 << 20, 5 << 20, 1000), (6 << 20, 5 << 20, 2 << 20)], ids=["alike", "unlike"])
def test_an_object_uploaded_in_parts_is_checked_by_their_checksums(
    proxy: FaultServer, tmp_path: Path, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from boto3.session import Session

    monkeypatch.setattr(s3, "TIMEOUT", 5.0)
    client = Session().client("s3", endpoint_url=proxy.url)
    place = {"Bucket": "photos", "Key": "big.pth"}
    upload = client.create_multipart_upload(**place)["UploadId"]
    parts, done = [os.urandom(size) for size in sizes], []
    for number, part in enumerate(parts, start=1):
        tag = client.upload_part(**place, UploadId=upload, PartNumber=number, Body=part)["ETag"]
        done.append({"ETag": tag, "PartNumber": number})
    client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": done})
    proxy.first("flip")
    found = fetch("s3://photos/big.pth", tmp_path / "weights").read_bytes()
    assert found == b"".join(parts)
    assert proxy.faults["flip"] == 1


@pytest.mark.usefixtures("small_parts")
def test_a_large_object_is_opened_as_a_copy_and_a_small_one_in_memory(
    proxy: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (0, 1000, (3 << 16) + 7):
        body = os.urandom(size)
        uri = put(f"{size}.json", body)
        for _ in range(2):
            with open_whole(uri) as file:
                assert isinstance(file, io.BytesIO) == (size <= 1 << 16)
                assert file.read() == body
    assert len(proxy.ranges()) == 4  # the parts, once
    [copy] = [path for path in objects(Path()) if path.name == sha(body)]
    copy.write_bytes(b"damaged")
    with open_whole(uri) as file:
        copy.unlink()  # from the cache, for whatever else needs room
        assert file.read() == body
    monkeypatch.setenv("SUM_CACHE_GB", "0")
    with open_whole(uri) as file:
        assert file.read() == body


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_versions_of_a_large_object_are_not_mixed(proxy: FaultServer) -> None:
    old, new = b"o" * (20 << 16), b"n" * (20 << 16)
    uri = put("big.json", old)

    def replace_midway(number: int, _: object) -> str:
        if number == 9:
            put("big.json", new)
        return ""

    proxy.choose = replace_midway
    assert read_bytes(uri) == new
    assert proxy.statuses[412] > 0


READ = """
import sys
from pathlib import Path
from sum import downloads, storage
downloads.PART = storage.PART = 1 << 16
if sys.argv[2] == "fetch":
    data = storage.fetch(sys.argv[1], Path("weights")).read_bytes()
else:
    data = storage.read_bytes(sys.argv[1])
import hashlib
print(hashlib.sha256(data).hexdigest())
"""


def start(uri: str, way: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(
        [sys.executable, "-c", READ, uri, way], stdout=subprocess.PIPE, text=True, env=environment, cwd=Path.cwd()
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", ["read", "fetch"])
def test_after_a_kill_only_the_missing_parts_are_asked_for(proxy: FaultServer, way: str) -> None:
    body = os.urandom(40 << 16)
    uri = put("big.bin", body)
    proxy.pause = 0.1
    process = start(uri, way)
    deadline = time.monotonic() + 30
    while not (found := list(Path().rglob("done"))) or found[0].read_text().count(" ") < 12:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [journal] = found
    arrived = {int(line.split()[0]) for line in journal.read_text().splitlines() if len(line.split()) == 2}
    assert 12 <= len(arrived) < 40
    proxy.pause = 0.0
    time.sleep(0.3)  # requests of the killed process
    proxy.seen.clear()
    second = start(uri, way)
    assert second.communicate(timeout=60)[0].strip() == sha(body)
    asked = sorted(int(span.removeprefix("bytes=").split("-")[0]) >> 16 for span in proxy.ranges())
    assert asked == sorted(set(range(40)) - arrived)


@pytest.mark.slow
def test_two_processes_at_once_fetch_each_part_once(proxy: FaultServer) -> None:
    body = os.urandom(30 << 16)
    uri = put("big.bin", body)
    proxy.pause = 0.02
    both = [start(uri, "read") for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [sha(body)] * 2
    assert len(proxy.ranges()) == len(set(proxy.ranges())) == 30
    assert [path.name for path in objects(Path())] == [sha(body)]


def shard(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_shard_in_a_bucket_is_listed_by_its_headers_and_read_by_two_requests_a_member(proxy: FaultServer) -> None:
    files = {f"sa_{number}.jpg": os.urandom(600_000) for number in range(10)}
    uri = put("shards/sa_000000.tar", shard(files))
    listing = list_members(uri)
    assert not listing.refused
    assert sum(int(b) - int(a) + 1 for a, b in (r[6:].split("-") for r in proxy.ranges())) < 4_000_000  # of 6 MB
    before = proxy.gets
    assert {member.name: read_bytes(member.uri) for member in listing.members} == files
    assert proxy.gets == before + 20  # no part has a checksum: without a known hash it must come twice the same
    assert [size_of(member.uri) for member in listing.members] == [600_000] * 10
    for member in listing.members:
        assert read_bytes(member.uri, sha256=sha(files[member.name])) == files[member.name]
    assert proxy.gets == before + 20
    for path in objects(Path()):
        path.unlink()
    proxy.first("flip")  # a part has no checksum of the server: the manifest's hash finds the wrong byte
    assert read_bytes(listing.members[3].uri, sha256=sha(files["sa_3.jpg"])) == files["sa_3.jpg"]
    with pytest.raises(DataError, match="the file has changed"):
        read_bytes(listing.members[3].uri, sha256="0" * 64)


def test_an_archive_that_is_the_same_costs_one_question(
    proxy: FaultServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"a/{number}.jpg": os.urandom(700 * number) for number in range(9)}
    uri = put("one.tar", shard(files))
    first = list_members(uri)
    assert [member.name for member in first.members] == list(files)
    proxy.seen.clear()
    assert list_members(uri) == first
    assert [method for method, _, _ in proxy.seen] == ["HEAD"]
    other = {name: data[::-1] for name, data in reversed(files.items())}
    put("one.tar", shard(other))  # of the same size
    assert {member.name: read_bytes(member.uri) for member in list_members(uri).members} == other
    put("one.tar", shard(files))
    assert list_members(uri) == first
    caplog.clear()
    for spoil in (b"", b"damaged", None):
        for path in objects(Path()):
            path.write_bytes(spoil) if spoil is not None else path.unlink()
        assert list_members(uri) == first
        assert "its listing is gone from the cache, or damaged: it is listed again" in caplog.text
        caplog.clear()
    proxy.seen.clear()
    assert list_members(uri) == first
    assert [method for method, _, _ in proxy.seen] == ["HEAD"]
    for name, value in (("SUM_CACHE_GB", "0"), ("SUM_CACHE", "none")):
        monkeypatch.setenv(name, value)
    assert list_members(uri) == first
    assert proxy.gets
    assert not Path("none").exists()


@pytest.mark.parametrize(
    "listing",
    [
        b"[]",
        b"{}",
        b"no JSON",
        b'{"places": [["a.jpg", 512]], "refused": []}',
        b'{"places": [["a.jpg", 512, 99999]], "refused": []}',  # beyond its end
        b'{"places": [["a.jpg", 512, -1]], "refused": []}',
        b'{"places": [["", 512, 10]], "refused": []}',
        b'{"places": [["a.jpg", 512, 10], ["a.jpg", 1024, 10]], "refused": []}',
        b'{"places": [["a.jpg", 1024, 10], ["b.jpg", 512, 10]], "refused": []}',  # one in the other's place
        b'{"places": [["a.jpg", true, 10]], "refused": []}',
        b'{"places": [], "refused": [["x", 1]]}',
    ],
)
def test_a_kept_listing_is_believed_only_when_it_can_be_one(
    proxy: FaultServer, listing: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    uri = put("one.tar", shard({"a.jpg": b"x" * 600}))
    head = s3.look_up(uri)
    keep(f"{uri}!/", f"{head.etag} {head.size}", listing)
    [member] = list_members(uri).members
    assert (member.name, read_bytes(member.uri)) == ("a.jpg", b"x" * 600)
    assert "one.tar: its listing in the cache is unsound" in caplog.text
    proxy.seen.clear()
    assert list_members(uri).members == (member,)  # the sound one has taken its place
    assert len(proxy.seen) == 1


def test_an_archive_that_came_damaged_is_not_remembered_so(proxy: FaultServer) -> None:
    uri = put("one.tar", shard({"a.jpg": b"x" * 600}))
    proxy.random.randrange = lambda *_: 100  # type: ignore[method-assign]  # a byte of the first header
    proxy.first("flip", 2)
    assert list_members(uri).refused
    proxy.choose = lambda *_: ""
    assert [member.name for member in list_members(uri).members] == ["a.jpg"]


def test_many_small_members_are_listed_by_few_requests_and_large_ones_are_skipped(proxy: FaultServer) -> None:
    small = {f"{number:05d}.jpg": b"x" * 60_000 for number in range(500)}
    assert len(list_members(put("small.tar", shard(small))).members) == 500
    assert proxy.gets < 16  # 30 MB; 256 KiB a request were 117
    proxy.seen.clear()
    large = {f"{number:05d}.jpg": b"x" * 3_000_000 for number in range(10)}
    assert len(list_members(put("large.tar", shard(large))).members) == 10
    assert proxy.gets <= 11
    assert sum(int(b) - int(a) + 1 for a, b in (r[6:].split("-") for r in proxy.ranges())) < 1_000_000  # of 30 MB


@pytest.mark.parametrize("faulty", [(0,), (1,), (0, 1)], ids=str)
def test_a_member_whose_hash_nobody_knows_is_not_believed_until_it_came_twice(
    proxy: FaultServer, faulty: tuple[int, ...]
) -> None:
    body = os.urandom(50_000)
    [member] = list_members(put("one.tar", shard({"a.jpg": body}))).members
    begin = proxy.gets
    proxy.choose = lambda number, _: "flip" if number - begin in faulty else ""
    assert read_bytes(member.uri) == body
    assert proxy.faults["flip"] == len(faulty)
    kept = {path.read_bytes() for path in objects(Path())}
    assert body in kept
    assert len(kept) == 2  # the listing is the other


@pytest.mark.slow
def test_a_member_that_never_comes_twice_the_same_is_an_error(proxy: FaultServer) -> None:
    [member] = list_members(put("one.tar", shard({"a.jpg": os.urandom(50_000)}))).members
    proxy.first("flip", 99)
    with pytest.raises(StorageError, match=r"one\.tar: 50000 bytes from byte 512 on came differently 6 times"):
        read_bytes(member.uri)


def refuse_with(proxy: FaultServer, status: int, body: bytes) -> None:
    """Every GET is answered so."""

    def answer(_: int, handler: object) -> str:
        handler.send_response(status)  # type: ignore[attr-defined]
        handler.send_header("Content-Length", str(len(body)))  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        handler.wfile.write(body)  # type: ignore[attr-defined]
        return "reset"

    proxy.choose = answer


@pytest.mark.parametrize(
    ("status", "code", "want"),
    [
        (403, "AccessDenied", r"access denied \(AccessDenied\)\. Check AWS_ACCESS_KEY_ID"),
        (400, "ExpiredToken", r"the credentials have expired \(ExpiredToken\)\. Get new ones"),
        (403, "RequestExpired", r"the credentials have expired"),
        (404, "NoSuchBucket", r"no bucket 'photos' at http://127"),
        (404, "", r"gave 404 without a reason: that is no S3 server\. Mend AWS_ENDPOINT_URL_S3"),
        (200, "", r"that is no S3 server\. Mend AWS_ENDPOINT_URL_S3"),
        (501, "NotImplemented", r"answered 501 NotImplemented"),
    ],
)
def test_what_cannot_pass_is_one_error_at_once(proxy: FaultServer, status: int, code: str, want: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>" if code else "<html><body>welcome</body></html>"
    refuse_with(proxy, status, body.encode())
    for number, call in enumerate((read_bytes, list_files)):
        if (status, call) == (200, list_files):
            continue
        with pytest.raises(StorageError, match=want) as caught:
            call("s3://photos/a.jpg")
        assert isinstance(caught.value, Refused)
        assert not isinstance(caught.value, NotFound)
        assert proxy.gets == number + 1


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(out, "JPEG")
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_set_arrives_whole_through_a_server_that_fails_one_request_in_ten(
    proxy: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "TIMEOUT", 2.0)
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "100")  # of a page: 1,000 took the server a second
    photos = {f"p{number:04d}": picture(number) for number in range(350)}  # four pages of a listing
    for name, data in photos.items():
        put(f"set/images/{name}.jpg", data)
    members = {f"m{number:04d}": picture(2000 + number) for number in range(70)}
    put("set/images/shard.tar", shard({f"{name}.jpg": data for name, data in members.items()}))
    gone = "p0300"

    def choose(number: int, handler: object) -> str:
        if f"/{gone}.jpg" in handler.path:  # type: ignore[attr-defined]
            delete(f"set/images/{gone}.jpg")  # after it was listed
        return FAULTS[number // 10 % len(FAULTS)] if number % 10 == 9 else ""

    proxy.choose = choose
    source = Source(name="set", root="s3://photos/set", split="unlabelled", task="unspecified", licence="MIT")
    begin = time.monotonic()
    items = [item for found in run_jobs(LAYOUTS["images"](source), Selection()) for item in found]
    seconds = time.monotonic() - begin
    samples = [item.image for item in items if isinstance(item, Sample)]
    problems = [item for item in items if isinstance(item, Problem)]
    truth = {f"set/{name}": sha(data) for name, data in photos.items() if name != gone}
    truth |= {f"set/shard/{name}": sha(data) for name, data in members.items()}
    assert [image.image_id for image in samples] == sorted(truth)  # all, and nothing twice
    assert {image.image_id: image.sha256 for image in samples} == truth
    assert [(problem.file, problem.reason) for problem in problems] == [
        (f"s3://photos/set/images/{gone}.jpg", "the image is missing")
    ]
    kept = {path.name: sha(path.read_bytes()) for path in objects(Path())}
    assert all(name == found for name, found in kept.items())
    assert set(truth.values()) < set(kept)
    assert len(kept) == len(set(truth.values())) + 1  # the listing of the shard
    assert set(proxy.faults) == set(FAULTS)
    asked, failed = proxy.gets, sum(proxy.faults.values())
    log.info(f"{len(samples)} of 420, {asked} requests, {failed} failed {dict(proxy.faults)}, {seconds:.1f} s")
    assert failed == asked // 10
    proxy.seen.clear()
    with ThreadPoolExecutor(4) as pool:  # training: by hash, without the server
        again = list(pool.map(lambda image: sha(read_bytes(image.path, sha256=image.sha256)), samples))
    assert again == [image.sha256 for image in samples]
    assert not proxy.seen


def test_a_folder_exists_behind_a_thousand_objects_of_a_longer_name(proxy: FaultServer) -> None:
    for number in range(1001):  # more than a page; '-' sorts before '/'
        put(f"train-extra/{number}.jpg", b"x")
    put("train/a.jpg", b"x")
    names = ("train", "train/", "train/a.jpg", "trai", "train/a", "train-extra", "")
    assert [exists(f"s3://photos/{name}") for name in names] == [True, True, True, False, False, True, True]


@pytest.mark.slow
def test_threads_may_share_the_cache(proxy: FaultServer) -> None:
    bodies = [os.urandom(1000) for _ in range(5)]
    for number, body in enumerate(bodies):
        put(f"{number}.jpg", body)
    barrier = threading.Barrier(8)

    def read(number: int) -> bool:
        barrier.wait()
        return read_bytes(f"s3://photos/{number % 5}.jpg") == bodies[number % 5]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
    assert {path.name for path in objects(Path())} == {sha(body) for body in bodies}
