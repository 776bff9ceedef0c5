"""The sign sketch against a bucket-by-bucket reference, and the properties it rests on."""

import copy
import pickle

import pytest
import torch
from vgs_reference import normal, sketch_values

from gqc.scalers import sketch
from gqc.scalers.sketch import SignSketch

CPU = torch.device("cpu")
SIGNS = sketch._signs(64, 0, CPU)


@pytest.mark.parametrize(
    "numel",
    [1, 2, 63, 64, 65, 100, 127, 128, 4096, 8191 * 64, 8191 * 64 + 5, 8191 * 150 + 17, 1 << 21],
)
def test_sketch_is_the_signed_sum_of_buckets(numel):
    gradient = normal(numel, seed=1)
    values = SignSketch([numel], [CPU])([gradient])
    expected = sketch_values(gradient, SIGNS)
    # float32 sums of up to 8191 numbers of size 1: rounding of about 1e-7 * 8191 at the worst
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=2e-4)
    assert len(values) >= min(numel, 64)


def test_more_than_sixty_four_projections():
    gradient = normal(8191 * 200, seed=1)
    values = SignSketch([len(gradient)], [CPU], size=256, seed=3)([gradient])
    expected = sketch_values(gradient, sketch._signs(256, 3, CPU))
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=2e-4)


def test_one_projection():
    gradient = normal(50, seed=1)
    values = SignSketch([50], [CPU], size=1)([gradient])
    torch.testing.assert_close(values.double(), sketch_values(gradient, sketch._signs(1, 0, CPU)))


def test_tensors_are_sketched_one_after_another_and_missing_ones_are_zero():
    numels = [70, 10, 9000]
    tensors = [normal(n, seed=n) for n in numels]
    whole = SignSketch(numels, [CPU] * 3)
    parts = whole([tensors[0], None, tensors[2]]).split(whole.sizes)
    assert torch.equal(parts[0], SignSketch([70], [CPU])([tensors[0]]))
    assert not parts[1].any()
    assert torch.equal(parts[2], SignSketch([9000], [CPU])([tensors[2]]))


def test_tensors_of_another_device_get_the_same_values():
    """cpu:0 stands for a second device: torch tells the two apart by name only."""
    tensors = [normal(70, seed=1), normal(9000, seed=2)]
    one = SignSketch([70, 9000], [CPU, CPU])(tensors)
    two = SignSketch([70, 9000], [CPU, torch.device("cpu:0")])(tensors)
    assert torch.equal(one, two)


def test_squared_norm_is_kept_in_expectation_with_the_stated_error():
    """200 seeds: the mean within 4 standard errors of 0.18/sqrt(200), the spread within 4 of
    0.18/sqrt(400) and of the excess kurtosis."""
    gradient = normal(4096, seed=2)
    norm_sq = gradient.square().sum()
    ratios = torch.stack(
        [SignSketch([4096], [CPU], seed=s)([gradient]).square().sum() / norm_sq for s in range(200)]
    )
    error = (2 / 64) ** 0.5
    assert abs(ratios.mean().item() - 1) < 4 * error / 200**0.5
    assert ratios.std().item() == pytest.approx(error, rel=0.25)


@pytest.mark.parametrize("numel", [4096, 64 * 8191])
def test_a_constant_gradient_is_no_worse(numel):
    """Why buckets have signs of their own: with one row for all the error is sqrt(2), not 0.18."""
    ones = torch.ones(numel)
    with_rows, with_one = [], []
    for seed in range(60):
        signs = sketch._signs(64, seed, CPU)
        length = numel // 64
        with_rows.append(SignSketch([numel], [CPU], seed=seed)([ones]).square().sum() / numel)
        with_one.append((ones.view(64, length) @ signs[0, :length]).square().sum() / numel)
    spread = torch.stack(with_rows).std().item()
    # the standard deviation of 60 values is known to 1/sqrt(120) = 9%; three of them
    assert spread == pytest.approx((2 / 64) ** 0.5, rel=0.28)
    assert torch.stack(with_one).std().item() > 0.7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_summed_in_float32(dtype):
    gradient = (1 + 0.01 * normal(6400, seed=1)).to(dtype)
    values = SignSketch([6400], [CPU])([gradient])
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, SignSketch([6400], [CPU])([gradient.float()]))


def test_complex_and_strided_gradients_are_read_in_logical_order():
    z = torch.complex(normal(30, 5, seed=1), normal(30, 5, seed=2))
    values = SignSketch([300], [CPU])([z])
    assert torch.equal(values, SignSketch([300], [CPU])([torch.view_as_real(z).contiguous()]))
    matrix = normal(50, 30, seed=3)
    values = SignSketch([1500], [CPU])([matrix.t()])
    assert torch.equal(values, SignSketch([1500], [CPU])([matrix.t().contiguous()]))


def test_signs_are_shared_and_do_not_touch_the_global_stream():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    signs = sketch._signs(64, 12345, CPU)
    assert torch.equal(before, torch.get_rng_state())
    assert sketch._signs(64, 12345, CPU) is signs
    assert signs.abs().eq(1).all()
    # 524224 signs: the mean of independent ones has standard error 1.4e-3
    assert abs(signs.mean().item()) < 4 * signs.numel() ** -0.5


def test_copies_make_their_signs_again():
    original = SignSketch([70, 9000], [CPU, CPU], seed=5)
    tensors = [normal(70, seed=1), normal(9000, seed=2)]
    assert len(pickle.dumps(original)) < 1000
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert torch.equal(twin(tensors), original(tensors))
