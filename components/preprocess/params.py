"""Parameters of `preprocess`."""

from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from components.common.runs.params import Fraction, Section

LAYOUTS = tuple(module.name for module in iter_modules([str(Path(__file__).parent / "layouts")]))
"""Names of the layouts: those of the modules in the package `layouts`, which are not imported for it."""


def _check_layout(name: str) -> str:
    if name not in LAYOUTS:
        raise ValueError(f"must be one of {', '.join(LAYOUTS)}, not {name!r}")
    return name


def _not_a_yaml_boolean(value: Any) -> Any:
    """Undoes YAML's reading of a bare `off` as false."""
    return "off" if value is False else value


class Preprocess(Section):
    """Raw files to shards."""

    layout: Annotated[str, AfterValidator(_check_layout)] = "table"
    """Layout of the raw folder. table: labels.csv and boxes.csv at its top, both optional; folders: one folder per class; the
    others: a public data set as it is downloaded (components/preprocess/layouts)."""
    split: Literal["hash", "official"] = "hash"
    """hash: by a hash of the patient; official: the split of the data set, as far as it has one (see the module of the layout)."""
    readers: Literal["majority", "any"] = "majority"
    """How the opinions of several readers become one label (layout vindr): more than half of them, or at least one, saw the finding."""
    size: Annotated[int, Field(ge=16, le=4096)] = 512
    """Longer side of a stored image, in pixels; the aspect ratio of the anatomy is kept, also if the pixels of a file are not square."""
    bits: Literal[8, 16] = 8
    """Bits per stored pixel."""
    clip_percentile: Annotated[float, Field(gt=0, le=100)] = 99.0
    """Pixels are clipped to [0, this percentile of the image] and scaled to the full range (as in the paper)."""
    parts: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Number of Parquet files. A hash of its path decides to which one a file belongs."""
    views: tuple[str, ...] = ("PA", "AP")
    """Accepted views, such as PA, AP, LL, RL; LATERAL accepts both laterals. A file that names no view is accepted."""
    body_parts: tuple[Annotated[str, Field(pattern=r"\w")], ...] = ()
    """Names of the chest in Body Part Examined, besides those that are known (CHEST, THORAX, TORAX and others; see checks.py). Case,
    accents and spaces are ignored, and it is enough if the attribute contains one of the names."""
    val_fraction: Fraction = 0.15
    """Fraction of the patients in the validation split."""
    test_fraction: Fraction = 0.2
    """Fraction of the patients in the test split."""
    unknown_labels: Literal["ignore", "ones", "zeros"] = "ignore"
    """Meaning of a label of -1: unknown, positive or negative (CheXpert's U-Ignore, U-Ones and U-Zeros)."""
    text_check: Annotated[Literal["report", "quarantine", "off"], BeforeValidator(_not_a_yaml_boolean)] = "report"
    """Handling of an image that seems to have text near its border. report: it is counted and listed; quarantine: it is refused."""

    @model_validator(mode="after")
    def _splits_leave_training(self) -> "Preprocess":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self
