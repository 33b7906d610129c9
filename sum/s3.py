"""Objects of a bucket: list, look up, read whole or in part. The only module that knows boto3.

Bytes are returned when length, checksum and MD5 agree with what the server says. What may pass (500, 503 SlowDown,
timeouts, resets, bodies cut short or with a wrong byte) is tried again after a growing, random pause; what cannot
pass (no such object or bucket, denied, expired, not an S3 server) is one error at once. Settings come from the
environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL_S3, AWS_MAX_ATTEMPTS (5: tries in all).
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sum.errors import NotFound, Refused, StorageError

T = TypeVar("T")
S3 = "s3://"
TIMEOUT = 30.0  # s without a byte
PAUSE = 0.5  # s: the first pause is up to this, each further one up to twice the last
LONGEST = 20.0  # s: and none is longer
CONNECTIONS = 32
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
_PASSING = ("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalError")
_KNOWN_404 = ("NoSuchKey", "NoSuchVersion", "NotFound")
_answered = set[str | None]()  # endpoints that gave an S3 answer: there, a refused connection is worth another try


class ObjectChanged(StorageError):
    """The object is no longer the version that was asked for."""


class _MayPass(StorageError):
    """Worth another try."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a server tells of an object without its bytes."""

    etag: str
    size: int
    md5: str  # hex, '' where the ETag is none (an upload in parts, encryption with a key of KMS)


@dataclass(frozen=True, slots=True)
class Reply:
    """The object, and its bytes unless it is larger than the caller takes at once."""

    head: Head
    body: bytes | None


def split(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` -> bucket, key. Raises StorageError without a bucket."""
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if not bucket:
        raise Refused(f"'{uri}' names no bucket; wanted s3://BUCKET/KEY.")
    return bucket, key.rstrip("/")


def exists(uri: str) -> bool:
    """Whether there is this object or any object below the prefix."""
    bucket, key = split(uri)
    below = f"{key}/" if key else ""  # without the '/', a page may be full of `key-more/...`
    page = ask(uri, lambda client: client.list_objects_v2(Bucket=bucket, Prefix=below, MaxKeys=1))
    if page.get("Contents") or not key:
        return bool(page.get("Contents"))
    try:
        ask(uri, lambda client: client.head_object(Bucket=bucket, Key=key))
    except NotFound:
        return False
    return True


def list_keys(uri: str) -> list[str]:
    """All objects below a prefix, relative to it; page by page. Raises NotFound when there is none."""
    bucket, key = split(uri)
    prefix = f"{key}/" if key else ""
    names, more = list[str](), dict[str, str]()
    while True:
        request = functools.partial(_list_page, bucket=bucket, prefix=prefix, more=more)
        page = ask(uri, request)
        names += [item["Key"].removeprefix(prefix) for item in page.get("Contents", ()) if item["Key"][-1] != "/"]
        if not page.get("IsTruncated"):
            break
        more = {"ContinuationToken": page["NextContinuationToken"]}
    if not names:
        raise NotFound(f"{uri}: the bucket '{bucket}' has no object below '{prefix}'.")
    return names


def look_up(uri: str) -> Head:
    """ETag and size of an object. Raises NotFound without it."""
    bucket, key = split(uri)
    try:
        return _head(uri, ask(uri, lambda client: client.head_object(Bucket=bucket, Key=key)))
    except NotFound:
        ask(uri, lambda client: client.list_objects_v2(Bucket=bucket, MaxKeys=1))  # a HEAD cannot say: the bucket?
        raise


def part_size(uri: str, head: Head) -> int:
    """Bytes of the first part of an object that was uploaded in parts, whose ETag is made of theirs; 0: not so."""
    bucket, key = split(uri)
    count = head.etag.strip('"').rpartition("-")[2]
    if head.md5 or "-" not in head.etag or not count.isdigit() or not int(count):
        return 0
    answer = ask(uri, lambda client: client.head_object(Bucket=bucket, Key=key, PartNumber=1))
    size = int(answer["ContentLength"])
    return size if size and -(-head.size // size) == int(count) else 0


def get(
    uri: str, *, span: tuple[int, int] | None = None, etag: str = "", unless: str = "", limit: int | None = None
) -> Reply | None:
    """Bytes of an object; None when its ETag is `unless`.

    span: (offset, size) of the part that is wanted; etag: of the version, else ObjectChanged; limit: of a larger
    object only the head is returned. Raises NotFound, StorageError.
    """
    if span and not span[1]:
        return Reply(look_up(uri), b"")
    bucket, key = split(uri)
    asked: dict[str, Any] = {"Bucket": bucket, "Key": key}
    asked |= {"Range": f"bytes={span[0]}-{span[0] + span[1] - 1}"} if span else {"ChecksumMode": "ENABLED"}
    asked |= {"IfMatch": etag} if etag else {}
    asked |= {"IfNoneMatch": unless} if unless else {}

    def request(client: Any) -> Reply | None:
        try:
            answer = client.get_object(**asked)
        except _client_error() as error:
            if unless and error.response["ResponseMetadata"].get("HTTPStatusCode") == 304:
                return None
            raise
        head = _head(uri, answer)
        with closing(answer["Body"]) as body:  # its own `with` would give the stream without the checks
            if not span and limit is not None and head.size > limit:
                return Reply(head, None)
            data: bytes = body.read()
        _verify(uri, head, data, span=span)
        return Reply(head, data)

    return ask(uri, request)


def attempts() -> int:
    """How often a read is tried in all: AWS_MAX_ATTEMPTS."""
    text = os.environ.get("AWS_MAX_ATTEMPTS", "5")
    if not text.isdigit() or int(text) < 1:
        raise Refused(f"AWS_MAX_ATTEMPTS is '{text}'; wanted a whole number of at least 1.")
    return int(text)


def _list_page(client: Any, *, bucket: str, prefix: str, more: dict[str, str]) -> Any:
    return client.list_objects_v2(Bucket=bucket, Prefix=prefix, **more)


def _head(uri: str, answer: Any) -> Head:
    etag = answer.get("ETag", "")
    if not etag:
        raise Refused(_no_s3(uri, "an answer without ETag"))
    sealed = "kms" in str(answer.get("ServerSideEncryption", "")) or "SSECustomerAlgorithm" in answer
    plain = etag.strip('"').lower()
    is_md5 = len(plain) == 32 and not plain.strip("0123456789abcdef") and not sealed
    return Head(etag, int(answer["ContentLength"]), plain if is_md5 else "")


def _verify(uri: str, head: Head, data: bytes, *, span: tuple[int, int] | None) -> None:
    """Refuse a body that is short, or other than the server's own MD5 says."""
    wanted = span[1] if span else head.size
    if len(data) != wanted:
        where = f" from byte {span[0]} on" if span else ""
        raise _MayPass(f"{uri}: {len(data)} bytes arrived, wanted {wanted}{where}.")
    if head.md5 and not span and hashlib.md5(data, usedforsecurity=False).hexdigest() != head.md5:
        raise _MayPass(f"{uri}: the bytes are not those of the checksum {head.etag}.")


def ask(uri: str, request: Callable[[Any], T]) -> T:
    """`request(client)`, again while it may pass, AWS_MAX_ATTEMPTS times in all."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

    tries = attempts()
    trying = Retrying(
        stop=stop_after_attempt(tries),
        wait=wait_random_exponential(multiplier=PAUSE, max=LONGEST),
        retry=retry_if_exception_type(_MayPass),
        reraise=True,
    )
    try:
        answer: T = trying(_asked, uri, request)
    except _MayPass as error:
        raise StorageError(f"{error} (tried {tries} times)" if tries > 1 else str(error)) from error
    return answer


def _asked(uri: str, request: Callable[[Any], T]) -> T:
    with _s3_errors(uri):
        client = _make_client(_endpoint(), os.environ.get("AWS_ACCESS_KEY_ID"), os.getpid(), TIMEOUT)
        answer = request(client)
    _answered.add(_endpoint())
    return answer


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@functools.lru_cache(maxsize=4)
def _make_client(endpoint: str | None, account: str | None, process: int, timeout: float) -> Any:
    """One client for all threads; `process` is part of the key, as a forked reader must not use old sockets."""
    from boto3.session import Session  # not boto3.client, whose shared session remembers credentials
    from botocore.config import Config

    settings = Config(
        retries={"mode": "standard", "total_max_attempts": 1},  # ours are around the whole read, body included
        response_checksum_validation="when_required",  # a part has no checksum of its own; whole reads ask for it
        max_pool_connections=CONNECTIONS,
        connect_timeout=min(5.0, timeout),
        read_timeout=timeout,
    )
    return Session().client("s3", endpoint_url=endpoint, config=settings)


def _client_error() -> type[Any]:
    from botocore.exceptions import ClientError

    return ClientError


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """What boto3 raises -> one sentence that says what to set."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except _client_error() as error:
        raise _refusal(uri, error) from error
    except ResponseParserError as error:
        raise Refused(_no_s3(uri, "an answer that is no S3 answer")) from error
    except (Boto3Error, BotoCoreError, ValueError) as error:
        raise _no_answer(uri, error) from error


def _refusal(uri: str, error: Any) -> StorageError:
    """The server answered, and not with the bytes."""
    code, status = str(error.response["Error"].get("Code")), error.response["ResponseMetadata"].get("HTTPStatusCode")
    if code == "NoSuchBucket":
        return Refused(
            f"{uri}: no bucket '{split(uri)[0]}' at {_server()}. Make it, or mend the address or AWS_ENDPOINT_URL_S3."
        )
    if status == 404:
        by_name = code in _KNOWN_404 or error.operation_name == "HeadObject"  # which has no body to name a code
        return NotFound(f"{uri} does not exist.") if by_name else Refused(_no_s3(uri, "404 without a reason"))
    if status == 412 or code == "ConditionalRequestConflict":
        return ObjectChanged(f"{uri} was changed while it was read. Run the same command again.")
    if code in _EXPIRED:
        return Refused(f"{uri}: the credentials have expired ({code}). Get new ones: {_KEYS}, AWS_SESSION_TOKEN.")
    if status in (401, 403):
        return Refused(f"{uri}: access denied ({code}). Check {_KEYS} and the rights on the bucket.")
    text = f"{uri}: the S3 server answered {status} {code}: {error.response['Error'].get('Message')}"
    passing = code in _PASSING or status in (408, 429, 500, 502, 503, 504)
    return _MayPass(text) if passing else Refused(text)


def _no_answer(uri: str, error: Exception) -> StorageError:
    """The request did not get as far as an answer, or the answer not as far as here."""
    from botocore import exceptions as known

    if isinstance(error, known.NoCredentialsError | known.PartialCredentialsError):
        return Refused(f"{uri}: no S3 credentials. Set {_KEYS} (and AWS_ENDPOINT_URL_S3 for a server that is not AWS).")
    if isinstance(error, known.IncompleteReadError | known.FlexibleChecksumError | known.ResponseStreamingError):
        return _MayPass(f"{uri}: the bytes did not arrive whole ({error}).")
    if isinstance(error, known.HTTPClientError | known.ConnectionError):
        text = f"{uri}: no answer from the S3 server {_server()}. Start it, or set AWS_ENDPOINT_URL_S3. ({error})"
        nobody = isinstance(error, known.EndpointConnectionError | known.SSLError | known.ProxyConnectionError)
        return StorageError(text) if nobody and _endpoint() not in _answered else _MayPass(text)
    hint = " Mend AWS_ENDPOINT_URL_S3." if "endpoint" in str(error).lower() else ""
    lasting = isinstance(error, ValueError | known.ParamValidationError | known.NoRegionError | known.ProfileNotFound)
    return (Refused if lasting else StorageError)(f"{uri}: {error}.{hint}")


def _no_s3(uri: str, found: str) -> str:
    return f"{uri}: {_server()} gave {found}: that is no S3 server. Mend AWS_ENDPOINT_URL_S3."


def _server() -> str:
    return _endpoint() or "AWS"
