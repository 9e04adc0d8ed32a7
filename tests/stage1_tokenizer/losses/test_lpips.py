"""LPIPS: the same bits as the lpips package, gradients that are finite and go to the reconstruction only."""

import subprocess
import sys
import warnings

import pytest
import torch

from foundation.errors import DataError
from stage1_tokenizer.losses.lpips import LPIPS, _unit


@pytest.fixture(scope="module")
def ours() -> LPIPS:
    return LPIPS("random")


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape) * 2 - 1


@pytest.fixture(scope="module")
def theirs(ours: LPIPS) -> torch.nn.Module:
    """The package's LPIPS with our VGG16's weights."""
    try:
        import lpips
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"the lpips package cannot be imported here: {error}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision, about the argument that lpips passes
        theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    weights = ours.vgg.state_dict()
    theirs.net.load_state_dict({name: weights[f"features.{name.split('.', 1)[1]}"] for name in theirs.net.state_dict()})
    return theirs


@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (1, 3, 64, 48), (2, 3, 17, 33)])
def test_values_equal_the_package_s_bit_for_bit(ours: LPIPS, theirs: torch.nn.Module, shape: tuple[int, ...]) -> None:
    one, other = images(*shape), images(*shape).requires_grad_(True)
    found, expected = ours(one, other), theirs(one, other).flatten()
    assert torch.equal(found, expected) and found.shape == (shape[0],)
    assert (found > 0.01).all()
    [gradient] = torch.autograd.grad(found.sum(), other)
    [reference] = torch.autograd.grad(expected.sum(), other)
    assert torch.allclose(gradient, reference, rtol=1e-4, atol=1e-8)


def test_equal_images_are_at_distance_zero_with_finite_gradients(ours: LPIPS) -> None:
    one = images(2, 3, 32, 32)
    one[1] = 0
    other = one.clone().requires_grad_(True)
    distance = ours(one, other)
    assert torch.equal(distance, torch.zeros(2))
    distance.sum().backward()
    assert other.grad is not None and torch.isfinite(other.grad).all()


def test_positions_where_no_feature_fires_have_finite_gradients() -> None:
    dead = LPIPS("random")
    with torch.no_grad():
        dead.vgg.features[28].bias.fill_(-1e6)
    other = images(2, 3, 32, 32).requires_grad_(True)
    distance = dead(images(2, 3, 32, 32), other)
    distance.sum().backward()
    assert torch.isfinite(distance).all() and other.grad is not None
    assert torch.isfinite(other.grad).all() and other.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-12])
def test_tiny_features_whose_squares_underflow_have_finite_gradients(size: float) -> None:
    features = torch.full((1, 4, 2, 2), size, requires_grad=True)
    unit = _unit(features)
    unit.square().sum().backward()
    assert features.grad is not None and torch.isfinite(features.grad).all() and torch.isfinite(unit).all()


def test_gradients_reach_the_reconstruction_only(ours: LPIPS) -> None:
    other = images(1, 3, 32, 32).requires_grad_(True)
    ours(images(1, 3, 32, 32), other).sum().backward()
    assert other.grad is not None and other.grad.abs().sum() > 0
    assert all(each.grad is None and not each.requires_grad for each in ours.parameters())
    assert not any(each.requires_grad for each in ours.features(images(1, 3, 32, 32)))
    with pytest.raises(DataError, match="images first"):
        ours(other, images(1, 3, 32, 32))


def test_features_of_the_images_can_be_reused(ours: LPIPS) -> None:
    one, other = images(2, 3, 32, 32), images(2, 3, 32, 32)
    assert torch.equal(ours.distance(ours.features(one), other), ours(one, other))


def test_grey_images_count_as_three_equal_channels(ours: LPIPS) -> None:
    one, other = images(2, 1, 32, 32), images(2, 1, 32, 32)
    assert torch.equal(ours(one, other), ours(one.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1)))


def test_a_smaller_change_is_nearer_and_each_image_is_judged_alone(ours: LPIPS) -> None:
    one, noise = images(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    near, far = ours(one, one + 0.05 * noise), ours(one, one + 0.5 * noise)
    assert (near < far).all() and (near > 0).all()
    assert torch.allclose(ours(one[:1], one[:1] + 0.5 * noise[:1]), far[:1], rtol=1e-4)


def test_no_images_give_no_distances(ours: LPIPS) -> None:
    assert ours(images(0, 3, 32, 32), images(0, 3, 32, 32)).shape == (0,)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (torch.zeros(1, 3, 15, 32), torch.zeros(1, 3, 15, 32), "at least 16 pixels"),
        (torch.zeros(1, 2, 32, 32), torch.zeros(1, 2, 32, 32), "are not images"),
        (torch.zeros(3, 32, 32), torch.zeros(3, 32, 32), "are not images"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 3, 32, 32), "uint8"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(1, 3, 32, 32), "differ in shape"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 64), "differ in shape"),
    ],
)
def test_what_cannot_be_compared_is_refused(ours: LPIPS, one: torch.Tensor, other: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ours(one, other)


def test_autocast_around_it_changes_nothing(ours: LPIPS) -> None:
    one, other = images(1, 3, 32, 32), images(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ours(one, other)
    assert inside.dtype == torch.float32 and torch.equal(inside, ours(one, other))


def test_bf16_is_close_and_is_really_used(ours: LPIPS) -> None:
    lower = LPIPS("random", precision="bf16")
    one, other = images(2, 3, 32, 32), images(2, 3, 32, 32)
    found, exact = lower(one, other), ours(one, other)
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert torch.allclose(found, exact, rtol=0.05)


def test_random_weights_are_called_random(ours: LPIPS) -> None:
    assert ours.is_random and "random weights" in ours.description


def test_neither_lpips_nor_torchvision_is_imported() -> None:
    code = (
        "import sys; from stage1_tokenizer.losses import LPIPS; LPIPS('random');"
        "print(sorted({'lpips', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
