"""Convert the weights of a GGUF file to safetensors, dequantized one at a time.

Names and layouts follow the tables of transformers, whose own converter would hold all weights in memory at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.errors import LoadError
from graphprune.frontends import gguf_header
from graphprune.huggingface.config_limits import require_harmless
from graphprune.huggingface.meta_models import weightless
from graphprune.ir import weight_files
from graphprune.support.packages import Lazy, gguf, transformers

_architectures = Lazy("transformers.integrations.gguf.utils")
_rules = Lazy("transformers.modeling_gguf_pytorch_utils")

CHUNK = 1 << 20  # numbers to unpack at once
MOST = 2  # parameters for each element of a file, in which a head may share its tensor with an embedding


class NotByName(Exception):  # noqa: N818 - no error: there is another way
    """Some weight has no tensor that is known by name, so that all have to be read together."""


@dataclass(frozen=True)
class _File:
    """Tensors of a file by the name of their weight; `names` has the names of weights by those of tensors."""

    processor: Any
    names: Mapping[str, str]
    tensors: Mapping[str, Sequence[Any]]

    @classmethod
    def open(cls, file: Path, model: Any) -> "_File":
        """Read the table of tensors, but none of their numbers."""
        reader: Any = gguf.GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
        if _architectures.is_gguf_arch_supported(architecture):
            raise NotByName(f"transformers converts architecture {architecture} by rules of its own")
        settings: Any = _rules.load_gguf_checkpoint(str(file))
        kind: Any = _rules.TENSOR_PROCESSORS.get(architecture, _rules.TensorProcessor)
        processor = kind(config=settings["config"])
        names = _rules.get_gguf_hf_weights_map(model, processor)
        tensors: dict[str, list[Any]] = {}
        for tensor in reader.tensors:
            name = names.get(tensor.name, names.get(tensor.name.removesuffix(".weight")))
            if name is not None:
                tensors.setdefault(name, []).append(tensor)
        return cls(processor, names, tensors)

    def read(self, name: str) -> Tensor:
        """Read one weight, in single precision."""
        made: dict[str, Tensor] = {}  # processors store here what they combine of several tensors
        for tensor in self.tensors[name]:
            parsed = {"tensors": made}
            processed = self.processor.process(
                weights=_numbers(tensor), name=tensor.name, tensor_key_mapping=self.names, parsed_parameters=parsed
            )
            if processed.name in self.names:
                made[self.names[processed.name]] = torch.from_numpy(np.ascontiguousarray(processed.weights)).float()
        return made[name]


def _numbers(tensor: Any) -> NDArray[np.float32]:
    """Numbers of a tensor, unpacked some rows at a time because unpacking takes several times their memory."""
    packed = tensor.data.reshape(-1, tensor.data.shape[-1])
    shape = tuple(int(n) for n in reversed(tensor.shape))
    made = np.empty((len(packed), shape[-1]), np.float32)
    for start in range(0, len(packed), rows := max(CHUNK // shape[-1], 1)):
        made[start : start + rows] = gguf.dequantize(packed[start : start + rows], tensor.tensor_type)
    return made.reshape(shape)


def write(file: Path, target: Path) -> None:
    """Fill a folder with the configuration and the weights of a GGUF file.

    Raises:
        LoadError: if its header does not fit it, or a model of its settings has far more numbers than its tensors.
        NotByName: before anything is written, if the weights cannot be made one at a time.
    """
    elements = gguf_header.check(file)
    config = transformers.AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    require_harmless(config.to_dict(), file)
    auto: Any = transformers.AutoModelForCausalLM
    model: Any = weightless(lambda settings: auto.from_config(settings, dtype=torch.float32), config)
    if (size := model.num_parameters()) > MOST * elements:
        raise LoadError(f"a model of its settings has {size:,} parameters, and its tensors have {elements:,} elements")
    source = _File.open(file, model)
    stored = {
        group[0]: next((name for name in group if name in source.tensors), None)
        for group in weight_files.aliases(model)
    }
    if missing := [name for name, tensor in stored.items() if tensor is None]:
        raise NotByName(f"none of its tensors is known by name as {missing[0]}")
    state = weight_files.distinct(model)
    weight_files.write_shards(target, state, lambda name: source.read(str(stored[name])))
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
