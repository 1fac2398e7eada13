"""Networks that need not end, or read other files, are refused before a runtime sees them; ours are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from test_fuzz import damaged, survives
from test_hostile_files import make_folder, opened  # noqa: F401 (a fixture)
from uflow.deploy import exported
from uflow.deploy.graphs import check_graph

IMAGE = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])
SUM = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1])
ONE = onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")
ADD = helper.make_node("Add", ["image", "one"], ["sum"])


def model(*nodes: onnx.NodeProto, domain: str = "", functions: Any = (), tensor: TensorProto = ONE) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes) or [ADD], "g", [IMAGE], [SUM], [tensor])
    sets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=sets, functions=list(functions), ir_version=8)


def endless() -> onnx.ModelProto:
    """Loop without a limit, whose condition stays true."""
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
    ]
    outputs = [helper.make_tensor_value_info("c2", TensorProto.BOOL, []), SUM]
    nodes = [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["x"], ["sum"])]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    true = helper.make_node("Constant", [], ["true"], value=onnx.numpy_helper.from_array(np.array(True)))
    return model(true, helper.make_node("Loop", ["", "true", "image"], ["sum"], body=body))


def branch() -> onnx.ModelProto:
    inner = helper.make_graph([helper.make_node("Identity", ["image"], ["sum"])], "inner", [], [SUM])
    true = helper.make_node("Constant", [], ["true"], value=onnx.numpy_helper.from_array(np.array(True)))
    return model(true, helper.make_node("If", ["true"], ["sum"], then_branch=inner, else_branch=inner))


def outside(location: str = "../secret") -> TensorProto:
    tensor = TensorProto(name="one", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def doubling() -> onnx.ModelProto:
    """Functions that call each other twice, as entities of a hostile XML file do."""
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    twice = [helper.make_node("Add", ["a", "a"], ["b"])]
    function = helper.make_function("mine", "Twice", ["a"], ["b"], twice, sets)
    return model(helper.make_node("Twice", ["image"], ["sum"], domain="mine"), domain="mine", functions=[function])


def trained() -> onnx.ModelProto:
    made = model()
    made.training_info.add()
    return made


HOSTILE: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "loop": (endless, "a loop or a branch"),
    "branch": (branch, "a loop or a branch"),
    "functions": (doubling, "operators that are not ONNX's own|functions"),
    "training": (trained, "functions or a training"),
    "domain": (
        lambda: model(helper.make_node("Mine", ["image"], ["sum"], domain="mine"), domain="mine"),
        "operators that are not ONNX's own",
    ),
    "undeclared domain": (lambda: model(helper.make_node("Mine", ["image"], ["sum"], domain="mine")), "operators that"),
    "weights": (lambda: model(tensor=outside()), "weights in another file"),
    "constant": (
        lambda: model(helper.make_node("Constant", [], ["sum"], value=outside("/etc/passwd"))),
        "weights in another file",
    ),
    "sparse": (
        lambda: model(
            helper.make_node("Constant", [], ["sum"], sparse_value=helper.make_sparse_tensor(ONE, ONE, [1])),
        ),
        "sparse tensors",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_need_not_end_is_refused_before_a_runtime_sees_it(
    name: str,
    tmp_path: Path,
    opened: list[Path],  # noqa: F811
) -> None:
    make, message = HOSTILE[name]
    folder = make_folder(tmp_path / "a", make().SerializeToString())
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(ValueError, match=rf"network\.onnx was not loaded: it holds ({message})") as error:
            exported.load(folder, runtime)
        assert "\n" not in str(error.value)
    assert not opened


def test_a_plain_graph_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(model(domain="ai.onnx").SerializeToString())
    check_graph(path)
    for content in (b"", path.read_bytes()[:-3], b"\x3b\x3c", b"\xff" * 12, b"\x08"):
        path.write_bytes(content)
        if content:
            with pytest.raises(ValueError, match="is no network, or was cut short"):
                check_graph(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("Relu", "TensorIterator"), "a loop or a branch"),
        (("Relu", "L&#111;op"), "a loop or a branch"),
        (("<data/>", "<body><layers/></body>"), "a loop or a branch"),
        (('version="opset1"', 'version="mine"'), "layers that are not OpenVINO's own"),
        (("</net>", ""), None),
    ],
)
def test_openvinos_own_files_are_looked_at_too(change: tuple[str, str], message: str | None, tmp_path: Path) -> None:
    plain = '<net><layers><layer id="0" type="Relu" version="opset1"><data/></layer></layers></net>'
    path = tmp_path / "network.xml"
    path.write_text(plain)
    check_graph(path)
    path.write_text(plain.replace(*change))
    said = "is no network, or was cut short" if message is None else f"was not loaded: it holds {re.escape(message)}"
    with pytest.raises(ValueError, match=said):
        check_graph(path)


@settings(max_examples=80, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_graphs_are_one_line(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(data.draw(damaged(endless().SerializeToString())))
    survives(lambda: check_graph(path), tmp_path)
