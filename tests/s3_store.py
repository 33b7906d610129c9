"""A bucket of moto's for a test: the server, an empty bucket in it, and the environment that leads boto3 to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "shared"


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """Host and port of an S3 server; what it holds is shared by all servers of the process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


def empty_bucket(name: str) -> None:
    """Forget all that the process's servers hold, and make a bucket."""
    from moto.s3.models import s3_backends

    backend = s3_backends["123456789012"]["aws"]
    backend.reset()
    backend.create_bucket(name, "us-east-1")


def environment(folder: Path, *, url: str) -> dict[str, str]:
    """Variables for a server at `url`; folder: of the cache, and where no other settings are found."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(folder / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
        "SUM_CACHE": str(folder / "cache"),
    }


@contextmanager
def bucket(folder: Path) -> Iterator[dict[str, str]]:
    """A server with the empty bucket BUCKET; yields the environment variables that name it."""
    with s3_server() as (host, port):
        empty_bucket(BUCKET)
        yield environment(folder, url=f"http://{host}:{port}")
