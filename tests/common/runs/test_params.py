from pathlib import Path

import pytest
from pydantic import ValidationError

from components.common.errors import UserError
from components.params import Params, load


@pytest.fixture
def refused(tmp_path: Path) -> "Refused":
    return Refused(tmp_path / "params.yaml")


class Refused:
    """Loads a text that must be refused; returns the error message."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, text: str, *overrides: str) -> str:
        self.path.write_text(text)
        with pytest.raises(UserError) as error:
            load(self.path, list(overrides))
        message = str(error.value)
        assert "\n" not in message
        return message


def test_missing_keys_take_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("pretrain: {epochs: 3, lr: 3e-4}\nregister: {min_auroc: 0.9}\n")
    params = load(path)
    assert (params.pretrain.epochs, params.pretrain.lr) == (3, 0.0003)  # YAML 1.1 parses 3e-4 as a string
    assert params.register_.min_auroc == 0.9
    assert params.pretrain.arch == Params().pretrain.arch
    path.write_text("")
    assert load(path) == Params()


def test_overrides_win(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("pretrain: {epochs: 3}\n")
    params = load(path, ["pretrain.epochs=4", "preprocess.views=[PA]", "register.name=other", "pretrain.epochs=5"])
    assert (params.pretrain.epochs, params.preprocess.views, params.register_.name) == (5, ("PA",), "other")


def test_unknown_keys_are_named_with_a_suggestion(refused: Refused) -> None:
    assert refused("pretrain: {epoch: 3}") == f"{refused.path}: pretrain.epoch is not a parameter; did you mean epochs?"
    assert refused("pretrian: {epochs: 3}") == f"{refused.path}: pretrian is not a parameter; did you mean pretrain?"
    assert refused("register_: {}").endswith("register_ is not a parameter; did you mean register?")
    nested = refused("pretrain: {terms: {layer1: {wight: 2}}}")
    assert nested.endswith("pretrain.terms.layer1.wight is not a parameter; did you mean weight?")
    assert refused("", "register.min_auc=1").endswith("register.min_auc is not a parameter; did you mean min_auroc?")
    assert "known: name, min_auroc" in refused("register: {zzzz: 1}")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("pretrain: {epochs: 0}", "pretrain.epochs: input should be greater than or equal to 1, not 0"),
        ("pretrain: {epochs: many}", "pretrain.epochs: input should be a valid integer"),
        ("pretrain: {arch: vgg}", "pretrain.arch: input should be 'resnet18' or 'resnet50', not 'vgg'"),
        ("pretrain: {lr: .inf}", "pretrain.lr: "),
        ("pretrain: {lr: .nan}", "pretrain.lr: "),
        ("pretrain: {queue_size: 100, batch_size: 64}", "pretrain: queue_size must be a multiple of batch_size"),
        ("preprocess: {val_fraction: 0.5, test_fraction: 0.5}", "preprocess: val_fraction + test_fraction must be below 1"),
        ("register: {name: 'a/b'}", "register.name: "),
        ("pretrain: 3", "pretrain must be a mapping"),
        ("pretrain:", "pretrain must be a mapping"),
        ("- 1", "must be a mapping of sections"),
        ("a: [1", "not valid YAML"),
        ("a: 1\n\tb: 2", "not valid YAML"),
    ],
)
def test_bad_values_are_named(refused: Refused, text: str, part: str) -> None:
    message = refused(text)
    assert message.startswith(f"{refused.path}: ")
    assert part in message


@pytest.mark.parametrize("override", ["epochs=3", "pretrain.epochs", "=3", ".a=3", "pretrain.=3"])
def test_bad_overrides_show_the_expected_form(refused: Refused, override: str) -> None:
    assert refused("", override) == f"--set {override}: must have the form section.key=value"


def test_bad_override_values(refused: Refused) -> None:
    assert refused("", "pretrain.epochs=[1") == "--set pretrain.epochs=[1: the value is not valid YAML"
    assert "pretrain must be a mapping" in refused("pretrain: 3", "pretrain.epochs=1")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read .* --params"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="not valid YAML"):
        load(tmp_path / "binary.yaml")


def test_params_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Params().pretrain.epochs = 3  # type: ignore[misc]


def test_every_parameter_is_documented() -> None:
    for name, section in Params.model_fields.items():
        fields = section.annotation.model_fields  # type: ignore[union-attr]
        assert [key for key, field in fields.items() if not field.description] == [], name
