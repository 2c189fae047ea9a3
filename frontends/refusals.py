"""What torch.export says when it refuses a module, as one message with the line of model code."""

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

#: What can be done, by words of torch's message; the first that is found counts.
ADVICE = {
    r"data-dependent|\.numpy\(\)|FakeTensor\.__format__": (
        "Values of tensors must not decide what runs, nor leave torch: use torch.where or torch.cond, pass the "
        "decision as a plain argument, or trace the part of the model that does without it."
    ),
    r"in output, which is not a known type": (
        "Return tensors, numbers, strings, None, or tuples, lists, dicts and registered classes of them; "
        "torch.export.register_dataclass registers a dataclass."
    ),
    r"Unsupported input|expected \d+ shapes|required argument|unexpected keyword|positional argument|multiple values": (
        "Give args and kwargs as forward takes them: tensors, numbers, strings, None, or tuples, lists and dicts of "
        "them."
    ),
    r"fake impl": "Register a fake kernel: torch.library.register_fake tells the shapes of what an operator returns.",
    r"same device": "Put the inputs and all parameters on one device.",
    r"uninitialized parameter": "Run the module once, so that its lazy parameters get their shapes.",
}
OTHERWISE = (
    "See that the module runs on these very inputs in evaluation mode; if it does, trace the part of the model that "
    "torch.export can follow."
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what torch prints and warns; what is printed to standard error is shown if nothing fails."""
    log, said = logging.getLogger("torch"), io.StringIO()
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
        sys.stderr.write(said.getvalue())
    finally:
        log.setLevel(level)


def explain(module: nn.Module, fault: BaseException) -> str:
    """One message: which model, which line of it, what torch.export said, and what to do."""
    frames = [call for call in traceback.extract_tb(fault.__traceback__) if _is_model_code(call.filename)]
    where = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
    said = NOISE.sub("", reason_of(fault))
    if not isinstance(fault, RuntimeError | AssertionError) and said != type(fault).__name__:
        said = f"{type(fault).__name__}: {said}"
    advice = next((then for words, then in ADVICE.items() if re.search(words, str(fault))), OTHERWISE)
    return f"torch.export cannot capture {type(module).__name__}{where} (reason: {said})\n{advice}"


def _is_model_code(file: str) -> bool:
    """Is a line of this file one that the author of a model can change, or at least look up?"""
    library = file.startswith((*OTHERS, str(Path(__file__).parent), "<"))
    return not library and (not file.startswith(STANDARD) or file.startswith(str(SITE)))
