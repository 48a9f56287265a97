"""The table of heads: what a pretrained backbone is fine-tuned for."""

from types import ModuleType

from components.classify import registration as classify
from components.detect import registration as detect
from components.invert import registration as invert

TASKS: dict[str, ModuleType] = {"classify": classify, "detect": detect, "invert": invert}
