"""Model files made elsewhere give the same numbers here."""

from pathlib import Path

import numpy as np
import pytest
import torch

from uflow.checkpoints import convert_freia
from uflow.flow import UFlow

GOLDEN = Path(__file__).parent / "golden" / "freia_flow.npz"
PREFIX = "model.flow.module_list."


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture
def state_dict(golden):
    """The golden flow of three steps and two scales: steps at nodes 0-2 and 6-8, up-sampling at node 4."""
    return {key.removeprefix("sd/"): array for key, array in golden.items() if key.startswith("sd/")}


@pytest.fixture(scope="module")
def flow(golden):
    return UFlow(golden["channels"], [(size, size) for size in golden["sizes"]], int(golden["steps"]))


def assert_golden(flow, converted, golden):
    flow.load_state_dict(converted, strict=True)
    features = [torch.from_numpy(golden[f"feature{level}"]) for level in (0, 1)]
    expected = [torch.from_numpy(golden[f"latent{level}"]) for level in (0, 1)]
    with torch.no_grad():
        latents, log_det = flow(features)
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(log_det, torch.from_numpy(golden["log_det"]), rtol=0, atol=1e-4)
        torch.testing.assert_close(flow.inverse(expected), features, rtol=0, atol=1e-4)


def test_freia_golden(flow, state_dict, golden):
    assert_golden(flow, convert_freia(state_dict), golden)


@pytest.mark.parametrize("prefix", ["", "flow.", "module.net.flow.", "model."])
def test_freia_prefixes_and_other_keys(flow, state_dict, golden, prefix):
    renamed = {prefix + key.removeprefix("model.flow."): torch.tensor(array) for key, array in state_dict.items()}
    renamed["feature_extractor.module_list.0.w_perm"] = torch.eye(3)
    renamed["model.feature_extractor.blocks.0.norm.weight"] = torch.ones(3)
    assert_golden(flow, convert_freia(renamed), golden)


def test_freia_index_permutations(flow, state_dict, golden):
    for key in [key for key in state_dict if key.endswith("w_perm")]:
        matrix = state_dict[key][:, :, 0, 0]
        state_dict[key] = np.array([row.tolist().index(1) for row in matrix])  # out[i] = in[w_perm[i]]
    assert_golden(flow, convert_freia(state_dict), golden)


def test_freia_keeps_the_dtype_and_the_input(state_dict):
    before = {key: array.copy() for key, array in state_dict.items()}
    doubled = convert_freia({key: array.astype(np.float64) for key, array in state_dict.items()})
    assert doubled["stages.0.0.subnet.0.weight"].dtype == torch.float64
    assert doubled["stages.0.0.permutation"].dtype == torch.int64
    convert_freia(state_dict)
    assert all(np.array_equal(before[key], state_dict[key]) for key in before)


def check_error(state_dict, message):
    with pytest.raises(ValueError, match=message) as error:
        convert_freia(state_dict)
    assert "\n" not in str(error.value)


def test_freia_without_a_flow():
    check_error({}, r"expected keys such as 'flow\.module_list\.0\.global_scale', found nothing")
    check_error({"a.weight": torch.ones(1), "b": torch.ones(1)}, "found 'a.weight', 'b'")


def test_freia_with_two_flows(state_dict):
    check_error(state_dict | {f"ema.{key}": value for key, value in state_dict.items()}, "found several")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("0.w_perm", r"steps at \[1, 2, 6, 7, 8\]"),
        ("1.w_perm", r"steps at \[0, 2, 6, 7, 8\]"),
        ("8.w_perm", r"steps at \[0, 1, 2, 6, 7\]"),
        ("7.global_offset", r"missing from the flow: module_list\.7\.global_offset"),
        ("2.subnet.2.bias", r"missing from the flow: module_list\.2\.subnet\.2\.bias"),
        ("4.downsample_kernel", r"missing from the flow: module_list\.4\.downsample_kernel"),
    ],
)
def test_freia_with_a_missing_piece(state_dict, lost, message):
    del state_dict[PREFIX + lost]
    check_error(state_dict, message)


@pytest.mark.parametrize(
    "w_perm",
    [
        np.linalg.qr(np.arange(1600.0).reshape(40, 40) ** 0.5)[0].reshape(40, 40, 1, 1),  # a rotation: "soft"
        np.ones((40, 40, 1, 1)),
        np.zeros((40, 40, 1, 1)),
        2 * np.eye(40).reshape(40, 40, 1, 1),
        np.eye(40, 41).reshape(40, 41, 1, 1),
        np.eye(41)[1:].reshape(40, 41, 1, 1),
        np.zeros(40, dtype=np.int64),
        np.arange(1, 41),
    ],
    ids=["rotation", "ones", "zeros", "doubled", "wide", "out of range", "constant index", "index from 1"],
)
def test_freia_with_no_permutation(state_dict, w_perm):
    state_dict[f"{PREFIX}0.w_perm"] = w_perm
    check_error(state_dict, r"module_list\.0\.w_perm of shape .* is not a permutation")
