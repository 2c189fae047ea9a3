"""Models that people bring: detectors, diffusion models, models that see and hear, mixtures of experts, adapters.

Each is built by the library that its users have, with that library's own training and export where it has them::

    model = field.get("ultralytics/yolov8n")
    module, (args, kwargs) = model.build(), model.inputs()

All are tiny or the smallest of their kind, randomly initialized from a seed, and need no download. The libraries are in
tools/zoo_benchmark/field_requirements.txt.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

from tests.zoo.field import detectors, diffusion, folders, language, multimodal, vision
from tests.zoo.field.case import FieldFolder as FieldFolder
from tests.zoo.field.case import FieldModel as FieldModel

MODELS: Mapping[str, FieldModel | FieldFolder] = MappingProxyType(
    {
        **detectors.MODELS, **vision.MODELS, **diffusion.MODELS, **multimodal.MODELS, **language.MODELS,
        **folders.MODELS,
    }
)  # fmt: skip
NAMES: tuple[str, ...] = tuple(MODELS)


def get(name: str) -> FieldModel | FieldFolder:
    """The model of a name.

    Raises:
        KeyError: if there is no such name.
    """
    if name not in MODELS:
        raise KeyError(f"the field family has no {name!r}, only {', '.join(NAMES)}")
    return MODELS[name]


def missing(name: str) -> list[str]:
    """Packages that a model needs and that are not installed."""
    return [package for package in get(name).packages if find_spec(package) is None]
