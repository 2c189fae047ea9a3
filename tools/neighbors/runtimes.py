"""Checks of runtimes: each runs the file that its target writes, called as its own users call it.

The numbers are compared with those that transformers computed with the same folder. Packages are imported inside, since
each is installed for its own check alone.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

import graphprune as gp
from tools.neighbors.neighbor import IDS, PER_LAYER, STOCK, WEB, Neighbor, difference, expected, feeds, load

SCRIPT = Path(__file__).with_name("transformers_logits.cjs")
NEW_TOKENS = 12


def llama_cpp(place: Path) -> float:
    """Each text at once; the layers of the file differ in heads and neurons, and the cache has 32 bits."""
    import llama_cpp as library  # type: ignore[import-not-found,unused-ignore]

    gp.export(place / PER_LAYER, target="gguf", output=place / "gguf", dtype="fp32")
    model = library.Llama(
        str(place / "gguf" / "model.gguf"), n_ctx=64, logits_all=True, verbose=False,
        type_k=library.GGML_TYPE_F32, type_v=library.GGML_TYPE_F32,
    )  # fmt: skip
    rows = []
    for ids in IDS.tolist():
        model.reset()
        model.eval(ids)
        rows.append(torch.from_numpy(np.array(model.scores[: len(ids)], dtype=np.float32)))
    return difference(torch.stack(rows), expected(place, PER_LAYER))


def genai(place: Path) -> float:
    """Share of tokens, greedily chosen, that differ from those of transformers."""
    import onnxruntime_genai as library  # type: ignore[import-not-found,unused-ignore]

    gp.export(place / STOCK, target="genai", output=place / "genai")
    model = library.Model(str(place / "genai"))
    length = IDS.shape[1] + NEW_TOKENS
    options = library.GeneratorParams(model)
    options.set_search_options(do_sample=False, min_length=length, max_length=length)
    generator = library.Generator(model, options)
    generator.append_tokens(IDS[0].numpy().astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    tokens = load(place, STOCK).generate(IDS[:1], do_sample=False, min_length=length, max_length=length)[0].tolist()
    pairs = zip(generator.get_sequence(0), tokens, strict=True)
    return float(np.mean([int(a) != b for a, b in pairs]))


def openvino(place: Path) -> float:
    """The file compiled for the processor, in 32 bits."""
    import openvino as library  # type: ignore[import-not-found,unused-ignore]

    gp.export(place / PER_LAYER, target="openvino", output=place / "openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    model = library.Core().compile_model(str(place / "openvino" / "model.xml"), "CPU", options)
    given = feeds({port.get_any_name(): _sizes(port.get_partial_shape()) for port in model.inputs})
    result = model({name: value.numpy() for name, value in given.items()})
    return difference(torch.from_numpy(result["logits"]), expected(place, PER_LAYER))


def _sizes(shape: Any) -> list[int]:
    """Sizes of a shape of OpenVINO; a dynamic one is -1."""
    return [-1 if size.is_dynamic else size.get_length() for size in shape]


def executorch(place: Path) -> float:
    """Token by token, with the cache in the program."""
    from executorch.runtime import Runtime  # type: ignore[import-not-found,unused-ignore]

    gp.export(place / PER_LAYER, target="executorch", output=place / "executorch", static={"past": 64})
    program = Runtime.get().load_program(place / "executorch" / "model.pte")
    method = program.load_method("forward")
    steps = [
        method.execute([IDS[:1, i : i + 1].contiguous(), torch.tensor([i])])[0].clone() for i in range(IDS.shape[1])
    ]
    return difference(torch.cat(steps, 1), expected(place, PER_LAYER)[:1])


def transformers_js(place: Path) -> float:
    """The folder for the web in Node, by its own class of decoders."""
    command = ["node", str(SCRIPT), str(place / WEB), json.dumps(IDS.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    logits = expected(place, STOCK)
    return difference(torch.tensor(json.loads(done.stdout)).view_as(logits), logits)


RUNTIMES = {
    "llama-cpp-python": Neighbor(
        ("llama-cpp-python", "diskcache"), "runs the GGUF file, whose layers differ", llama_cpp
    ),
    "onnxruntime-genai": Neighbor(("onnxruntime-genai",), "generates the tokens of transformers", genai, 0.0),
    "openvino": Neighbor(("openvino", "openvino-telemetry"), "compiles and runs the IR", openvino),
    "executorch": Neighbor(
        ("executorch", "torchao", "pandas", "ruamel.yaml", "tabulate", "pytorch-tokenizers", "scikit-learn", "scipy",
         "joblib", "threadpoolctl", "narwhals", "cloudpickle", "expecttest", "parameterized", "py-cpuinfo",
         "sentencepiece", "tiktoken"),
        "runs the program for XNNPACK", executorch,
    ),
    "transformers.js": Neighbor(
        ("@huggingface/transformers",), "runs the folder for the web in Node", transformers_js, npm=True
    ),
}  # fmt: skip
