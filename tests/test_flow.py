"""Every transform: shape, inverse, log_det against autograd's Jacobian, the inverse's Jacobian. Then U-Flow = FrEIA."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from uflow.flow import Affine, CouplingStep, Split, UFlow, Upsample
from uflow.interop.freia import convert_freia

with warnings.catch_warnings():  # FrEIA 0.2's docstrings hold invalid escapes, which newer Pythons warn of
    warnings.simplefilter("ignore")
    import FrEIA.framework as ff
    import FrEIA.modules as fm


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that the scales, offsets and couplings all matter; in float64."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if "subnet" in name:
            weight.mul_(4)
        elif name.endswith(("global_scale", "global_offset", "weight", "bias")):
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.5)
    return module.double()


def jacobian(function, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(function, x).reshape(x.numel(), x.numel())


def join(volumes) -> Tensor:
    return torch.cat([volume.flatten() for volume in volumes])


def part(flat: Tensor, channels, sizes) -> list[Tensor]:
    shapes = [(1, c, *size) for c, size in zip(channels, sizes, strict=True)]
    parts = flat.split([math.prod(shape) for shape in shapes])
    return [volume.reshape(shape) for volume, shape in zip(parts, shapes, strict=True)]


def check_four(forward, inverse, x: Tensor, y_numel: int) -> None:
    """zuko's four tests of a bijection flat -> (flat, log_det)."""
    y, log_det = forward(x)
    assert y.numel() == y_numel == x.numel()
    torch.testing.assert_close(inverse(y), x, rtol=0, atol=1e-9)
    j = jacobian(lambda x: forward(x)[0], x)
    torch.testing.assert_close(j.slogdet().logabsdet, log_det, rtol=1e-9, atol=1e-9)
    j_inverse = jacobian(inverse, y.detach())
    torch.testing.assert_close(j_inverse @ j, torch.eye(x.numel(), dtype=x.dtype), rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [(3, 3), (2, 5)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [2, 3, 6, 7])
def test_coupling_step(channels, kernel, size):
    step = randomise(CouplingStep(channels, kernel, 2.0, torch.Generator().manual_seed(1)))
    shape = (1, channels, *size)

    def forward(x):
        y, log_det = step(x.reshape(shape))
        assert y.shape == shape
        assert log_det.shape == (1,)
        return y.flatten(), log_det.squeeze()

    def inverse(y):
        return step.inverse(y.reshape(shape)).flatten()

    check_four(forward, inverse, randn(*shape).flatten(), math.prod(shape))


def test_coupling_step_starts_with_unit_scale_and_moves_only_the_last_channels():
    step = CouplingStep(5, 3, 2.0, torch.Generator().manual_seed(0))
    x = randn(2, 5, 4, 4, dtype=torch.float32)
    y = step(x)[0][:, step.permutation.argsort()]
    torch.testing.assert_close(y[:, :3], x[:, :3])
    assert (y[:, 3:] - x[:, 3:]).abs().min() > 0


def test_coupling_step_clamps_the_log_scale():
    step = CouplingStep(4, 1, 0.5, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        step.subnet[2].bias.fill_(1e3)
    log_det = step(randn(1, 4, 2, 3))[1]
    assert log_det.item() == pytest.approx(0.5 * 2 * 2 * 3, rel=1e-5)


@pytest.mark.parametrize("channels", [8, 11, 16, 23])
def test_split(channels):
    split = Split(channels)
    shape, parts = (1, channels, 2, 3), (channels // 8 * 4, channels - channels // 8 * 4)

    def forward(x):
        up, latent = split(x.reshape(shape))
        assert (up.shape[1], latent.shape[1]) == parts
        return join([up, latent]), torch.zeros((), dtype=x.dtype)

    def inverse(y):
        return split.inverse(*part(y, parts, [(2, 3)] * 2)).flatten()

    check_four(forward, inverse, randn(*shape).flatten(), math.prod(shape))


@pytest.mark.parametrize("size", [(2, 2), (3, 1)], ids=str)
def test_upsample(size):
    (h, w), upsample = size, Upsample()

    def forward(x):
        y = upsample(x.reshape(1, 8, h, w))
        assert y.shape == (1, 2, 2 * h, 2 * w)
        return y.flatten(), torch.zeros((), dtype=x.dtype)

    def inverse(y):
        return upsample.inverse(y.reshape(1, 2, 2 * h, 2 * w)).flatten()

    check_four(forward, inverse, randn(8 * h * w), 8 * h * w)


def test_upsample_has_freia_s_channel_order():
    x = randn(2, 12, 3, 5)
    (expected,), _ = fm.IRevNetUpsampling([(12, 3, 5)]).double()([x])
    assert torch.equal(Upsample()(x), expected)


@pytest.mark.parametrize("shape", [(2, 3, 3), (3, 2, 4)], ids=str)
def test_affine(shape):
    affine = randomise(Affine(shape))

    def forward(x):
        y, log_det = affine(x.reshape(1, *shape))
        assert y.shape == (1, *shape)
        assert log_det.shape == (1,)
        return y.flatten(), log_det.squeeze()

    def inverse(y):
        return affine.inverse(y.reshape(1, *shape)).flatten()

    check_four(forward, inverse, randn(*shape).flatten(), math.prod(shape))


def test_affine_standardises():
    x = randn(50, 3, 2, 2) * torch.tensor([1.0, 4.0, 0.1]).view(3, 1, 1) + 5
    affine = Affine((3, 2, 2)).double()
    affine.standardise(x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0))
    y = affine(x)[0]
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3, dtype=x.dtype))
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(3, dtype=x.dtype))
    affine.standardise(x.mean((0, 2, 3)), torch.zeros(3, dtype=x.dtype))  # constant channels stay finite
    assert affine(x)[0].isfinite().all()


GEOMETRIES = [  # channels, sizes
    ((6,), ((3, 3),)),
    ((7,), ((2, 5),)),
    ((4, 9), ((4, 4), (2, 2))),
    ((3, 16), ((4, 6), (2, 3))),
    ((2, 9, 17), ((4, 8), (2, 4), (1, 2))),
]


@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize(("channels", "sizes"), GEOMETRIES, ids=str)
def test_uflow(channels, sizes, affine):
    flow = randomise(UFlow(channels, sizes, steps=2, affine=affine))
    numel = sum(c * h * w for c, (h, w) in zip(channels, sizes, strict=True))

    def forward(x):
        latents, log_det = flow(part(x, channels, sizes))
        assert [z.shape for z in latents] == [(1, c, *s) for c, s in zip(flow.latent_channels, sizes, strict=True)]
        assert log_det.shape == (1,)
        return join(latents), log_det.squeeze()

    def inverse(y):
        return join(flow.inverse(part(y, flow.latent_channels, sizes)))

    check_four(forward, inverse, randn(numel), numel)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_images_of_a_batch_are_independent(levels):
    channels, sizes = (5, 9, 12)[:levels], ((8, 4), (4, 2), (2, 1))[:levels]
    flow = randomise(UFlow(channels, sizes, steps=2, affine=True))
    features = [randn(3, c, *size) for c, size in zip(channels, sizes, strict=True)]
    latents, log_det = flow(features)
    for i in range(3):
        alone, log_det_alone = flow([x[i : i + 1] for x in features])
        torch.testing.assert_close(log_det_alone, log_det[i : i + 1])
        for z, z_alone in zip(latents, alone, strict=True):
            torch.testing.assert_close(z_alone, z[i : i + 1])


def test_mcait_geometry():
    flow = UFlow((768, 384), ((28, 28), (14, 14)), steps=1)
    assert flow.latent_channels == (816, 192)
    with torch.no_grad():
        latents, _ = flow([torch.zeros(1, 768, 28, 28), torch.zeros(1, 384, 14, 14)])
    assert [tuple(z.shape) for z in latents] == [(1, 816, 28, 28), (1, 192, 14, 14)]


def test_nll_is_minus_the_log_density_without_its_constant():
    flow = randomise(UFlow((4, 8), ((4, 4), (2, 2)), steps=2))
    latents, log_det = flow([randn(3, 4, 4, 4), randn(3, 8, 2, 2)])
    z = torch.cat([z.flatten(1) for z in latents], dim=1)
    constant = 0.5 * z.shape[1] * math.log(2 * math.pi)
    expected = -torch.distributions.Normal(0, 1).log_prob(z).sum(dim=1) - constant - log_det
    torch.testing.assert_close(flow.nll(latents, log_det), expected)


def test_gradients_reach_every_weight_and_are_right():
    flow = randomise(UFlow((3, 9), ((4, 2), (2, 1)), steps=2, affine=True))
    features = (randn(2, 3, 4, 2, seed=1).requires_grad_(), randn(2, 9, 2, 1, seed=2).requires_grad_())
    assert torch.autograd.gradcheck(lambda *x: flow.nll(*flow(x)), features)
    flow.nll(*flow(features)).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())


def test_seed_alone_decides_the_weights():
    def weights(seed, global_seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            return UFlow((8, 16), ((4, 4), (2, 2)), seed=seed).state_dict()

    first, again, other = weights(3, 0), weights(3, 1), weights(4, 0)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first if "permutation" in key)
    assert not torch.equal(first["stages.0.0.subnet.0.weight"], other["stages.0.0.subnet.0.weight"])


def test_subnets_start_as_pytorch_s_convolutions():
    step = CouplingStep(64, 3, 2.0, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for conv in (step.subnet[0], step.subnet[2]):
        default = nn.Conv2d(conv.in_channels, conv.out_channels, 3)
        for ours, theirs in zip(conv.parameters(), default.parameters(), strict=True):
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.3)
            assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.1)


@pytest.mark.parametrize(("autocast", "rtol"), [(True, 0.02), (False, 0.15)], ids=["autocast", "bfloat16"])
def test_log_det_is_float32_in_low_precision(autocast, rtol):
    flow = randomise(UFlow((8, 16), ((8, 8), (4, 4)))).float()
    features = [randn(2, 8, 8, 8).float(), randn(2, 16, 4, 4, seed=1).float()]
    expected = flow(features)[1]
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            latents, log_det = flow(features)
        assert all(z.dtype == torch.float32 for z in latents)
    else:
        latents, log_det = flow.bfloat16()([x.bfloat16() for x in features])
    assert log_det.dtype == flow.nll(latents, log_det).dtype == torch.float32
    torch.testing.assert_close(log_det, expected, rtol=rtol, atol=0)


def test_inputs_are_not_modified():
    flow = UFlow((4, 8), ((4, 4), (2, 2)), affine=True)
    features = [randn(1, 4, 4, 4).float(), randn(1, 8, 2, 2).float()]
    copies = [x.clone() for x in features]
    latents, _ = flow(features)
    latent_copies = [z.clone() for z in latents]
    flow.inverse(latents)
    assert all(map(torch.equal, features + latents, copies + latent_copies))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), ()), "one entry per scale"),
        (((8, 8), ((4, 4),)), "one entry per scale"),
        (((8, 8), ((28, 28), (13, 14))), r"twice as high and as wide.*\(28, 28\), \(13, 14\)"),
        (((8, 8), ((14, 14), (28, 28))), "finest first"),
        (((8,), ((0, 4),)), "at least one cell"),
        (((1, 8), ((4, 4), (2, 2))), r"at least 2 channels: got \(1, 8\)"),
        (((8, 7), ((4, 4), (2, 2))), "at least 8 channels.*got 7"),
        (((8,), ((4, 4),), 0), "steps must be at least 1: got 0"),
    ],
)
def test_impossible_flows(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        UFlow(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("arguments", "message"), [((1, 3), "2 channels, got 1"), ((4, 2), "odd, got 2")])
def test_impossible_steps(arguments, message):
    with pytest.raises(ValueError, match=message):
        CouplingStep(*arguments)


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 4, 4, 4)],
        [(1, 8, 2, 2), (1, 4, 4, 4)],
        [(1, 4, 4, 4), (1, 8, 4, 4)],
        [(1, 4, 4, 4), (2, 8, 2, 2)],
        [(4, 4, 4), (8, 2, 2)],
    ],
    ids=str,
)
def test_wrong_shapes(shapes):
    flow = UFlow((4, 8), ((4, 4), (2, 2)))
    volumes = [torch.zeros(shape) for shape in shapes]
    with pytest.raises(ValueError, match=r"features of shapes \(B, 4, 4, 4\), \(B, 8, 2, 2\), finest first: got") as e:
        flow(volumes)
    assert all(str(shape) in str(e.value) for shape in shapes)
    with pytest.raises(ValueError, match=r"latents of shapes \(B, 5, 4, 4\), \(B, 4, 2, 2\)"):
        flow.inverse(volumes)


def freia_uflow(channels, sizes, steps) -> ff.GraphINN:
    """The same flow of FrEIA 0.2's parts: inputs finest first, outputs finest first."""

    def subnet(kernel):
        def construct(c_in, c_out):
            return nn.Sequential(
                nn.Conv2d(c_in, c_in, kernel, padding="same"),
                nn.ReLU(),
                nn.Conv2d(c_in, c_out, kernel, padding="same"),
            )

        return construct

    inputs = [ff.InputNode(c, *size) for c, size in zip(channels, sizes, strict=True)]
    nodes, outputs, up = [], [], None
    for level in reversed(range(len(channels))):
        node = inputs[level]
        if up is not None:
            node = ff.Node([node.out0, up.out0], fm.Concat, {})
            nodes.append(node)
        for step in range(steps):
            options = {"subnet_constructor": subnet(1 if step % 2 else 3), "affine_clamping": 2.0}
            node = ff.Node(node, fm.AllInOneBlock, options | {"global_affine_type": "SOFTPLUS"})
            nodes.append(node)
        if level > 0:
            c = node.output_dims[0][0]
            node = ff.Node(node, fm.Split, {"section_sizes": [c // 8 * 4, c - c // 8 * 4], "dim": 0})
            up = ff.Node(node.out0, fm.IRevNetUpsampling, {})
            nodes += [node, up]
        outputs.insert(0, ff.OutputNode(node.out1 if level > 0 else node.out0))
    graph = ff.GraphINN(inputs + nodes + outputs, force_tuple_output=True)

    generator = torch.Generator().manual_seed(5)
    for block in graph.modules():
        if isinstance(block, fm.AllInOneBlock):
            w = torch.eye(block.in_channels)[torch.randperm(block.in_channels, generator=generator)]
            block.w_perm.data, block.w_perm_inv.data = w[..., None, None], w.T[..., None, None]
    return randomise(graph)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize(
    ("channels", "sizes", "steps"),
    [
        ((7,), ((5, 3),), 4),
        ((24, 40), ((12, 12), (6, 6)), 4),
        ((5, 17), ((6, 10), (3, 5)), 3),
        ((6, 11, 24), ((12, 8), (6, 4), (3, 2)), 2),
        ((2, 8, 9, 40), ((16, 16), (8, 8), (4, 4), (2, 2)), 1),
    ],
    ids=str,
)
def test_equals_freia(channels, sizes, steps, dtype, tolerance):
    oracle = freia_uflow(channels, sizes, steps).to(dtype)
    flow = UFlow(channels, sizes, steps).to(dtype)
    flow.load_state_dict(convert_freia({f"flow.{k}": v for k, v in oracle.state_dict().items()}), strict=True)

    features = [randn(3, c, *size, seed=c, dtype=dtype) for c, size in zip(channels, sizes, strict=True)]
    latents, log_det = flow(features)
    expected, expected_log_det = oracle(features)
    torch.testing.assert_close(latents, list(expected), rtol=0, atol=tolerance)
    torch.testing.assert_close(log_det, expected_log_det.to(dtype), rtol=tolerance, atol=tolerance)

    torch.testing.assert_close(flow.inverse(latents), list(oracle(latents, rev=True)[0]), rtol=0, atol=tolerance)
