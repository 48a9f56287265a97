import hashlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from components.common.errors import UserError
from components.common.runs import storage
from tests import seaweed

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with seaweed.serve(tmp_path_factory.mktemp("seaweed")) as environment:
        yield environment


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Clears the AWS variables and configuration; the client is rebuilt from what tests set."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage._client_of.cache_clear()
    yield monkeypatch
    storage._client_of.cache_clear()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.services)])
def folder(request: pytest.FixtureRequest, tmp_path: Path, environment: pytest.MonkeyPatch) -> str:
    """An empty folder: local, or a prefix on a real server."""
    if request.param == "local":
        return str(tmp_path / "folder")
    for name, value in request.getfixturevalue("server").items():
        environment.setenv(name, value)
    return f"s3://{seaweed.BUCKET}/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}/folder"


def test_files_survive_a_round_trip(folder: str) -> None:
    uri = storage.join(folder, "a", "b.bin")
    assert not storage.exists(uri)
    storage.write(uri, b"one")
    storage.write(uri, b"two")
    assert storage.exists(uri)
    assert storage.read(uri) == b"two"
    storage.delete(uri)
    assert not storage.exists(uri)
    storage.delete(uri)  # deleting again is no error


def test_a_prefix_of_a_name_is_not_the_file(folder: str) -> None:
    storage.write(storage.join(folder, "run.json.old"), b"1")
    assert not storage.exists(storage.join(folder, "run.json"))
    assert not storage.exists(folder)


def test_listing_is_sorted_and_complete(folder: str) -> None:
    names = ["b.txt", "a/z.txt", "a.txt", "a/b/c.txt", "Z.txt", "ä.txt", "a b+c.txt"]
    for name in names:
        storage.write(storage.join(folder, *name.split("/")), name.encode())
    storage.write(storage.join(f"{folder}-other", "x.txt"), b"of another folder")

    entries = list(storage.listing(folder))
    assert [entry.path for entry in entries] == sorted(names)
    assert [entry.size for entry in entries] == [len(entry.path.encode()) for entry in entries]
    assert list(storage.listing(folder)) == entries
    assert list(storage.listing(f"{folder}/")) == entries


def test_listing_notices_a_change(folder: str) -> None:
    uri = storage.join(folder, "a.txt")
    storage.write(uri, b"one")
    before = storage.listing(folder)[0]
    storage.write(uri, b"two")
    assert storage.listing(folder)[0].version != before.version


def test_what_is_missing_is_named(folder: str) -> None:
    with pytest.raises(UserError, match=r"none\.txt"):
        storage.read(storage.join(folder, "none.txt"))
    with pytest.raises(UserError, match=r"no such folder|no objects below"):
        list(storage.listing(folder))
    assert storage.is_empty(folder)


def test_is_empty(folder: str) -> None:
    storage.write(storage.join(folder, "sub", "a.txt"), b"")
    assert not storage.is_empty(folder)


def test_links_are_followed_once_and_the_rest_is_named(tmp_path: Path) -> None:
    top, other = tmp_path / "top", tmp_path / "other"
    for path in (top / "a" / "1", other / "b" / "2"):
        storage.write(str(path), b"x")
    (top / "other").symlink_to("../other")
    (top / "a" / "file").symlink_to(other / "b" / "2")
    (other / "b" / "top").symlink_to(top)
    (other / "root").symlink_to("/")
    (top / "gone").symlink_to("nowhere")
    os.mkfifo(top / "a" / "pipe")
    whole = {"a/1", "a/file", "other/b/2"}
    assert {entry.path: entry.size for entry in storage.listing(str(top))} == dict.fromkeys(whole, 1)
    assert set(storage.files_below(top)) == whole and not storage.is_empty(str(top))
    faults = {entry.path: entry.fault for entry in storage.walk(str(top), faults=True) if entry.fault}
    assert faults.keys() == {"other/b/top", "other/root", "gone", "a/pipe"}
    assert faults["gone"] == "a link that cannot be followed (No such file or directory)" and faults["a/pipe"] == "a named pipe"
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "all").symlink_to(top)
    assert not storage.is_empty(str(tmp_path / "links"))


def test_join() -> None:
    assert storage.join("s3://bucket/a/", "b", "c.txt") == "s3://bucket/a/b/c.txt"
    assert storage.join("s3://bucket", "b") == "s3://bucket/b"
    assert storage.join("/data/a/", "b") == "/data/a/b"


def test_digests(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert storage.digest(content) == storage.digest_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_failed_local_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    storage.write(str(tmp_path / "a"), b"old")
    with pytest.raises(TypeError):
        storage.write(str(tmp_path / "a"), "no bytes")  # type: ignore[arg-type]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_an_s3_uri_needs_a_bucket() -> None:
    with pytest.raises(UserError, match="names no bucket"):
        storage.read("s3:///key")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({**CREDENTIALS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect to the endpoint URL"),
        ({**CREDENTIALS, "AWS_ENDPOINT_URL": "127.0.0.1:9"}, "Invalid endpoint"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Unable to locate credentials"),
    ],
)
def test_unusable_servers(settings: dict[str, str], part: str, environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in settings.items():
        environment.setenv(name, value)
    environment.setattr("time.sleep", lambda seconds: None)  # skip the delays between botocore's attempts
    (tmp_path / "run.json").write_text("{}")
    for call in (
        lambda: storage.read("s3://bucket/key"),
        lambda: list(storage.listing("s3://bucket/key")),
        lambda: storage.copy_folder(tmp_path, "s3://bucket/key", last="run.json"),
    ):
        with pytest.raises(UserError, match=part) as error:
            call()
        assert str(error.value).startswith("s3://bucket/key")
        assert "AWS_ENDPOINT_URL" in str(error.value)
        assert "\n" not in str(error.value)
        assert error.value.temporary == part.startswith("Could not connect")


@pytest.mark.parametrize(("status", "temporary"), [(403, False), (404, False), (429, True), (500, True), (503, True)])
def test_a_server_that_is_overloaded_may_answer_later(status: int, temporary: bool) -> None:
    answer = ClientError({"Error": {"Code": "X"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")  # type: ignore[typeddict-item]
    with pytest.raises(UserError, match="answered X") as error, storage._object("s3://bucket/key"):
        raise answer
    assert error.value.temporary == temporary


@pytest.mark.parametrize("bucket", ["UPPER_case!", "nobucket"])
@pytest.mark.services
def test_a_bucket_that_is_not_there(bucket: str, server: dict[str, str], environment: pytest.MonkeyPatch) -> None:
    for name, value in server.items():
        environment.setenv(name, value)
    with pytest.raises(UserError, match=f"s3://{bucket}/key: ") as error:
        storage.read(f"s3://{bucket}/key")
    assert "\n" not in str(error.value)


@pytest.mark.services
def test_a_wrong_secret_is_refused(server: dict[str, str], environment: pytest.MonkeyPatch) -> None:
    for name, value in {**server, "AWS_SECRET_ACCESS_KEY": "wrong"}.items():
        environment.setenv(name, value)
    with pytest.raises(UserError, match="SignatureDoesNotMatch"):
        storage.read(f"s3://{seaweed.BUCKET}/key")


@pytest.fixture
def prefix(server: dict[str, str], environment: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name, value in server.items():
        environment.setenv(name, value)
    return f"s3://{seaweed.BUCKET}/{request.node.name}"


@pytest.mark.services
def test_upload_of_a_folder(prefix: str, tmp_path: Path) -> None:
    large = os.urandom(20_000_000)  # above boto3's multipart threshold
    for name, content in {"run.json": b"{}", "a/large.bin": large, "z.txt": b"z", "checkpoint/x.pt": b"no", "note": b"no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)

    storage.copy_folder(tmp_path, prefix, last="run.json", skip=("checkpoint", "note"))

    assert [entry.path for entry in storage.listing(prefix)] == ["a/large.bin", "run.json", "z.txt"]
    assert storage.digest(storage.read(f"{prefix}/a/large.bin")) == storage.digest(large)
    times = {item["Key"].split("/", 1)[1]: item["LastModified"] for item in _objects(prefix)}
    assert max(times.values()) == times["run.json"]


@pytest.mark.services
def test_unchanged_files_are_not_uploaded_again(prefix: str, tmp_path: Path) -> None:
    for name in ("a", "b", "run.json"):
        (tmp_path / name).write_text("same length")
    storage.copy_folder(tmp_path, prefix, last="run.json")
    storage._client().put_object(Bucket=seaweed.BUCKET, Key=f"{prefix.split('/')[-1]}/a", Body=b"same_length")  # by another client
    (tmp_path / "b").write_text("SAME LENGTH")
    before = {item["Key"]: item["LastModified"] for item in _objects(prefix)}
    time.sleep(1.1)  # the server's timestamps have a resolution of one second
    storage.copy_folder(tmp_path, prefix, last="run.json")
    after = {item["Key"]: item["LastModified"] for item in _objects(prefix)}
    assert {key.split("/")[-1] for key in after if after[key] != before[key]} == {"a", "b"}
    assert [storage.read(f"{prefix}/{name}") for name in "ab"] == [b"same length", b"SAME LENGTH"]


@pytest.mark.services
def test_upload_to_the_root_of_a_bucket(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "top.json").write_text("{}")
    storage.copy_folder(tmp_path, f"s3://{seaweed.BUCKET}", last="top.json")
    assert storage.read(f"s3://{seaweed.BUCKET}/top.json") == b"{}"


@pytest.mark.services
def test_listing_has_more_than_a_page(prefix: str) -> None:
    for index in range(1005):
        storage._client().put_object(Bucket=seaweed.BUCKET, Key=f"{prefix.split('/')[-1]}/{index:05d}", Body=b"")
    assert [entry.path for entry in storage.listing(prefix)] == [f"{index:05d}" for index in range(1005)]


@pytest.mark.services
def test_a_forked_process_has_its_own_connections(prefix: str) -> None:
    storage.write(f"{prefix}/a", b"content")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(storage.read, [f"{prefix}/a"] * 40)
    assert found == [b"content"] * 40


def _objects(prefix: str) -> list[dict[str, object]]:
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    return list(storage._client().list_objects_v2(Bucket=bucket, Prefix=key)["Contents"])  # type: ignore[arg-type]
