from pathlib import Path
from typing import Any

import pytest
import yaml

from components.common.errors import UserError
from pipelines import settings

EXAMPLE = yaml.safe_load(settings.EXAMPLE.read_text())


def read(folder: Path, **changes: Any) -> settings.Settings:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(EXAMPLE | changes))
    return settings.load(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": {"pretrain": {"memory": ["4Gi", "4Gx"]}}}, "steps.pretrain.memory.1: must be a whole number of bytes"),
        ({"steps": {"pretrain": {"cpu": ["-1", "2"]}}}, "steps.pretrain.cpu.0: must be a number of cores"),
        ({"steps": {"pretrain": {"cpu": ["0", "2"]}}}, "steps.pretrain.cpu.0: must be a number of cores"),
        ({"steps": {"pretrain": {"cpu": ["4", "500m"]}}}, "cpu: the request 4 is above the limit 500m"),
        ({"steps": {"pretrain": {"memory": ["1Gi", "1000M"]}}}, "memory: the request 1Gi is above the limit 1000M"),
        ({"steps": {"pretrain": {"memory": ["1Gi", "4Gi"], "shared_memory": "4096Mi"}}}, "shared_memory: 4096Mi must be below"),
        ({"steps": {"pretrian": {}}}, "steps.pretrian: must be one of begin, "),
        ({"steps": {"pretrain": {"gpu": 1}}}, "steps.pretrain.gpu is not a parameter; did you mean gpus?"),
        ({"images": {"cpu": "a/b:latest", "gpu": "a/b:1"}}, "images.cpu: needs a tag that never moves"),
        ({"images": {"cpu": "host:5000/b", "gpu": "a/b:1"}}, "images.cpu: needs a tag that never moves"),
        ({"images": {"cpu": "a b:1", "gpu": "a/b:1"}}, "images.cpu: must be the name of an image"),
        ({"root": "/data"}, "root: must be an s3:// URI, not '/data'"),
        ({"heads": ["detect"]}, "heads: must have classify"),
        ({"gpu": {"tolerations": [{"key": "a", "operator": "Equal"}]}}, "a toleration has a value with operator Equal"),
        ({"gpu": {"affinity": [{"key": "a"}]}}, "an affinity with operator In needs one or more values"),
        ({"gpu": {"affinity": [{"key": "a", "operator": "Gt", "values": ["40Gi"]}]}}, "operator Gt needs one value, a whole number"),
        ({"gpu": {"affinity": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}, "operator Exists needs no values"),
        ({"secrets": {"s3": {"name": "s3", "keys": {"a": "A-B"}}}}, "secrets.s3.keys.a"),
        (
            {"secrets": {"s3": {"name": "s", "keys": {"a": "A"}}, "webhook": {"name": "w", "keys": {"url": "CXR_WEBHOOK_URL"}}}},
            "secrets.webhook.format is missing",
        ),
        (
            {"secrets": {"s3": {"name": "s", "keys": {"a": "A"}}, "webhook": {"name": "w", "keys": {"url": "URL"}, "format": "slack"}}},
            "secrets.webhook: one key must be mapped to CXR_WEBHOOK_URL",
        ),
        ({"user": {"uid": 0}}, "user.uid: input should be greater than or equal to 1, not 0"),
        ({"queue": {"name": "a queue"}}, "queue.name: string should match"),
        ({"queue": {"name": "q", "topology": "a b"}}, "queue.topology: string should match"),
        ({"images": None}, "images must be a mapping of parameters"),
        ({"secrets": {}}, "secrets.s3 is missing"),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_digest_or_a_port_are_no_tags(tmp_path: Path) -> None:
    digest = f"host:5000/name@sha256:{'0' * 64}"
    assert read(tmp_path, images={"cpu": digest, "gpu": "host:5000/name:1"}).image("cpu") == digest


def test_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=r"a\.yaml"):
        settings.load(tmp_path / "a.yaml")


@pytest.mark.parametrize(("quantity", "value"), [("1Ki", 1024), ("3M", 3_000_000), ("2Ei", 2 * 1024**6), ("7", 7)])
def test_memory_in_bytes(quantity: str, value: int) -> None:
    assert settings.memory_bytes(quantity) == value


def test_the_step_that_launches_waits_as_long_as_pretraining() -> None:
    ours, theirs = settings.load().step("launch"), settings.load().step("pretrain")
    assert (ours.gpus, ours.shared_memory, ours.spot) == (0, None, False)
    assert (ours.timeout_hours, ours.backoff_seconds) == (theirs.timeout_hours, theirs.backoff_seconds)
    assert ours.retries < theirs.retries, "the TrainJob starts its nodes again by itself"
