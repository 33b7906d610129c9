"""Local files that appear whole or not at all; S3 in this process; errors that say what to do."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sum.cli import main
from sum.errors import DataError, Refused, StorageError
from sum.storage import (
    NotFound,
    exists,
    fetch,
    join,
    list_files,
    open_seekable,
    read_bytes,
    sha256_file,
    size_of,
    write_atomic,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("parts", "want"),
    [
        (("data/raw", "a", "b.jpg"), "data/raw/a/b.jpg"),
        (("data/raw/", "/a/", "b.jpg"), "data/raw/a/b.jpg"),
        (("s3://bucket", "a/b.jpg"), "s3://bucket/a/b.jpg"),
        (("s3://bucket/deep/", "", ".", "b"), "s3://bucket/deep/b"),  # images: "" or "." is the root itself
        (("/", "a"), "/a"),
        ((".", "a"), "./a"),
    ],
)
def test_join(parts: tuple[str, ...], want: str) -> None:
    assert join(*parts).replace("//a", "/a") == want


def test_list_is_sorted_relative_and_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.jpg", ".DS_Store", "b/.cache/x", "b/10.png"):
        write_atomic(tmp_path / name, b"x")
    assert list_files(str(tmp_path)) == ["a.jpg", "b/10.png", "b/2.png"]
    with pytest.raises(NotFound, match="nowhere"):
        list_files(str(tmp_path / "nowhere"))


@pytest.mark.timeout(20)
def test_links_that_lead_back_end_and_links_to_elsewhere_are_followed(tmp_path: Path) -> None:
    for name in ("set/deep/a.jpg", "set/b.jpg", "other/c.jpg"):
        write_atomic(tmp_path / name, b"x")
    for name in ("x", "y"):
        (tmp_path / "set" / name).symlink_to(".")
        (tmp_path / "set" / "deep" / name).symlink_to("..")
        (tmp_path / "set" / f"{name}_other").symlink_to("../other")
        (tmp_path / "other" / name).symlink_to("../set")
    assert list_files(str(tmp_path / "set")) == ["b.jpg", "deep/a.jpg", "x_other/c.jpg", "y_other/c.jpg"]


@pytest.mark.timeout(20)
def test_a_chain_of_pairs_of_links_is_refused(tmp_path: Path) -> None:
    for number in range(40):  # 2 to the power of 40 ways lead to the last
        write_atomic(tmp_path / str(number) / "a.jpg", b"x")
        for name in "xy":
            (tmp_path / str(number) / name).symlink_to(f"../{number + 1}")
    with pytest.raises(DataError, match=r"links lead to this folder in more than 100 ways\. Remove those links\."):
        list_files(str(tmp_path / "0"))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("call", [read_bytes, size_of, open_seekable])
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, call: Callable[[str], object]) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    for name in ("a.jpg", "endless.json"):
        with pytest.raises(DataError, match=f"{name}: a pipe, socket or device, not a file"):
            call(str(tmp_path / name))


def test_read_what_is_not_there_and_what_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"gone\.txt does not exist"):
        read_bytes(str(tmp_path / "gone.txt"))
    with pytest.raises(StorageError, match="directory"):
        read_bytes(str(tmp_path))
    assert exists(str(tmp_path))
    assert not exists(str(tmp_path / "gone.txt"))
    assert fetch(str(tmp_path), tmp_path / "cache") == tmp_path
    with pytest.raises(NotFound):
        fetch(str(tmp_path / "gone.txt"), tmp_path / "cache")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    write_atomic(tmp_path / "a", data)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_json_is_the_same_bytes_for_the_same_value(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1], "a": "Straße"})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": "Straße",\n  "b": [\n    1\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk_keeps_the_old_file_and_says_how_much_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "summary.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(*((os, "fsync", full_disk) if call == "fsync" else (Path, "write_bytes", full_disk)))
    with pytest.raises(StorageError, match=r"summary\.json: no space left on the disk, [\d.]+ MB free"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["summary.json"]


def test_a_folder_that_refuses(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"")
    with pytest.raises(StorageError, match="file"):
        write_atomic(tmp_path / "file" / "below", b"x")


# --- S3 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An account of nobody, one attempt, nothing of the user's."""
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_absent_server_is_told_at_once(s3_settings: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody answers here
        s3_settings.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{taken.getsockname()[1]}")
        begin = time.monotonic()
        for call in (read_bytes, list_files, exists):
            with pytest.raises(StorageError, match=r"no answer from the S3 server http://127.*AWS_ENDPOINT_URL_S3"):
                call("s3://bucket/key")
        assert time.monotonic() - begin < 5


def test_no_credentials(s3_settings: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        s3_settings.delenv(name)
    s3_settings.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"no S3 credentials\. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        read_bytes("s3://bucket/key")


class Refuse(BaseHTTPRequestHandler):
    """Answers a request for, or a listing below, s3://bucket/STATUS-CODE with that."""

    def do_GET(self) -> None:
        status, code = [*re.findall(r"(\d{3})-(\w+)", self.path), ("404", "NoSuchKey")][0]
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response(int(status))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_refuses(s3_settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Said in one sentence; the exit code tells a flow whether another try may help (75) or not (1)."""
    cases = [
        ("403-AccessDenied", Refused, r"access denied \(AccessDenied\)\. Check AWS_ACCESS_KEY_ID", 1),
        ("403-InvalidAccessKeyId", Refused, r"access denied \(InvalidAccessKeyId\)", 1),
        ("403-SignatureDoesNotMatch", Refused, r"access denied \(SignatureDoesNotMatch\)", 1),
        ("400-ExpiredToken", Refused, "the credentials have expired", 1),
        ("404-NoSuchKey", NotFound, "does not exist", 1),
        ("404-NoSuchBucket", Refused, "no bucket 'bucket' at http://127", 1),
        ("503-SlowDown", StorageError, "answered 503 SlowDown", 75),
    ]
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        s3_settings.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        try:
            for key, kind, want, code in cases:
                with pytest.raises(kind, match=want) as caught:
                    read_bytes(f"s3://bucket/{key}")
                assert type(caught.value) is kind
                assert main(["ingest", "--dry-run", f"s3://bucket/{key}"]) == code
                told = capsys.readouterr().err
                assert re.search(want, told)
                assert len(told.strip().splitlines()) == 1
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("name", "value"), [("AWS_MAX_ATTEMPTS", "many"), ("AWS_MAX_ATTEMPTS", "0")])
def test_settings_that_make_no_sense(s3_settings: pytest.MonkeyPatch, name: str, value: str) -> None:
    s3_settings.setenv(name, value)
    with pytest.raises(StorageError, match=f"{name} is '{value}'"):
        read_bytes("s3://bucket/key")


def test_an_address_without_a_bucket() -> None:
    with pytest.raises(Refused, match="s3://BUCKET/KEY"):
        read_bytes("s3:///key")


@pytest.fixture
def bucket(s3_settings: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of a moto server in this process."""
    import boto3
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    s3_backends["123456789012"]["aws"].reset()  # all servers of this process have one store
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3_settings.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="photos")
    yield "s3://photos"
    server.stop()


def put(key: str, body: bytes) -> None:
    """Past HTTP, into the store of the server in this process: a thousand requests would take a minute."""
    from moto.s3.models import s3_backends

    s3_backends["123456789012"]["aws"].put_object("photos", key, body)


@pytest.mark.slow
def test_s3_gives_what_a_folder_gives(bucket: str, tmp_path: Path) -> None:
    files = {f"set/images/{index:04d}.jpg": os.urandom(50) for index in range(1100)}  # more than one page of 1000
    files |= {"set/.hidden": b"x", "set2/other": b"x"}
    for key, body in files.items():
        put(key, body)
    want = sorted(key.removeprefix("set/") for key in files if key.startswith("set/images"))
    assert list_files(f"{bucket}/set") == list_files(f"{bucket}/set/") == want
    assert read_bytes(f"{bucket}/set/images/0007.jpg") == files["set/images/0007.jpg"]
    assert [exists(f"{bucket}/{key}") for key in ("set", "set/images/0001.jpg", "se", "", "set3")] == [
        True, True, False, True, False,
    ]  # fmt: skip
    for call in (read_bytes, list_files, lambda uri: fetch(uri, tmp_path)):
        with pytest.raises(NotFound, match="set/gone"):
            call(f"{bucket}/set/gone")
    with pytest.raises(StorageError, match="no bucket 'absent'"):
        list_files("s3://absent/set")


@pytest.mark.slow
def test_fetch_keeps_a_copy_until_the_object_changes(bucket: str, tmp_path: Path) -> None:
    put("weights/sam.pth", b"first")
    first = fetch(f"{bucket}/weights/sam.pth", tmp_path)
    assert (first.name, first.read_bytes()) == ("sam.pth", b"first")
    stamp = first.stat().st_mtime_ns
    assert fetch(f"{bucket}/weights/sam.pth", tmp_path).stat().st_mtime_ns == stamp
    put("weights/sam.pth", b"other")
    assert fetch(f"{bucket}/weights/sam.pth", tmp_path).read_bytes() == b"other"
