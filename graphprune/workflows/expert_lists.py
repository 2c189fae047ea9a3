"""Files that name the experts to remove in each layer, as in ``{"3": [1, 5], "4": [0, 2]}``."""

from pathlib import Path

from graphprune.support import json_fields


def read(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Indices to drop by the name of a group; a number stands for the experts of the layer of this number.

    Raises:
        LoadError: if the file is missing, or no JSON object with a list of whole numbers for each layer.
    """
    try:
        entries = json_fields.read(Path(path)).entries()
        chosen = {key: tuple(field.whole_numbers()) for key, field in entries.items()}
        if not chosen:
            raise ValueError("it names no layer")
    except (OSError, ValueError) as fault:
        advice = 'it must be a JSON object such as {"3": [1, 5], "4": [0, 2]}'
        raise json_fields.refused(Path(path), "is no list of experts by layer", fault, advice) from fault
    return {f"*.{key}.*:experts" if key.isdigit() else key: indices for key, indices in chosen.items()}
