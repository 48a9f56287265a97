import pytest

from components.common.errors import UserError
from components.common.formats.backbone import check_backbone


@pytest.mark.parametrize("name", ["arch", "normalisation", "sha256"])
def test_what_is_missing_is_named(name: str) -> None:
    content = {"arch": "resnet18", "normalisation": {"mean": 0.5, "std": 0.2}, "sha256": "0"}
    assert check_backbone(content, "backbone.json") == content
    del content[name]
    with pytest.raises(UserError, match=rf"backbone\.json: lacks {name}; run pretrain again"):
        check_backbone(content, "backbone.json")
