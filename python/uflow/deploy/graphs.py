"""What a network in an exported folder could do without end is looked at before a runtime loads it. Needs no package.

A graph of plain operators ends after one step each. One that holds graphs within it (loops, branches), functions, or
operators of others need not, and weights outside its file could be any file of the machine: exports of ours have none
of these, and what has is refused. What remains is memory: a few operators may ask for all there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["check_graph"]

# Numbers of fields in onnx.proto.
GRAPH, OPERATORS = 7, 8  # of a model
MODEL_FIELDS = {*range(1, 9), 14}  # but for functions and for what trains
NODE, INITIALIZER = 1, 5  # of a graph
GRAPH_FIELDS = {1, 2, 5, *range(10, 15), 16}  # but for sparse tensors
ATTRIBUTE, DOMAIN = 5, 7  # of a node
SUBGRAPHS, TENSORS, SPARSE_TENSORS = (6, 11), (5, 10), (22, 23)  # of an attribute
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of a tensor
PLAIN_DOMAINS = (b"", b"ai.onnx")

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # how protobuf writes a value

LOOPING_LAYERS = ("Loop", "TensorIterator", "If")  # of OpenVINO


def check_graph(path: Path) -> None:
    """Raise ValueError, one line, for a network that need not end, or reads other files: .onnx, or OpenVINO's .xml."""
    try:
        found = _onnx_fault(memoryview(path.read_bytes())) if path.suffix == ".onnx" else _openvino_fault(path)
    except (ValueError, IndexError, ElementTree.ParseError) as error:
        raise ValueError(f"{path} is no network, or was cut short ({error})") from None
    if found:
        raise ValueError(f"{path} was not loaded: it holds {found}, which no export of uflow has")


def _onnx_fault(model: memoryview) -> str:
    """What a model has that ours have not; empty where there is nothing."""
    for number, value in _fields(model):
        if number not in MODEL_FIELDS:
            return "functions or a training"
        if number == OPERATORS and _texts(value, 1, PLAIN_DOMAINS):
            return "operators that are not ONNX's own"
        if number == GRAPH and (found := _graph_fault(value)):
            return found
    return ""


def _graph_fault(graph: memoryview) -> str:
    for number, value in _fields(graph):
        if number not in GRAPH_FIELDS:
            return "sparse tensors"
        if number == INITIALIZER and _is_outside(value):
            return "weights in another file"
        if number == NODE and (found := _node_fault(value)):
            return found
    return ""


def _node_fault(node: memoryview) -> str:
    if _texts(node, DOMAIN, PLAIN_DOMAINS):
        return "operators that are not ONNX's own"
    for number, attribute in _fields(node):
        if number != ATTRIBUTE:
            continue
        for kind, value in _fields(attribute):
            if kind in SUBGRAPHS:
                return "a loop or a branch"
            if kind in SPARSE_TENSORS:
                return "sparse tensors"
            if kind in TENSORS and _is_outside(value):
                return "weights in another file"
    return ""


def _is_outside(tensor: memoryview) -> bool:
    return any(n == EXTERNAL_DATA or (n == DATA_LOCATION and any(value)) for n, value in _fields(tensor))


def _texts(message: memoryview, wanted: int, known: tuple[bytes, ...]) -> bool:
    """Whether a text field has a value that is not known."""
    return any(number == wanted and bytes(value) not in known for number, value in _fields(message))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a protobuf message, their numbers and bytes; of a number that is written as a varint, its bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if key >> 32 or number == 0:
            raise ValueError("a field has no number")
        if kind == VARINT:
            _, end = _varint(message, at)
        elif kind == LENGTH:
            size, at = _varint(message, at)
            end = at + size
        elif kind in (FOUR_BYTES, EIGHT_BYTES):
            end = at + (4 if kind == FOUR_BYTES else 8)
        else:
            raise ValueError(f"a field is written in way {kind}")
        if end > len(message):
            raise ValueError(f"{len(message)} bytes are not all")
        yield number, message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError("a number has no end")


def _openvino_fault(path: Path) -> str:
    for event, element in ElementTree.iterparse(path, ("start", "end")):
        if event == "end":
            element.clear()
        elif element.tag in ("body", "then_body", "else_body", "back_edges", "port_map"):
            return "a loop or a branch"
        elif element.tag == "layer":
            if element.get("type") in LOOPING_LAYERS:
                return "a loop or a branch"
            if not element.get("version", "opset1").startswith("opset"):
                return "layers that are not OpenVINO's own"
    return ""
