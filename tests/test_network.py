"""The network on torch: evidence of images, in parts and whole, always of the weights that the flow has."""

import numpy as np
import pytest
import torch

from uflow import processes
from uflow.backbones import Backbone, create_backbone
from uflow.features import image_tensor
from uflow.flow import UFlow
from uflow.memory import MemoryBank
from uflow.network import TorchNetwork, resolve_device
from uflow.predictor import Predictor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone(image_size=64, strides=(8, 16))


@pytest.fixture
def flow(backbone: Backbone) -> UFlow:
    return UFlow(backbone.channels, backbone.sizes, steps=1, affine=True)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


def memory_of(backbone: Backbone) -> MemoryBank:
    fine, coarse = backbone.channels
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(7, channels, generator=generator) for channels in (fine, fine + coarse)]
    return MemoryBank(vectors)


def test_energies_are_the_squared_latents_of_each_cell(backbone: Backbone, flow: UFlow, images: np.ndarray) -> None:
    network = TorchNetwork(backbone, flow, device="cpu")
    with torch.inference_mode():
        latents, _ = flow(backbone.normalised(backbone(image_tensor(images))))
    evidence = network.evidence(images)
    assert evidence.distances == []
    assert [(e.shape, e.dtype) for e in evidence.energies] == [((3, 8, 8), np.float32), ((3, 4, 4), np.float32)]
    for energy, z in zip(evidence.energies, latents, strict=True):
        np.testing.assert_allclose(energy, z.square().sum(dim=1), rtol=1e-4)


def test_distances_are_the_memorys_and_leave_the_energies(backbone: Backbone, flow: UFlow, images: np.ndarray) -> None:
    memory = memory_of(backbone)
    alone = TorchNetwork(backbone, flow, device="cpu").evidence(images)
    both = TorchNetwork(backbone, flow, memory, "cpu").evidence(images)
    for a, b in zip(both.energies, alone.energies, strict=True):
        np.testing.assert_array_equal(a, b)
    with torch.inference_mode():
        wanted = memory(backbone(image_tensor(images)))
    for distance, expected in zip(both.distances, wanted, strict=True):
        assert distance.dtype == np.float32
        np.testing.assert_array_equal(distance, expected)
    assert len(both.maps) == 4


def test_parts_are_together_the_whole(backbone: Backbone, flow: UFlow, images: np.ndarray) -> None:
    network = TorchNetwork(backbone, flow, memory_of(backbone), "cpu")
    value = images
    for _, part in network.phases():
        value = part(value)
    assert [name for name, _ in network.phases()] == ["backbone", "flow"]
    for a, b in zip(value.maps, network.evidence(images).maps, strict=True):
        np.testing.assert_array_equal(a, b)


def test_says_what_a_predictor_must_know(backbone: Backbone, flow: UFlow) -> None:
    network = TorchNetwork(backbone, flow, device="cpu")
    assert (network.image_size, network.strides) == ((64, 64), (8, 16)) == (backbone.image_size, backbone.strides)
    assert network.latent_channels == flow.latent_channels
    assert network.device == torch.device("cpu")
    assert not flow.training
    assert not backbone.training


def test_predicts_by_the_weights_that_the_flow_has(backbone: Backbone, flow: UFlow, images: np.ndarray) -> None:
    """The flow is folded for speed: a training that goes on, and weights that are loaded, are seen all the same."""
    predictor = Predictor(TorchNetwork(backbone, flow, device="cpu"))
    before = predictor.predict(images[0]).score
    weights = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.1)
    assert predictor.predict(images[0]).score != before
    flow.load_state_dict(weights)
    assert predictor.predict(images[0]).score == before
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.01)
    flow.nll(*flow(backbone.normalised(backbone(image_tensor(images))))).mean().backward()
    optimizer.step()
    assert predictor.predict(images[0]).score != before


def test_the_flow_is_folded_once_for_the_same_weights(backbone: Backbone, flow: UFlow, images: np.ndarray) -> None:
    network = TorchNetwork(backbone, flow, device="cpu")
    folded = network._folded_flow()
    network.evidence(images)
    assert network._folded_flow() is folded


def test_another_flow_in_its_place_is_seen(backbone: Backbone, flow: UFlow, images: np.ndarray) -> None:
    network = TorchNetwork(backbone, flow, device="cpu")
    before = network.evidence(images)
    network.flow = UFlow(backbone.channels, backbone.sizes, steps=1, affine=True, seed=5)
    after = network.evidence(images)
    assert not np.allclose(before.energies[0], after.energies[0])


def test_images_are_not_changed(backbone: Backbone, flow: UFlow, images: np.ndarray) -> None:
    before = images.copy()
    TorchNetwork(backbone, flow, device="cpu").evidence(images)
    np.testing.assert_array_equal(images, before)


def test_images_of_another_size_are_one_line(backbone: Backbone, flow: UFlow) -> None:
    with pytest.raises(ValueError, match="images are 32x64, this backbone was made for 64x64"):
        TorchNetwork(backbone, flow, device="cpu").evidence(np.zeros((1, 32, 64, 3), np.uint8))


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    found = resolve_device("auto").type
    assert found == ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    for kind, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not there:
            with pytest.raises(ValueError, match=f"device '{kind}' is not available here; use 'auto' or 'cpu'"):
                resolve_device(kind)


def test_a_forked_process_with_threads_is_refused(
    backbone: Backbone, flow: UFlow, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = TorchNetwork(backbone, flow, device="cpu")
    monkeypatch.setattr(processes, "_loaded_in", {"torch": -1})
    network.evidence(images)  # torch alone, with one thread, computes on
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for use in (lambda: network.evidence(images), lambda: create_backbone(image_size=64)):
        with pytest.raises(RuntimeError, match="torch's threads did not come along: start it by multiprocessing's"):
            use()
