"""A local path or an s3:// URI, read and written the same way.

The S3 endpoint and credentials come from boto3's own environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from components.common.errors import UserError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class Entry(NamedTuple):
    """A file of a listing."""

    path: str
    """Relative to the listed folder, with forward slashes."""
    size: int
    """In bytes."""
    version: str
    """Changes when the content does: the modification time, or the ETag."""


def is_s3(uri: str) -> bool:
    """Whether `uri` is an s3:// URI."""
    return uri.startswith("s3://")


def join(uri: str, *names: str) -> str:
    """`uri` with `names` appended, one folder level each."""
    return "/".join([uri.rstrip("/"), *names]) if is_s3(uri) else str(Path(uri, *names))


def exists(uri: str) -> bool:
    """Whether there is a file at `uri`."""
    if not is_s3(uri):
        return Path(uri).is_file()
    bucket, key = _split(uri)
    with _explained(uri):
        page = _client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    return any(item["Key"] == key for item in page.get("Contents", []))


def read(uri: str) -> bytes:
    """The content of the file at `uri`.

    Raises:
        UserError: it does not exist, cannot be read, or the server cannot be reached.
    """
    if is_s3(uri):
        bucket, key = _split(uri)
        with _explained(uri):
            body: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return body
    try:
        return Path(uri).read_bytes()
    except OSError as error:
        raise UserError(f"{uri}: cannot be read ({error.strerror})") from None


def write(uri: str, content: bytes) -> None:
    """Writes the file at `uri`, whole or not at all."""
    if is_s3(uri):
        bucket, key = _split(uri)
        with _explained(uri):
            _client().put_object(Bucket=bucket, Key=key, Body=content)
        return
    target = Path(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def listing(uri: str) -> Iterator[Entry]:
    """All files below the folder `uri`, sorted by path; S3 servers differ in how they sort.

    Raises:
        UserError: the folder does not exist, or the server cannot be reached.
    """
    if is_s3(uri):
        yield from sorted(_list_s3(uri))
        return
    if not Path(uri).is_dir():
        raise UserError(f"{uri}: no such folder")
    found = (path for path in Path(uri).rglob("*") if path.is_file())
    for path in sorted(found, key=lambda path: path.relative_to(uri).as_posix()):
        info = path.stat()
        yield Entry(path.relative_to(uri).as_posix(), info.st_size, str(info.st_mtime_ns))


def is_empty(uri: str) -> bool:
    """Whether there is no file below the folder `uri`; it need not exist."""
    if not is_s3(uri):
        return not any(path.is_file() for path in Path(uri).rglob("*"))
    bucket, key = _split(uri)
    with _explained(uri):
        page = _client().list_objects_v2(Bucket=bucket, Prefix=f"{key.rstrip('/')}/" if key else "", MaxKeys=1)
    return not page.get("Contents")


def upload_folder(folder: Path, uri: str, last: str, skip: tuple[str, ...] = ()) -> None:
    """Uploads the files below `folder` (multipart with checksums where large).

    Args:
        folder: a local one.
        uri: the prefix that becomes its copy.
        last: the file that is uploaded at the end.
        skip: names in `folder` that are left out.

    Raises:
        UserError: the server cannot be reached or refuses.
    """
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    for name in sorted((name for name in names if name.parts[0] not in skip), key=lambda name: name.as_posix() == last):
        target = join(uri, *name.parts)
        bucket, key = _split(target)
        with _explained(target):
            _client().upload_file(str(folder / name), bucket, key, ExtraArgs={"ChecksumAlgorithm": "SHA256"})


def delete(uri: str) -> None:
    """Removes the file at `uri`; none there is no error."""
    if is_s3(uri):
        bucket, key = _split(uri)
        with _explained(uri):
            _client().delete_object(Bucket=bucket, Key=key)
    else:
        Path(uri).unlink(missing_ok=True)


def digest(content: bytes) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(content).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a local file, in hex, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{uri}: names no bucket; write s3://BUCKET/PREFIX")
    return bucket, key


def _client() -> "S3Client":
    return _client_of(os.getpid())


@lru_cache(maxsize=1)
def _client_of(process: int) -> "S3Client":
    """One client a process: a forked one must not share its parent's connections."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10, read_timeout=60)
    return boto3.session.Session().client("s3", config=config)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turns what boto3 raises into a UserError of one line."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown error")
        raise UserError(f"{uri}: the S3 server answers {code}; check the address, the bucket and the credentials") from None
    except (BotoCoreError, S3UploadFailedError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise UserError(f"{uri}: {' '.join(str(error).split())}; check AWS_ENDPOINT_URL and the credentials") from None


def _list_s3(uri: str) -> Iterator[Entry]:
    bucket, key = _split(uri)
    prefix = f"{key.rstrip('/')}/" if key else ""
    empty = True
    with _explained(uri):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                empty = False
                if not item["Key"].endswith("/"):
                    yield Entry(item["Key"].removeprefix(prefix), item["Size"], item["ETag"].strip('"'))
    if empty:
        raise UserError(f"{uri}: no objects below this prefix")
