"""What tests of several folders share: real data where it is at hand, and tiny random models."""

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.config
import transformers
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from graphprune.frontends import modules
from tests import small_configs
from tests.capture_cache import CaptureCache

# A machine that is busy with other things is no fault of a test.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")

# Libraries are never collected, and what tests make is collected less often.
gc.freeze()
gc.set_threshold(20_000, 20, 50)

modules.export = CaptureCache(modules.export)

# A cache that pays off in deep models makes captures of small ones slower, by a fifth.
torch._dynamo.config.fake_tensor_cache_enabled = False

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
WORDS = 60
TEXT = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {"embedding_size": 8, "depths": [1, 2]}
TINY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {
        **TEXT, **SIZES, "num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True,
        "max_position_embeddings": 64,
    }),
    "opt": ("OPTConfig", "OPTForCausalLM", {
        **TEXT, **SIZES, "ffn_dim": 40, "word_embed_proj_dim": 32, "max_position_embeddings": 64,
    }),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**TEXT, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "bert": ("BertConfig", "BertForSequenceClassification", {**TEXT, **SIZES, "num_labels": 3}),
    "vit": ("ViTConfig", "ViTForImageClassification", {**SIZES, "image_size": 16, "patch_size": 8, "num_labels": 3}),
    "resnet-basic": ("ResNetConfig", "ResNetForImageClassification", {
        **IMAGE, "hidden_sizes": [8, 16], "layer_type": "basic",
    }),
    "resnet-bottleneck": ("ResNetConfig", "ResNetForImageClassification", {
        **IMAGE, "hidden_sizes": [16, 32], "layer_type": "bottleneck",
    }),
    "mobilenet": ("MobileNetV2Config", "MobileNetV2ForImageClassification", {
        "depth_multiplier": 0.25, "image_size": 32, "num_labels": 3,
    }),
}  # fmt: skip
DECODERS = ("llama", "opt", "gpt2")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

Tiny = Callable[..., nn.Module]
Inputs = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="session")
def configure() -> Callable[..., transformers.PreTrainedConfig]:
    """Configurations of small models by kind, with fields changed."""
    return small_configs.configure


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Real models and texts, which lie beside some checkouts; tests that want them are skipped elsewhere."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"{path} is not here: it holds real data, which the repository does not carry")
        return path

    return find


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """A random model of a kind, always the same, with weights so large that differences show."""

    def make(kind: str, **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        config, architecture, fields = TINY[kind]
        made: nn.Module = getattr(transformers, architecture)(getattr(transformers, config)(**{**fields, **changes}))
        for name, tensor in made.named_parameters():
            scale = (2 / tensor[0].numel()) ** 0.5 if tensor.dim() == 4 else 0.2  # of a kernel: what goes in comes out
            nn.init.normal_(tensor, 1.0 if tensor.dim() == 1 and name.endswith("weight") else 0.0, scale)
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 1.5)
        return made.eval()

    return make


@pytest.fixture(scope="session")
def inputs() -> Inputs:
    """Named inputs for a model of a kind."""

    def make(kind: str) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        if kind in (*DECODERS, "bert"):
            cache = {"use_cache": False} if kind in DECODERS else {}
            return {"input_ids": torch.randint(3, WORDS, (2, 7), generator=generator), **cache}
        side = TINY[kind][2].get("image_size", 32)
        return {"pixel_values": torch.randn(2, 3, side, side, generator=generator)}

    return make


@pytest.fixture(scope="session")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved decoder with its tokenizer; tests only read it."""
    path = tmp_path_factory.mktemp("saved") / "llama"
    tiny("llama").save_pretrained(path)  # type: ignore[operator]
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, WORDS)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    kind: Any = PreTrainedTokenizerFast
    kind(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words that the tokenizer of `folder` knows, in an order with some pattern."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(f"w{3 + (i * i + i // 7) % (WORDS - 3)}" for i in range(4000)))
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install '.[dev]'")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} is on PATH")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=program, args=FLAGS)
        yield running
        running.close()
