"""Files at local paths and s3:// URIs, read and written the same way.

The S3 endpoint and credentials come from boto3's own environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from http import HTTPStatus
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from components.common.errors import TemporaryError, UserError, disk_errors
from components.common.formats.atomic import replaced
from components.common.formats.documents import to_json
from components.common.runs.local_files import Entry, walk_folder

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each further attempt at reading an object
_READ_SECONDS = 60  # seconds without data after which a request is repeated
_CHUNK = 16 * 2**20  # bytes per part of a multipart upload
_UPLOADS = 4  # number of files that are uploaded at a time, and of parts of each
_DIGEST = "sha256"  # name of the metadata with the digest of the whole object; the server's own checksum covers the parts of the upload


def is_s3(uri: str) -> bool:
    """Whether `uri` is an s3:// URI."""
    return uri.startswith("s3://")


def join(uri: str, *names: str) -> str:
    """Appends `names` to `uri`, one folder level each."""
    return "/".join([uri.rstrip("/"), *names]) if is_s3(uri) else str(Path(uri, *names))


def exists(uri: str) -> bool:
    """Whether `uri` is a file."""
    return _first_key(uri) == _split(uri)[1] if is_s3(uri) else Path(uri).is_file()


def read(uri: str, **options: Any) -> bytes:
    """Reads a file; of an object, what the options of GetObject ask for.

    Raises:
        UserError: the file cannot be read, or the server cannot be reached.
    """
    if is_s3(uri):
        with _object(uri) as (client, bucket, key):
            return _get(client, bucket, key, **options)
    try:
        return Path(uri).read_bytes()
    except OSError as error:
        raise UserError(f"{uri}: cannot be read ({error.strerror})") from None


@contextmanager
def opened(uri: str) -> Iterator[BufferedReader]:
    """Opens a file for reading in blocks. An object is downloaded to a temporary file first.

    Raises:
        UserError: as for `read`.
    """
    if is_s3(uri):
        with tempfile.TemporaryFile() as copy:
            with _object(uri) as (client, bucket, key):
                client.download_fileobj(bucket, key, copy)
            copy.seek(0)
            yield cast(BufferedReader, copy)
        return
    try:
        file = Path(uri).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"{uri}: cannot be read ({error.strerror})") from None
    with file:
        yield file


def write(uri: str, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    if is_s3(uri):
        with _object(uri) as (client, bucket, key):
            client.put_object(Bucket=bucket, Key=key, Body=content)
        return
    target = Path(uri)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with replaced(target) as scratch, scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON document to a local file, whole or not at all."""
    write(str(path), to_json(content))


def copy(source: str, target: str) -> None:
    """Copies an object within the S3 server.

    Raises:
        UserError: it does not exist, or the server cannot be reached.
    """
    target_bucket, target_key = _split(target)
    with _object(source) as (client, bucket, key):
        client.copy({"Bucket": bucket, "Key": key}, target_bucket, target_key)


def listing(uri: str) -> list[Entry]:
    """Lists all files below a folder, sorted by path.

    Raises:
        UserError: as for `walk`.
    """
    return sorted(walk(uri))


def walk(uri: str, faults: bool = False, apart_from: str = "") -> Iterator[Entry]:
    """Yields all files below a folder, in no particular order: S3 servers differ.

    Args:
        uri: the folder. Links below a local one are followed.
        faults: whether to yield what has no content as well, such as links that lead nowhere, as entries with a fault.
        apart_from: a local folder that no link may lead to.

    Raises:
        UserError: the folder does not exist or cannot be read, a link leads to `apart_from`, or the server cannot be reached.
    """
    if is_s3(uri):
        yield from _list_s3(uri)
    elif Path(uri).is_dir():
        yield from (entry for entry in walk_folder(uri, apart_from) if faults or not entry.fault)
    else:
        raise UserError(f"{uri}: no such folder")


def is_empty(uri: str) -> bool:
    """Whether no file exists below a folder, which itself need not exist."""
    if is_s3(uri):
        return _first_key(join(uri, "")) is None
    return not Path(uri).is_dir() or next(walk(uri), None) is None


def copy_folder(folder: Path, uri: str, last: str, skip: tuple[str, ...] = ()) -> None:
    """Copies the files below a local folder to another or to S3, except those that were uploaded before.

    Args:
        folder: the folder.
        uri: the folder or prefix that becomes its copy.
        last: name of the file that is uploaded after all others.
        skip: names in `folder` to leave out.

    Raises:
        UserError: the server cannot be reached or refuses the upload.
    """
    names = files_below(folder, skip)
    with ThreadPoolExecutor(_UPLOADS) as pool:
        copies = [pool.submit(_put, folder / name, join(uri, name)) for name in names if name != last]
        try:
            for copied in copies:
                copied.result()
        finally:
            pool.shutdown(cancel_futures=True)
    if last in names:
        _put(folder / last, join(uri, last))


def link(source: Path, target: Path) -> None:
    """Makes a hard link, which is safe since finished files never change, or a copy where the disk has none; whole or not at all."""
    with replaced(target) as scratch:
        with suppress(OSError):
            os.link(source, scratch)
            return
        shutil.copyfile(source, scratch)


def files_below(folder: Path, skip: tuple[str, ...] = ()) -> list[str]:
    """Lists the files below a local folder by relative path, except those at or below `skip`."""
    return sorted(entry.path for entry in walk(str(folder)) if entry.path.partition("/")[0] not in skip)


def delete(uri: str) -> None:
    """Deletes a file, if it exists."""
    if is_s3(uri):
        with _object(uri) as (client, bucket, key):
            client.delete_object(Bucket=bucket, Key=key)
    else:
        Path(uri).unlink(missing_ok=True)


def digest(content: bytes) -> str:
    """Returns the SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of a local file in hex."""
    with path.open("rb") as file:
        return digest_stream(file)


def digest_stream(file: BufferedReader) -> str:
    """Returns the SHA-256 of the rest of an open file in hex."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{uri}: names no bucket; write s3://BUCKET/PREFIX")
    return bucket, key


def _first_key(uri: str) -> str | None:
    """Returns the first key that begins with that of `uri`."""
    with _object(uri) as (client, bucket, key):
        page = client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    return next((item["Key"] for item in page.get("Contents", [])), None)


def head(uri: str) -> tuple[int, str, str | None]:
    """Returns the size of an object, its entity tag, and the SHA-256 that it was uploaded with, if it has one."""
    with _object(uri) as (client, bucket, key):
        found = client.head_object(Bucket=bucket, Key=key)
    return found["ContentLength"], found["ETag"], found["Metadata"].get(_DIGEST)


def _get(client: "S3Client", bucket: str, key: str, **options: Any) -> bytes:
    """Reads an object. botocore repeats a request until a response begins, but not when the response then stops."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    for pause in _PAUSES:
        body = client.get_object(Bucket=bucket, Key=key, **options)["Body"]
        try:
            return body.read()
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
            time.sleep(pause)
    return client.get_object(Bucket=bucket, Key=key, **options)["Body"].read()


def _put(path: Path, uri: str) -> None:
    """Links or uploads a file, unless the object has the same digest already."""
    if not is_s3(uri):
        with disk_errors(uri):
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
        return link(path, Path(uri))
    from boto3.s3.transfer import TransferConfig

    sha256 = digest_file(path)
    with _object(uri) as (client, bucket, key):
        if _digest_of_object(client, bucket, key) == sha256:
            return
        extra = {"ChecksumAlgorithm": "SHA256", "Metadata": {_DIGEST: sha256}}
        config = TransferConfig(multipart_threshold=_CHUNK, multipart_chunksize=_CHUNK, max_concurrency=_UPLOADS)
        client.upload_file(str(path), bucket, key, ExtraArgs=extra, Config=config)


def _digest_of_object(client: "S3Client", bucket: str, key: str) -> str | None:
    from botocore.exceptions import ClientError

    try:
        return client.head_object(Bucket=bucket, Key=key)["Metadata"].get(_DIGEST)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise


def _client() -> "S3Client":
    return _client_of(os.getpid())


@lru_cache(maxsize=1)
def _client_of(process: int) -> "S3Client":
    """Creates one client per process: a forked process must not share the connections of its parent."""
    import boto3
    from botocore.config import Config

    # Exponential backoff of up to 20 s on 5xx, throttling, timeouts and lost connections.
    config = Config(
        retries={"mode": "standard", "max_attempts": 8},
        connect_timeout=10,
        read_timeout=_READ_SECONDS,
        max_pool_connections=2 * _UPLOADS**2,
    )
    return boto3.session.Session().client("s3", config=config)


@contextmanager
def _object(uri: str) -> Iterator[tuple["S3Client", str, str]]:
    """Yields a client, and the bucket and key of an object; errors of boto3 in the block become a UserError of one line."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = _split(uri)
    try:
        yield _client(), bucket, key
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown error")
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == HTTPStatus.PRECONDITION_FAILED:
            raise UserError(f"{uri}: was replaced while it was read; run the same command again") from None
        raise _kind(error)(f"{uri}: the S3 server answered {code}; check the address, the bucket and the credentials") from None
    except (BotoCoreError, S3UploadFailedError, ValueError) as error:  # ValueError: the endpoint is not a URL
        raise _kind(error)(f"{uri}: {' '.join(str(error).split())}; check AWS_ENDPOINT_URL and the credentials") from None


def _kind(error: BaseException) -> type[UserError]:
    """Returns the kind of an error: temporary if the server is lost or overloaded."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError

    for cause in (error, error.__context__):  # the context of a failed upload
        if isinstance(cause, (ConnectionError, HTTPClientError, IncompleteReadError)):
            return TemporaryError
        if isinstance(cause, ClientError):
            status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return TemporaryError if status >= 500 or status == 429 else UserError
    return UserError


def _list_s3(uri: str) -> Iterator[Entry]:
    empty = True
    with _object(uri) as (client, bucket, key):
        prefix = f"{key.rstrip('/')}/" if key else ""
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                empty = False
                if not item["Key"].endswith("/"):
                    version, modified = item["ETag"].strip('"'), item["LastModified"].timestamp()
                    yield Entry(item["Key"].removeprefix(prefix), item["Size"], version, "", modified)
    if empty:
        raise UserError(f"{uri}: no objects below this prefix")
