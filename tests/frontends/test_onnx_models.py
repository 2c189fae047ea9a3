"""ONNX files are loaded, analyzed, cut and written again, and refused in words where they cannot be."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli.commands import app
from graphprune.errors import ExportError, LoadError
from graphprune.exporters.onnx_tools import onnx_files
from graphprune.ir.program import Program
from graphprune.workflows import masked_file
from tests.frontends.onnx_graphs import attentive, convolutional, model, numbers, write
from tests.hub_cache import HubCache


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("image"), convolutional())


@pytest.fixture(scope="module")
def image(image_file: Path) -> Program:
    return gp.load(image_file)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("text"), attentive())


@pytest.fixture(scope="module")
def text(text_file: Path) -> Program:
    return gp.load(text_file)


def test_names_are_those_of_the_file(image: Program) -> None:
    """Parameters have the names of the constants, and statistics of a norm are no parameters."""
    assert image.parameters == {
        "stem/kernel", "stem/bias", "norm/gamma", "norm/beta", "deep.kernel", "head.weight", "relu",
    }  # fmt: skip
    assert image.source is not None and image.source.kind == "onnx"
    assert not image.unchecked


def test_groups_of_a_convolutional_file(image: Program) -> None:
    groups = gp.analyze(image).groups
    assert [(group.name.split(":")[0], group.size) for group in groups] == [("stem/kernel", 8), ("deep.kernel", 6)]


def test_computed_shapes_do_not_pin_heads(text: Program) -> None:
    """Heads, their parts, the width of a layer and of the embedding are free; sizes of inputs are symbols."""
    sizes = sorted(group.size for group in gp.analyze(text).groups)
    assert sizes == [3, 4, 4, 10, 12, 12]
    assert not any(isinstance(size, int) for node in text.graph.nodes if node.op == "placeholder"
                   for size in node.meta["val"].shape)  # fmt: skip


def test_half_of_every_group_is_exact(text: Program) -> None:
    plan = gp.plan(text, ratio=0.5, recipe="magnitude")
    small = gp.apply(text, plan)
    assert gp.verify(text, small, plan).max_error < 1e-4
    assert small.count() < text.count() / 2


def test_written_file_has_the_interface_of_the_first(image: Program, tmp_path: Path) -> None:
    """Names, dynamic sizes and metadata are those of the file, and it computes what the masked file does."""
    small = gp.apply(image, gp.plan(image, ratio=0.5, recipe="magnitude"))
    compared = dict(gp.save(small, output=tmp_path / "out"))
    assert compared["ONNX and masked original file"] < 1e-4
    written = onnx.load(str(tmp_path / "out" / "onnx" / "model.onnx"))
    session = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,), (scores,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, scores.name, scores.shape) == (
        "image",
        ["images", 3, 9, 9],
        "linear",
        ["images", 4],
    )
    assert (written.producer_name, written.doc_string) == ("hand", "two layers")
    assert [(entry.key, entry.value) for entry in written.metadata_props] == [("labels", "a,b,c,d")]
    kept = {tensor.name: tuple(tensor.dims) for tensor in written.graph.initializer}
    assert kept["deep.kernel"] == (3, 4, 3, 3)
    assert session.run(None, {"image": numbers(5, 3, 9, 9)})[0].shape == (5, 4)


def test_masked_file_that_differs_is_noticed(image_file: Path, image: Program, tmp_path: Path) -> None:
    """A file that was replaced after it was loaded does not pass for the masked original."""
    plan = gp.plan(image, ratio=0.5, recipe="magnitude")
    changed = convolutional()
    head = next(tensor for tensor in changed.graph.initializer if tensor.name == "relu")
    before = image_file.read_bytes()
    head.CopyFrom(numpy_helper.from_array(numbers(4, seed=99), "relu"))
    try:
        onnx.save(changed, image_file)
        with pytest.raises(ExportError, match="masked file and pruned file"):
            gp.save(gp.apply(image, plan), output=tmp_path / "out")
    finally:
        image_file.write_bytes(before)
    assert not (tmp_path / "out").exists()


def split(folder: Path, built: onnx.ModelProto) -> Path:
    """A file whose numbers are in another one."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "model.onnx"
    onnx.save(built, file, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    return file


@pytest.mark.parametrize("limit", [1, pytest.param(10**9, marks=pytest.mark.slow)])
def test_numbers_in_another_file_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """In its cache both files are links; from `limit` bytes on, the masked and the written file have such data, too."""
    split(tmp_path / "made" / "onnx", convolutional())
    HubCache(tmp_path / "hub", monkeypatch).add("some/net", tmp_path / "made", "a" * 40)
    monkeypatch.setattr(masked_file, "MESSAGE_BYTES", limit)
    monkeypatch.setattr(onnx_files, "SINGLE_FILE_BYTES", limit)
    program = gp.load("some/net/onnx/model.onnx")
    small = gp.apply(program, gp.plan(program, ratio=0.5, recipe="magnitude"))
    compared = dict(gp.save(small, output=tmp_path / "out"))
    assert compared["ONNX and masked original file"] < 1e-4
    names = {"model.onnx", "export_report.json"} | ({"model.onnx.data"} if limit == 1 else set())
    assert {path.name for path in (tmp_path / "out" / "onnx").iterdir()} == names


def sparse(folder: Path, **shapes: tuple[int, int]) -> list[TensorProto]:
    """Constants in a file with holes, which read as zeros; the first 40 numbers of each row are random."""
    size, made = 0, []
    for name, shape in shapes.items():
        length = 4 * shape[0] * shape[1]
        with (folder / "model.onnx_data").open("ab") as file:
            file.truncate(size + length)
        stored = np.memmap(folder / "model.onnx_data", np.float32, "r+", size, shape)
        stored[:40, :40] = numbers(40, 40)
        tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        for key, value in {"location": "model.onnx_data", "offset": size, "length": length}.items():
            tensor.external_data.add(key=key, value=str(value))
        made.append(tensor)
        size += length
    return made


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    """More numbers than a message of protobuf holds are read, and those of the masked original are compared."""
    wide, many = 12_000, 25_000
    built = line(
        helper.make_node("MatMul", ["x", "up"], ["u"]),
        helper.make_node("Relu", ["u"], ["h"]),
        helper.make_node("MatMul", ["h", "down"], ["y"]),
    )
    built.graph.input[0].type.tensor_type.shape.dim[1].dim_value = wide
    built.graph.initializer.extend(sparse(tmp_path, up=(wide, many), down=(many, wide)))
    onnx.save(built, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx_data").stat().st_size > 2**31
    result = gp.prune(tmp_path / "model.onnx", recipe="magnitude", ratio=0.9, output=tmp_path / "out")
    assert result.report.errors["ONNX and masked original file"] < 1e-4
    assert (tmp_path / "out" / "onnx" / "model.onnx.data").stat().st_size > 2 * 10**8


def pooled(channels_last: bool = True) -> onnx.ModelProto:
    """A classifier of channels-last images, as converters from TensorFlow write it."""
    node = helper.make_node
    constants = {
        "conv1/kernel": numbers(8, 3, 3, 3, seed=1), "conv1/bias": numbers(8), "dense/kernel": numbers(8, 4, seed=2),
        "dense/bias": numbers(4), "axes": np.array([1, 2]),
    }  # fmt: skip
    nodes = [
        node("Transpose", ["x"], ["first"], "to_first", perm=[0, 3, 1, 2]),
        node("Conv", ["first", "conv1/kernel", "conv1/bias"], ["conv"], "conv1", auto_pad="SAME_UPPER"),
        node("Transpose", ["conv"], ["last"], "to_last", perm=[0, 2, 3, 1]),
        node("Relu", ["last"], ["active"], "relu"),
        node("ReduceMean", ["active"], ["mean"], "pool", axes=[1, 2], keepdims=0),
        node("MatMul", ["mean", "dense/kernel"], ["product"], "dense"),
        node("Add", ["product", "dense/bias"], ["logits"], "dense_add"),
    ]
    return model(nodes, {"x": ["unk__1", 8, 8, 3]}, ["logits"], constants, opset=13)


def test_channels_last_file(tmp_path: Path) -> None:
    program = gp.load(write(tmp_path, pooled()))
    (group,) = gp.analyze(program).groups
    assert group.size == 8
    small = gp.apply(program, plan := gp.plan(program, ratio=0.5, recipe="magnitude"))
    assert gp.verify(program, small, plan).max_error < 1e-4
    assert small.shapes()["dense/kernel"] == (4, 4)


def line(*nodes: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None, opset: int = 17) -> onnx.ModelProto:
    """A model from x of shape (n, 4) to y."""
    return model(nodes, {"x": ["n", 4]}, ["y"], constants or {}, opset)


def quantized() -> onnx.ModelProto:
    """Two linear layers, the first of which has weights of 8 bits."""
    codes = np.arange(32, dtype=np.int8).reshape(8, 4) - 16
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["weight"], "dequantize", axis=0),
        helper.make_node("Gemm", ["x", "weight"], ["wide"], "wide", transB=1),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("Gemm", ["active", "down"], ["y"], transB=1),
    ]
    return line(*nodes, constants={"codes": codes, "scale": np.abs(numbers(8)), "down": numbers(3, 8)})


def test_quantized_weights_are_dequantized_on_request(tmp_path: Path) -> None:
    file = write(tmp_path, quantized())
    with pytest.raises(LoadError, match=r"node 'dequantize' \(DequantizeLinear\).*dequantize=True"):
        gp.load(file)
    program = gp.load(file, dequantize=True)
    assert program.shapes()["weight"] == (8, 4)
    assert [group.size for group in gp.analyze(program).groups] == [8]


def branched(condition: str) -> onnx.ModelProto:
    """A branch that a constant, or a value of the input, decides."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(kind, ["x"], [name])], name, [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, kind in (("then", "Relu"), ("else", "Neg"))
    }  # fmt: skip
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["positive"]),
        helper.make_node("If", [condition], ["y"], "decide", **branches),
    ]
    return line(*nodes, constants={"zero": np.array(0, np.float32), "always": np.array(True)})


def test_branch_of_a_constant_is_followed(tmp_path: Path) -> None:
    program = gp.load(write(tmp_path, branched("always")))
    assert [node.target.__name__ for node in program.graph.nodes if node.op == "call_function"] == ["relu.default"]


def unknown_operator() -> onnx.ModelProto:
    built = line(helper.make_node("Sparkle", ["x"], ["y"], "glitter", domain="com.acme"))
    built.opset_import.append(helper.make_opsetid("com.acme", 1))
    return built


def replaceable() -> onnx.ModelProto:
    built = line(helper.make_node("MatMul", ["x", "w"], ["y"]), constants={"w": numbers(4, 4)})
    built.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
    return built


def shapeless() -> onnx.ModelProto:
    built = line(helper.make_node("Relu", ["x"], ["y"]))
    built.graph.input[0].type.tensor_type.ClearField("shape")
    return built


def twice() -> onnx.ModelProto:
    return line(helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"]))


def contradictory() -> onnx.ModelProto:
    return line(helper.make_node("MatMul", ["x", "w"], ["y"], "product"), constants={"w": numbers(5, 4)})


def outside() -> onnx.ModelProto:
    built = line(helper.make_node("MatMul", ["x", "w"], ["y"]), constants={"w": numbers(4, 4)})
    (tensor,) = built.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return built


def before_the_file() -> onnx.ModelProto:
    """Numbers in another file that start before it."""
    built = outside()
    built.graph.initializer[0].external_data.add(key="offset", value="-8")
    return built


def short() -> onnx.ModelProto:
    built = line(helper.make_node("MatMul", ["x", "w"], ["y"]), constants={"w": numbers(4, 4)})
    built.graph.initializer[0].dims[0] = 8
    return built


def rigid() -> onnx.ModelProto:
    """A graph with the sizes of its example inside."""
    return line(helper.make_node("Reshape", ["x", "shape"], ["y"]), constants={"shape": np.array([3, 2, 22])})


def thinned() -> onnx.ModelProto:
    """A constant of which the file lists only the numbers that are not zero."""
    built = line(helper.make_node("MatMul", ["x", "w"], ["y"], "product"))
    values, places = (
        helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("at", TensorProto.INT64, [1], [5]),
    )
    built.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 4]))
    return built


def listed() -> onnx.ModelProto:
    """An input that is a list of tensors."""
    built = line(helper.make_node("Relu", ["x"], ["y"]))
    built.graph.input.append(helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, [4]))
    return built


def worded() -> onnx.ModelProto:
    """An output of words."""
    built = line(helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["words"], ["names"]))
    built.graph.initializer.append(numpy_helper.from_array(np.array(["a"], dtype=object), "words"))
    built.graph.output.append(onnx.ValueInfoProto(name="names"))
    return built


def unread_words() -> onnx.ModelProto:
    return line(
        helper.make_node("Constant", [], ["words"], "speak", value_strings=[b"a"]),
        helper.make_node("Relu", ["x"], ["y"]),
    )


BAD = {
    thinned: r"node 'product' \(MatMul\) reads w, which is no input.*sparse constants are not read",
    listed: r"model.onnx: input parts is of type Sequence\(Tensor\(FLOAT\)\), expected a tensor of numbers; remove it",
    worded: r"model.onnx: output names is a tensor\(string\), expected one of",
    unread_words: r"node 'speak' \(Constant\) cannot be translated.*value_strings",
    short: r"the constant w of shape \[8, 4\] holds another number of values",
    rigid: r"none of the sizes that were tried.*sizes=\{'n': N\}",
    unknown_operator: r"node 'glitter' has the operator com.acme::Sparkle, which is not translated",
    replaceable: r"1 constants are inputs, too, the first w",
    shapeless: r"input x has no shape",
    twice: r"damaged or no ONNX model.*\by\b",
    contradictory: r"ONNX Runtime refuses .*product",
    outside: r"the numbers of w end at byte .*weights.bin, which does not exist",
    before_the_file: r"damaged or no ONNX model.*offset must be non-negative, got -8",
    lambda: branched("positive"): r"node 'decide' \(If\) cannot be translated.*values of the inputs decide",
}


@pytest.mark.parametrize("build", BAD, ids=lambda build: build.__name__)
def test_bad_file(build: object, tmp_path: Path) -> None:
    """One clear error, which names the node and its operator where one is to blame."""
    with pytest.raises(LoadError, match=BAD[build]) as caught:  # type: ignore[index]
        gp.load(write(tmp_path, build()))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_truncated_file(tmp_path: Path) -> None:
    file = write(tmp_path, convolutional())
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(LoadError, match=r"model.onnx \(500 bytes\) .*(truncated|no graph)"):
        gp.load(file)
    with pytest.raises(LoadError, match="does not exist"):
        gp.load(tmp_path / "none.onnx")


def test_given_sizes_are_taken(tmp_path: Path) -> None:
    """A file that runs at a single size alone is loaded at this size."""
    program = gp.load(write(tmp_path, rigid()), sizes={"n": 33})
    assert [tuple(leaf.shape) for leaf in program.flat(*program.inputs)] == [(33, 4)]
    with pytest.raises(LoadError, match="no dynamic dimension 'm'; the dynamic dimensions are: n"):
        gp.load(tmp_path / "model.onnx", sizes={"m": 33})


@pytest.mark.parametrize("command", [("inspect",), ("view", "--output", "page.html")], ids=lambda words: words[0])
def test_commands_take_sizes(command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that show a model load it at given sizes, and name their own option where it has another form."""
    monkeypatch.chdir(tmp_path)
    file = str(write(tmp_path, rigid()))
    assert CliRunner().invoke(app, (*command, file)).exit_code == 2
    assert CliRunner().invoke(app, (*command, file, "--sizes", "n=33")).exit_code == 0
    assert "--sizes 'n' is not of the form" in CliRunner().invoke(app, (*command, file, "--sizes", "n")).output


def test_fixed_size_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A dynamic size with which the graph agrees at one number alone is named."""
    built = line(helper.make_node("Add", ["x", "table"], ["y"]), constants={"table": numbers(8, 4)})
    with caplog.at_level(logging.WARNING):
        gp.load(write(tmp_path, built))
    assert "dimension n of input x has the fixed size 8" in caplog.text
