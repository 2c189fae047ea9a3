"""Facts about the source of a model for the card of a pruned one: its name on the hub, license and task."""

import re
from dataclasses import dataclass
from pathlib import Path

from graphprune.errors import LoadError
from graphprune.huggingface.model_folder import CONFIG, read_json

_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)$")  # the folder of a model in the cache of the hub
_TASKS = {
    "ForCausalLM": "text-generation", "LMHeadModel": "text-generation", "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering", "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection", "ForSemanticSegmentation": "image-segmentation",
    "ForAudioClassification": "audio-classification", "ForCTC": "automatic-speech-recognition",
    "ForSpeechSeq2Seq": "automatic-speech-recognition", "ForDepthEstimation": "depth-estimation",
    "ForImageTextToText": "image-text-to-text",
}  # fmt: skip


@dataclass(frozen=True)
class CardFacts:
    """Name of the source on the hub, its license and its task, each as the hub writes it; None and "" where unknown."""

    base_model: str | None = None
    licence: str | None = None
    task: str = ""


def card_facts(model: object) -> CardFacts:
    """Facts that a saved model tells by its card, its configuration and its place in the cache of the hub."""
    folder = Path(model) if isinstance(model, str | Path) else None
    if folder is None or not folder.is_dir():
        return CardFacts()
    from huggingface_hub import ModelCard  # here, so that modules in memory are pruned without it
    from yaml import YAMLError

    try:
        known = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, YAMLError):  # no card, or one that the hub would refuse
        known = {}
    name, licence, task = (known.get(key) for key in ("base_model", "license", "pipeline_tag"))
    name = next(iter(name), None) if isinstance(name, list) else name
    cached = _SNAPSHOT.search(str(folder.absolute().parent.parent))
    return CardFacts(
        base_model="/".join(cached.groups()) if cached else name if isinstance(name, str) else None,
        licence=licence if isinstance(licence, str) else None,
        task=task if isinstance(task, str) else _task(folder),
    )


def _task(folder: Path) -> str:
    """Task of the class that config.json names, by the end of its name."""
    try:
        classes = read_json(folder / CONFIG).get("architectures") or [""]
    except LoadError:
        return ""
    name = str(classes[0]) if isinstance(classes, list) else ""
    return next((task for end, task in _TASKS.items() if name.endswith(end)), "")
