"""onnxruntime-genai on an exported folder: does it write what the model in it computes?"""

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
_RARE = "Grüße aus 東京: naïve café 🙂\n\n  1234567"
_NEW = 16


def prove(folder: Path) -> dict[str, Any]:
    """Let it read and write: its tokens must be those that ONNX Runtime finds likeliest, the end of a text left out.

    Raises:
        PackageError: if it is missing or broken.
        ExportError: if it does not open the folder, or reads or writes other tokens.
    """
    decoder = Decoder(open_decoder(folder))
    writer = Writer.open(folder)
    reader = model_folder.tokenizer(folder)
    texts, seconds, count = {}, 0.0, 0
    for prompt in PROMPTS:
        ids = writer.shortened(_same_ids(writer, reader, prompt))
        found, took = writer.write(ids)
        wanted = list(decoder.tokens(torch.tensor([ids]), len(found), without=writer.ends))
        _require_same(prompt, found, wanted)
        texts[prompt], seconds, count = writer.decode(found), seconds + took, count + len(found)
    return {
        "equal_tokens": count, "tokens_per_second": (count - len(PROMPTS)) / seconds, "continuations": texts,
        "unlike_transformers": unlike(writer, reader),
    }  # fmt: skip


@dataclass
class Writer:
    """A folder in onnxruntime-genai; `ends` are the tokens that end a text, `length` how many it may have."""

    library: Any
    model: Any
    tokenizer: Any
    ends: list[int]
    padding: int | None
    length: int

    @classmethod
    def open(cls, folder: Path) -> "Writer":
        runtime, told = load(PACKAGE, "genai"), model_folder.read_json(folder / SETTINGS)["model"]
        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": torch.get_num_threads()}}}}
        with _failing("open the model"):
            config = runtime.Config(str(folder))
            config.overlay(json.dumps(options))  # as many threads as the session that it is compared with
            model = runtime.Model(config)
        with _failing("read the tokenizer"):
            tokenizer = runtime.Tokenizer(model)
        ends, padding = told.get("eos_token_id", []), told.get("pad_token_id")
        return cls(runtime, model, tokenizer, ends, padding, int(told["context_length"]))

    def encode(self, text: str) -> list[int]:
        with _failing(f"read {text!r}"):
            return [int(i) for i in self.tokenizer.encode(text)]

    def decode(self, ids: list[int]) -> str:
        with _failing(f"show tokens {ids}"):
            return str(self.tokenizer.decode(np.array(ids, dtype=np.int32)))

    def shortened(self, ids: list[int]) -> list[int]:
        """So many that half of the length is left; padding at the end would be masked."""
        ids = ids[: max(1, self.length // 2)]
        while len(ids) > 1 and ids[-1] == self.padding:
            ids = ids[:-1]
        return ids

    def write(self, ids: list[int]) -> tuple[list[int], float]:
        """The likeliest tokens after `ids`, none of which ends the text, and the seconds for all but the first."""
        with _failing("write"):
            generator = self.generator(min(self.length, len(ids) + _NEW))
            generator.append_tokens(np.array(ids, dtype=np.int32))
            generator.generate_next_token()
            start = time.perf_counter()
            while not generator.is_done():
                generator.generate_next_token()
            took = time.perf_counter() - start
            return [int(i) for i in generator.get_sequence(0)][len(ids) :], took

    def generator(self, length: int) -> Any:
        """What writes a text of so many tokens, the likeliest each time."""
        options = self.library.GeneratorParams(self.model)
        options.set_search_options(
            do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, min_length=length,
            max_length=length,
        )  # fmt: skip
        return self.library.Generator(self.model, options)

    def ask(self, message: str) -> str:
        """A question in the words of the chat template."""
        messages = json.dumps([{"role": "user", "content": message}])
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True))


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """The package raises plain errors of many kinds."""
    try:
        yield
    except Exception as fault:
        raise ExportError(f"onnxruntime-genai cannot {what}{because(fault)}; use target onnx") from fault


def _same_ids(writer: Writer, reader: Any, text: str) -> list[int]:
    found, wanted = writer.encode(text), list(reader(text)["input_ids"])
    if found != wanted:
        raise ExportError(
            f"onnxruntime-genai reads {text!r} as tokens {found}, transformers as {wanted}; use target onnx"
        )
    return found


def _require_same(prompt: str, found: list[int], wanted: list[int]) -> None:
    if found != wanted:
        raise ExportError(
            f"after {prompt!r} onnxruntime-genai writes tokens {found}, ONNX Runtime on the same file {wanted}; "
            "export the model again"
        )


def unlike(writer: Writer, reader: Any) -> list[str]:
    """What it reads otherwise than transformers, and one may have to know."""
    notes = [] if writer.encode(_RARE) == list(reader(_RARE)["input_ids"]) else [f"it reads {_RARE!r} as other tokens"]
    if not reader.chat_template:
        return notes
    wanted = reader.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    try:
        found = writer.ask("Hi")
    except Exception as fault:  # the package raises plain errors of many kinds
        return [*notes, f"it cannot use the chat template{because(fault)}"]
    return notes if found == wanted else [*notes, f"its chat template makes {found!r}, not {wanted!r}"]
