"""Check of an exported folder in onnxruntime-genai: it must generate the tokens that the model in it predicts."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphprune.errors import ExportError, because
from graphprune.exporters.checks.generation import Decoder, open_decoder
from graphprune.huggingface import model_folder
from graphprune.support.packages import load

PACKAGE, SETTINGS = "onnxruntime_genai", "genai_config.json"
PROMPTS = ("The capital of France is", "def add(a, b):\n    return", "Once upon a time, in a small town,")
_UNUSUAL = "Grüße aus 東京: naïve café 🙂\n\n  1234567"
_NEW_TOKENS = 16


def check_generation(folder: Path) -> dict[str, Any]:
    """Encode and generate text: the tokens must be those with the highest logits in ONNX Runtime, without end tokens.

    Raises:
        PackageError: if onnxruntime-genai is missing or broken.
        ExportError: if it does not open the folder, or encodes or generates other tokens.
    """
    decoder = Decoder(open_decoder(folder))
    generator = GenaiModel.open(folder)
    reader = model_folder.tokenizer(folder)
    texts, seconds, total = {}, 0.0, 0
    for prompt in PROMPTS:
        ids = generator.prompt_ids(_encode_alike(generator, reader, prompt))
        generated, duration = generator.generate(ids)
        expected = list(decoder.tokens(torch.tensor([ids]), len(generated), excluded=generator.ends))
        _require_equal(prompt, generated, expected)
        texts[prompt], seconds, total = generator.decode(generated), seconds + duration, total + len(generated)
    return {
        "equal_tokens": total, "tokens_per_second": (total - len(PROMPTS)) / seconds, "continuations": texts,
        "unlike_transformers": differences_from_transformers(generator, reader),
    }  # fmt: skip


@dataclass
class GenaiModel:
    """A folder opened in onnxruntime-genai; `ends` are the tokens that end a text, `length` is the context length."""

    library: Any
    model: Any
    tokenizer: Any
    ends: list[int]
    padding: int | None
    length: int

    @classmethod
    def open(cls, folder: Path) -> "GenaiModel":
        runtime, settings = load(PACKAGE, "genai"), model_folder.read_json(folder / SETTINGS)["model"]
        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": torch.get_num_threads()}}}}
        with _as_export_error("open the model"):
            config = runtime.Config(str(folder))
            config.overlay(json.dumps(options))  # the same number of threads as the reference session
            model = runtime.Model(config)
        with _as_export_error("read the tokenizer"):
            tokenizer = runtime.Tokenizer(model)
        ends, padding = settings.get("eos_token_id", []), settings.get("pad_token_id")
        return cls(runtime, model, tokenizer, ends, padding, int(settings["context_length"]))

    def encode(self, text: str) -> list[int]:
        with _as_export_error(f"encode {text!r}"):
            return [int(i) for i in self.tokenizer.encode(text)]

    def decode(self, ids: list[int]) -> str:
        with _as_export_error(f"decode tokens {ids}"):
            return str(self.tokenizer.decode(np.array(ids, dtype=np.int32)))

    def prompt_ids(self, ids: list[int]) -> list[int]:
        """The ids cut to half of the context length, without padding at the end, which would be masked."""
        ids = ids[: max(1, self.length // 2)]
        while len(ids) > 1 and ids[-1] == self.padding:
            ids = ids[:-1]
        return ids

    def generate(self, ids: list[int]) -> tuple[list[int], float]:
        """Greedy tokens after `ids`, without end tokens, and the seconds for all but the first."""
        with _as_export_error("generate text"):
            generator = self.generator(min(self.length, len(ids) + _NEW_TOKENS))
            generator.append_tokens(np.array(ids, dtype=np.int32))
            generator.generate_next_token()
            start = time.perf_counter()
            while not generator.is_done():
                generator.generate_next_token()
            duration = time.perf_counter() - start
            return [int(i) for i in generator.get_sequence(0)][len(ids) :], duration

    def generator(self, length: int) -> Any:
        """A generator of greedy text of exactly `length` tokens."""
        options = self.library.GeneratorParams(self.model)
        options.set_search_options(
            do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, min_length=length,
            max_length=length,
        )  # fmt: skip
        return self.library.Generator(self.model, options)

    def chat_prompt(self, message: str) -> str:
        """The prompt for a user message, rendered by the chat template."""
        messages = json.dumps([{"role": "user", "content": message}])
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True))


@contextmanager
def _as_export_error(action: str) -> Iterator[None]:
    """Convert the package's errors, which have many types, to an ExportError."""
    try:
        yield
    except Exception as fault:
        raise ExportError(f"onnxruntime-genai cannot {action}{because(fault)}; use target onnx") from fault


def _encode_alike(generator: GenaiModel, reader: Any, text: str) -> list[int]:
    ids, expected = generator.encode(text), list(reader(text)["input_ids"])
    if ids != expected:
        raise ExportError(
            f"onnxruntime-genai encodes {text!r} as tokens {ids}, transformers as {expected}; use target onnx"
        )
    return ids


def _require_equal(prompt: str, generated: list[int], expected: list[int]) -> None:
    if generated != expected:
        raise ExportError(
            f"after {prompt!r} onnxruntime-genai generates tokens {generated}, ONNX Runtime on the same file "
            f"{expected}; export the model again"
        )


def differences_from_transformers(generator: GenaiModel, reader: Any) -> list[str]:
    """Notes on text that onnxruntime-genai encodes or renders differently from transformers."""
    equal = generator.encode(_UNUSUAL) == list(reader(_UNUSUAL)["input_ids"])
    notes = [] if equal else [f"it encodes {_UNUSUAL!r} as other tokens"]
    if not reader.chat_template:
        return notes
    message = {"role": "user", "content": "Hi"}
    expected = reader.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    try:
        rendered = generator.chat_prompt("Hi")
    except Exception as fault:  # the package raises errors of many types
        return [*notes, f"it cannot use the chat template{because(fault)}"]
    return notes if rendered == expected else [*notes, f"its chat template makes {rendered!r}, not {expected!r}"]
