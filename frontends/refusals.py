"""Explain a refusal of torch.export in one message, with the line of model code."""

import io
import logging
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from torch import nn

from graphprune.errors import reason_of

SITE = Path(sysconfig.get_paths()["purelib"])
OTHERS = tuple(str(SITE / name) + os.sep for name in ("torch", "sympy", "mpmath", "numpy"))
STANDARD = sysconfig.get_paths()["stdlib"] + os.sep
NOISE = re.compile(r"\x1b\[[0-9;]*m|(?<=data-dependent expression) .*|(?<=[.!]) +(?=[A-Z]).*")

#: Advice by words of torch's message; the first match counts.
ADVICE = {
    r"data-dependent|\.numpy\(\)|FakeTensor\.__format__": (
        "Values of tensors must not decide what runs, nor leave torch: use torch.where or torch.cond, pass the "
        "decision as a plain argument, or trace the part of the model that does without it."
    ),
    r"(?i)cache\w*.> in output": (
        "The model returns its cache of keys and values; call it without one: pass use_cache=False, as in "
        'graphprune.trace(model, args, {"use_cache": False}), or set model.config.use_cache = False.'
    ),
    r"in output, which is not a known type": (
        "Return tensors, numbers, strings, None, or tuples, lists, dicts and registered classes of them; "
        "torch.export.register_dataclass registers a dataclass."
    ),
    r"Unsupported input|expected \d+ shapes|required argument|unexpected keyword|positional argument|multiple values": (
        "Give args and kwargs as forward takes them: tensors, numbers, strings, None, or tuples, lists and dicts of "
        "them."
    ),
    r"fake impl": "Register a fake kernel: torch.library.register_fake declares the shapes that an operator returns.",
    r"same device": "Put the inputs and all parameters on one device.",
    r"uninitialized parameter": "Run the module once, so that its lazy parameters get their shapes.",
}
OTHERWISE = (
    "See that the module runs on these very inputs in evaluation mode; if it does, trace the part of the model that "
    "torch.export can follow."
)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log lines of torch; text on standard error is shown after the block, if nothing fails."""
    log, printed = logging.getLogger("torch"), io.StringIO()
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
        sys.stderr.write(printed.getvalue())
    finally:
        log.setLevel(level)


def explain(module: nn.Module, fault: BaseException) -> str:
    """Message that names the model, the line of its code, the reason of torch.export, and what to do."""
    frames = [call for call in traceback.extract_tb(fault.__traceback__) if _is_model_code(call.filename)]
    where = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
    reason = NOISE.sub("", reason_of(fault))
    if not isinstance(fault, RuntimeError | AssertionError) and reason != type(fault).__name__:
        reason = f"{type(fault).__name__}: {reason}"
    advice = next((then for words, then in ADVICE.items() if re.search(words, str(fault))), OTHERWISE)
    return f"torch.export cannot capture {type(module).__name__}{where} (reason: {reason})\n{advice}"


def _is_model_code(file: str) -> bool:
    """Whether the author of a model can change the lines of this file, or at least look them up."""
    library = file.startswith((*OTHERS, str(Path(__file__).parent), "<"))
    return not library and (not file.startswith(STANDARD) or file.startswith(str(SITE)))
