"""Saved programs: the same numbers, and nothing that runs code when it is read."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from graphprune.errors import LoadError
from graphprune.frontends import pt2_programs
from graphprune.frontends.loading import load
from graphprune.frontends.modules import export, trace
from graphprune.ir import pt2_archive, pt2_safety

X = torch.randn(3, 8)
Edit = Callable[[Any], object]


class Model(nn.Module):
    """Has parameters, a buffer, a dynamic size and a structured output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(32, 4)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.first(x) * scale)
        return {"out": self.second(torch.cat((hidden, hidden), -1).view(x.shape[0], -1)) + self.shift}


class Evil:
    """Shows itself when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    model = Model().eval()
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    torch.export.save(export(model, (X,), {"scale": torch.tensor(2.0)}), path)
    return path, model


def rewritten(saved: Path, path: Path, records: dict[str, bytes | Edit]) -> Path:
    """A copy in which some records are replaced, or edited as JSON."""
    reader = PT2ArchiveReader(str(saved))
    with PT2ArchiveWriter(str(path)) as writer:
        for name in [*reader.get_file_names(), *(n for n in records if n not in reader.get_file_names())]:
            if name.startswith(".data") or name in ("archive_format", "archive_version", "byteorder"):
                continue
            writer.write_bytes(name, _content(reader, name, records.get(name)))
    return path


def _content(reader: PT2ArchiveReader, name: str, change: bytes | Edit | None) -> bytes:
    if isinstance(change, bytes):
        return change
    content: bytes = reader.read_bytes(name)
    if change is None:
        return content
    tree = json.loads(content)
    change(tree)
    return json.dumps(tree).encode()


def test_a_saved_program_computes_the_same(saved: tuple[Path, nn.Module]) -> None:
    path, model = saved
    program = load(path)
    x, scale = torch.randn(5, 8), torch.tensor(3.0)
    torch.testing.assert_close(program.module()(x, scale=scale)["out"], model(x, scale=scale)["out"])
    assert program.parameters == {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert program.source is not None
    assert (program.source.kind, program.source.path) == ("pt2", path)
    torch.testing.assert_close(program.inputs[0][0], X)


def test_a_folder_with_a_program_and_an_unharmed_copy(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    rewritten(saved[0], tmp_path / "model.pt2", {})
    (tmp_path / "config.json").write_text("{}")
    assert load(tmp_path).fingerprint() == load(saved[0]).fingerprint()


class Tied(nn.Module):
    """Its head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(ids))
        return logits


def test_shared_parameters_stay_one(tmp_path: Path) -> None:
    model, ids = Tied(), torch.randint(0, 16, (2, 5))
    torch.export.save(export(model, (ids,), {}), tmp_path / "tied.pt2")
    program = load(tmp_path / "tied.pt2")
    assert dict(program.ties) == {"head.weight": "embedding.weight"}
    assert program.fingerprint() == trace(model, (ids,)).fingerprint()


def _pickled(thing: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def _node(tree: Any) -> Any:
    return tree["graph_module"]["graph"]["nodes"][0]


def _operator(name: str) -> Edit:
    return lambda tree: _node(tree).update(target=name)


def _size(text: str) -> Edit:
    expression = {"as_expr": {"expr_str": text, "hint": {"as_int": 3}}}
    return lambda tree: tree["graph_module"]["graph"]["tensor_values"]["x"].update(sizes=[expression, {"as_int": 8}])


def _name(text: str) -> Edit:
    return lambda tree: tree["graph_module"]["graph"]["inputs"][0]["as_tensor"].update(name=text)


def _structure(kind: str, context: Any) -> Edit:
    spec = json.dumps([1, {"type": kind, "context": json.dumps(context), "children_spec": []}])
    return lambda tree: tree["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=spec)


def _constant(path: str) -> Edit:
    return lambda tree: tree["config"].update(x={"path_name": path, "use_pickle": False, "tensor_meta": None})


def _weight_as_pickle(tree: Any) -> None:
    tree["config"]["first.weight"]["use_pickle"] = True


ENUMERATION = [{"__enum__": True, "fqn": "os:x"}]
FACTORY = {"default_factory_module": "os", "default_factory_name": "abort", "dict_context": []}
HOSTILE: dict[str, tuple[str, bytes | Edit, str]] = {
    "example inputs": (pt2_safety.SAMPLES, _pickled(((Evil(),), {})), r"example inputs that are no tensors"),
    "allocation": (pt2_safety.SAMPLES, _pickled(((bytearray(8),), {})), r"no tensors in plain containers"),
    "old pickle": (pt2_safety.SAMPLES, pickle.dumps(((), {})), r"no tensors in plain containers"),
    "weight": (pt2_safety.WEIGHTS, _weight_as_pickle, r"first\.weight as a pickle"),
    "object": (pt2_safety.CONSTANTS, _constant("opaque_obj_0"), r"x, which is no tensor"),
    "script object": (pt2_safety.CONSTANTS, _constant("custom_obj_0"), r"x, which is no tensor"),
    "old weights": ("data/weights/model.pt", pickle.dumps(Evil()), r"the record 'data/weights/model\.pt'"),
    "native code": ("data/aotinductor/model/a.so", b"", r"the record 'data/aotinductor/model/a\.so'"),
    "old format": ("serialized_state_dict.pt", b"", r"the record 'serialized_state_dict\.pt'"),
    "function": (pt2_safety.MODEL, _operator("torch.os.system"), r"the operator 'torch\.os\.system'"),
    "library": (pt2_safety.MODEL, _operator("torch.ops.load_library"), r"the operator 'torch\.ops\.load_library'"),
    "file": (pt2_safety.MODEL, _operator("torch.ops.aten.from_file.default"), r"the operator .*from_file"),
    "attribute": (pt2_safety.MODEL, _operator("_operator.attrgetter"), r"the operator '_operator\.attrgetter'"),
    "packet": (pt2_safety.MODEL, _operator("torch.ops.aten.linear.__class__"), r"the operator 'torch\.ops\.aten"),
    "other target": (pt2_safety.MODEL, _operator("f(x)"), r"the name 'f\(x\)'"),
    "size": (pt2_safety.MODEL, _size("__import__('os').abort()"), r"the size \"__import__"),
    "size by lambda": (pt2_safety.MODEL, _size("(lambda: 3)()"), r"the size '\(lambda"),
    "size by attribute": (pt2_safety.MODEL, _size("Symbol('s0').__class__"), r"the size \"Symbol"),
    "tower of powers": (pt2_safety.MODEL, _size("Pow(9, Pow(9, 9))"), r"the size 'Pow"),
    "long size": (pt2_safety.MODEL, _size("x" * 100_000), r"the size 'x{190}\.\.\.;"),
    "symbol": (pt2_safety.MODEL, _size("Symbol('a.b(c)')"), r"the size \"Symbol"),
    "name": (pt2_safety.MODEL, _name("x=__import__('os').abort()"), r"the name \"x=__import__"),
    "factory": (pt2_safety.MODEL, _structure("collections.defaultdict", FACTORY), r"the context .*default_factory"),
    "enumeration": (pt2_safety.MODEL, _structure("builtins.dict", ENUMERATION), r"the context .*__enum__"),
}


def refused(original: Path, folder: Path, changes: dict[str, bytes | Edit], match: str) -> None:
    """A file with changed records is not loaded, for a reason."""
    path = rewritten(original, folder / "evil.pt2", changes)
    with pytest.raises(LoadError, match=rf"evil\.pt2 is refused: {match}"):
        pt2_programs.load(path)


@pytest.mark.parametrize("what", HOSTILE)
def test_what_may_run_code_is_refused(saved: tuple[Path, nn.Module], tmp_path: Path, what: str) -> None:
    record, change, match = HOSTILE[what]
    refused(saved[0], tmp_path, {record: change}, rf"it holds .*{match}.*trust the file")


def test_broken_files(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "broken.pt2"
    with pytest.raises(LoadError, match=r"broken\.pt2 does not exist, expected a program saved with torch"):
        load(path)
    whole = saved[0].read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(LoadError, match=rf"broken\.pt2 \({len(content)} bytes\) is truncated, corrupt or of"):
            load(path)


def test_a_program_without_example_inputs(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path = rewritten(saved[0], tmp_path / "no_inputs.pt2", {pt2_safety.SAMPLES: b""})
    with pytest.raises(LoadError, match=r"no_inputs\.pt2 holds no example inputs"):
        load(path)


def _endless(levels: int) -> object:
    value: object = torch.zeros(1)
    for _ in range(levels):
        value = (value, value)
    return value


def _stretched(tree: Any) -> None:
    meta = tree["config"]["first.weight"]["tensor_meta"]
    meta.update(sizes=[{"as_int": 2**40}, {"as_int": 8}], strides=[{"as_int": 0}, {"as_int": 1}])


def _root_of_a_size(tree: Any) -> None:
    for value in tree["graph_module"]["graph"]["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] += "**0.5"


ODD: dict[str, Edit] = {
    "a root as a size": _root_of_a_size,
    "no calls": lambda tree: tree["graph_module"].update(module_call_graph=[]),
    "a number as guards": lambda tree: tree.update(guards_code=5),
}


@pytest.mark.parametrize("what", ODD)
def test_a_program_that_torch_reads_and_cannot_run(saved: tuple[Path, nn.Module], tmp_path: Path, what: str) -> None:
    path = rewritten(saved[0], tmp_path / "odd.pt2", {pt2_safety.MODEL: ODD[what]})
    with pytest.raises(LoadError, match=r"odd\.pt2 .*save it again with torch\.export\.save"):
        pt2_programs.load(path)


def test_damaged_weights_are_not_read(saved: tuple[Path, nn.Module], tmp_path: Path) -> None:
    """torch reads whatever a record holds, and an empty one as zeros."""
    path, content = tmp_path / "damaged.pt2", bytearray(saved[0].read_bytes())
    weight = saved[1].get_parameter("second.weight").detach().numpy().tobytes()
    content[content.index(weight) + 40] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        LoadError, match=r"damaged\.pt2 is refused: its record '.*weight_\d' does not have the checksum"
    ):
        pt2_programs.load(path)
    refused(
        saved[0], tmp_path, {"data/weights/weight_0": b""}, r"the record of first\.weight is empty, expected .*16, 8"
    )


def _declared(tree: Any) -> None:
    tree["graph_module"]["graph"]["tensor_values"]["p_first_weight"].update(sizes=[{"as_int": 2**40}, {"as_int": 8}])


GREEDY: dict[str, tuple[str, bytes | Edit, str]] = {
    "weight": (pt2_safety.WEIGHTS, _stretched, r"its tensors claim 8,796,[\d,]+ more elements than it holds"),
    "input": (
        pt2_safety.SAMPLES,
        _pickled(((torch.zeros(1).expand(2**40),), {})),
        r"its tensors claim 1,099,[\d,]+ more",
    ),
    "inputs": (pt2_safety.SAMPLES, _pickled((_endless(60), {})), r"its example inputs have more than 100,000 parts"),
    "graph": (
        pt2_safety.MODEL,
        _declared,
        r"first\.weight is stored as float32\[16, 8\], and its graph declares float32\[1099511627776, 8\]",
    ),
    "depth": (pt2_safety.MODEL, b"[" * 100_000, r"its JSON is nested too deeply"),
}


@pytest.mark.parametrize("what", GREEDY)
def test_claims_beyond_the_size_of_the_file(saved: tuple[Path, nn.Module], tmp_path: Path, what: str) -> None:
    record, change, match = GREEDY[what]
    refused(saved[0], tmp_path, {record: change}, match)


@pytest.mark.parametrize(
    ("name", "match"), [("extra/zeros", "its records claim 20,0.* it is compressed"), ("byteorder", "occurs twice")]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_compressed_record_and_a_second_one(
    saved: tuple[Path, nn.Module], tmp_path: Path, name: str, match: str
) -> None:
    path = tmp_path / "bomb.pt2"
    path.write_bytes(saved[0].read_bytes())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/{name}", bytes(20_000_000))
    with pytest.raises(LoadError, match=match):
        pt2_programs.load(path)


def test_modules_of_output_classes_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a program is read: torch knows a class of transformers once its module is imported."""
    spec = '[1, {"type": "transformers.models.small.modeling_small.SmallOutput", "context": "[]"}]'
    calls = [{"fqn": "", "signature": {"out_spec": spec}}]
    imported: list[str] = []
    monkeypatch.setattr(pt2_archive, "import_module", imported.append)

    class Reader:
        def read_string(self, name: str) -> str:
            assert name == pt2_safety.MODEL
            return json.dumps({"graph_module": {"module_call_graph": calls}})

    reader: Any = Reader()
    pt2_archive._register_outputs(reader)
    assert imported == ["transformers.models.small.modeling_small"]
