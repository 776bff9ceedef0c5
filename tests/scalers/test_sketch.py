"""The hashes against a bucket-by-bucket reference, and the properties they rest on."""

import copy
import pickle

import pytest
import torch
from vgs_reference import normal, sketch_hashes

from gqc.scalers import sketch
from gqc.scalers.sketch import SignSketch

CPU = torch.device("cpu")


def hashes(tensor, **options):
    """The values of each hash of one tensor (of the tensor itself, if it is small)."""
    one = SignSketch([tensor.numel()], [CPU], **options)
    return one([tensor]).split(one.lengths)


@pytest.mark.parametrize(
    "numel",
    [
        *(1, 2, 4096, 4097, 9999, 1 << 14, 20_000, 65_535, 65_536, 65_537, 99_999),
        1 << 20,
        1_500_007,
    ],
)
def test_hashes_are_the_signed_sums_of_buckets(numel):
    gradient = normal(numel, seed=1)
    got, expected = hashes(gradient), sketch_hashes(gradient)
    assert [len(h) for h in got] == [len(h) for h in expected]
    for mine, reference in zip(got, expected, strict=True):
        # float32 sums of up to 8 * 363 numbers of size 1
        torch.testing.assert_close(mine.double(), reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("size", "seed"), [(1, 0), (4, 3), (20, 5)])
@pytest.mark.parametrize("numel", [1, 2, 17, 63, 300, 7777])
def test_other_sizes_and_seeds(numel, size, seed):
    gradient = normal(numel, seed=1)
    expected = sketch_hashes(gradient, size, seed)
    for mine, reference in zip(hashes(gradient, size=size, seed=seed), expected, strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=1e-5, atol=1e-4)


def test_two_elements_meet_in_one_hash_at_most():
    """Of 3000 pairs in a tensor that is not folded; and in none if they are the whole gradient."""
    numel = 10_000
    one = SignSketch([numel], [CPU])
    pairs = torch.randint(numel, (3000, 2), generator=torch.Generator().manual_seed(0))
    near = torch.stack([pairs[:, 0], (pairs[:, 0] + 1 + pairs[:, 1] % 200) % numel], 1)
    for first, second in [*pairs.tolist(), *near.tolist()]:
        gradient = torch.zeros(numel)
        gradient[first] = gradient[second] = 1.0
        squares = [h.square().sum().item() for h in one([gradient]).split(one.lengths)]
        if first != second:
            assert sorted(squares)[1] == 2.0
            assert squares.count(2.0) >= 2


def test_tensors_are_sketched_by_themselves_and_missing_ones_are_zero():
    numels = [70, 9000, 10, 9000, 70_000, 9000]
    tensors = [normal(n, seed=i) for i, n in enumerate(numels)]
    together = SignSketch(numels, [CPU] * 6)
    for missing in (None, 0, 3, 4):
        given = [None if i == missing else t for i, t in enumerate(tensors)]
        values = together(given).clone()
        for index, (numel, place) in enumerate(zip(numels, together.places, strict=True)):
            alone = SignSketch([numel], [CPU])([given[index]])
            assert torch.equal(values[place], alone)
    assert sum(together.lengths) == len(values)


def test_folded_tensors_of_one_size_are_sketched_by_themselves():
    tensors = [normal(5000, seed=i) for i in range(2)]
    together = SignSketch([5000] * 2, [CPU] * 2, size=4)
    values = together([tensors[0], tensors[1]]).clone()
    for tensor, place in zip(tensors, together.places, strict=True):
        assert torch.equal(values[place], SignSketch([5000], [CPU], size=4)([tensor]))


@pytest.mark.parametrize("numel", [9000, 70_000, 1 << 21])
@pytest.mark.parametrize("missing", [None, 1])
def test_large_tensors_of_one_size_may_be_hashed_together(numel, missing):
    """As on a card, whose kernels take a stack as fast as one tensor."""
    tensors = [None if i == missing else normal(numel, seed=i) for i in range(3)]
    stack = sketch._Hashes([numel] * 3, 64, 0, CPU)
    lengths = stack.lengths[0]
    values = torch.full((3, sum(lengths)), torch.nan)
    stack.bind(values.view(-1), [torch.full((room,), torch.nan) for room in stack.rooms])
    stack.read(tensors)
    stack.hash()
    for tensor, mine in zip(tensors, values, strict=True):
        assert torch.equal(mine, SignSketch([numel], [CPU])([tensor]))


@pytest.mark.parametrize("numel", [9000, 1 << 21])
def test_a_large_tensor_without_a_gradient_costs_no_hashes(numel, monkeypatch):
    one = SignSketch([numel], [CPU])
    one([normal(numel, seed=1)])
    monkeypatch.setattr(torch, "sum", None)
    monkeypatch.setattr(torch, "mul", None)
    assert torch.equal(one([None]), torch.zeros(sum(one.lengths)))


def test_runs_are_the_hashes_of_each_tensor():
    numels = [70, 9000, 10]
    one = SignSketch(numels, [CPU] * 3)
    values = one([normal(n, seed=n) for n in numels]).split(one.lengths)
    assert one.runs[0][0] == one.runs[1][0] == one.runs[2][0]
    assert len({runs[1] for runs in one.runs}) == 3
    for number, expected in enumerate(sketch_hashes(normal(9000, seed=9000))):
        run = values[one.runs[number][1]]
        torch.testing.assert_close(run.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(values[one.runs[0][2]], normal(10, seed=10))


def test_tensors_of_another_device_get_the_same_values():
    """cpu:0 stands for a second device: torch tells the two apart by name only."""
    tensors = [normal(70, seed=1), normal(9000, seed=2)]
    one = SignSketch([70, 9000], [CPU, CPU])(tensors)
    two = SignSketch([70, 9000], [CPU, torch.device("cpu:0")])(tensors)
    assert torch.equal(one, two)


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_each_tensor_is_multiplied_after_it_was_read(factor):
    numels = [70, 9000, 9000, 70_001, 10]
    tensors = [normal(n, seed=i) for i, n in enumerate(numels)]
    given = [t.clone() for t in tensors]
    given[4] = None
    one = SignSketch(numels, [CPU] * 5)
    expected = one(given).clone()
    assert torch.equal(one(given, factor), expected)
    for before, after in zip(tensors[:4], given[:4], strict=True):
        assert torch.equal(after, factor * before)


def spread(numel, gradient, num=200):
    """Mean and standard deviation over seeds of each hash's estimate, and of their median."""
    estimates = []
    for seed in range(num):
        values = [h.square().sum() for h in hashes(gradient, seed=seed)]
        estimates.append(torch.stack([*values, torch.stack(values).median()]))
    ratios = torch.stack(estimates) / gradient.square().sum()
    return ratios.mean(0), ratios.std(0)


@pytest.mark.parametrize(("numel", "side"), [(10_000, 100), (100_000, 112)])
def test_squared_norms_are_kept_in_expectation_with_the_stated_error(numel, side):
    """200 seeds: means within 4 standard errors, standard deviations (known to 5 %) within 4."""
    mean, deviation = spread(numel, normal(numel, seed=2))
    error = (2 / side) ** 0.5
    assert (mean[:3] - 1).abs().max() < 4 * error / 200**0.5
    assert deviation[:3].tolist() == pytest.approx([error] * 3, rel=0.2)
    assert deviation[3] < 0.8 * error  # 0.67 for three independent normal ones


@pytest.mark.parametrize("numel", [10_000, 100_000, 1 << 20])
def test_a_constant_gradient_is_no_worse(numel):
    _, deviation = spread(numel, torch.ones(numel), num=60)
    assert deviation[3] < 0.15


@pytest.mark.parametrize("numel", [10_000, 1 << 17])
@pytest.mark.parametrize("width", [2, 8, 64])
def test_a_gradient_of_few_neighbours_is_kept(numel, width):
    """One hash sees their sum, whatever its sign; the other two see each of them."""
    for first in range(0, numel - width, numel // 50):
        gradient = torch.zeros(numel)
        gradient[first : first + width] = 1 + torch.arange(width) % 3
        squares = [h.square().sum().item() for h in hashes(gradient)]
        assert sorted(squares)[1] == pytest.approx(gradient.square().sum().item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_summed_in_float32(dtype):
    gradient = (1 + 0.01 * normal(6400, seed=1)).to(dtype)
    for numel in (64, 6400, 64 * 6400):
        one = SignSketch([numel], [CPU])
        values = one([gradient.repeat(64)[:numel]]).clone()
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, one([gradient.repeat(64)[:numel].float()]))


@pytest.mark.parametrize("rows", [30, 3000, 30_000])
def test_complex_and_strided_gradients_are_read_in_logical_order(rows):
    z = torch.complex(normal(rows, 5, seed=1), normal(rows, 5, seed=2))
    one, pair = SignSketch([10 * rows], [CPU]), torch.view_as_real(z).contiguous()
    values = one([z]).clone()
    assert torch.equal(values, one([pair]))
    matrix = normal(10, rows, seed=3)
    values = one([matrix.t()], 0.5).clone()
    assert torch.equal(values, one([normal(10, rows, seed=3).t().contiguous()]))
    assert torch.equal(matrix, 0.5 * normal(10, rows, seed=3))


def test_signs_are_shared_and_do_not_touch_the_global_stream():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    signs = sketch._signs(1 << 17, 12345, CPU)
    assert torch.equal(before, torch.get_rng_state())
    assert sketch._signs(1 << 17, 12345, CPU) is signs
    assert signs.abs().eq(1).all()
    # 131072 signs: the mean of independent ones has standard error 2.8e-3
    assert abs(signs.mean().item()) < 4 * signs.numel() ** -0.5


def test_copies_make_their_signs_again():
    original = SignSketch([70, 90_000], [CPU, CPU], seed=5)
    tensors = [normal(70, seed=1), normal(90_000, seed=2)]
    assert len(pickle.dumps(original)) < 1000
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert torch.equal(twin(tensors), original(tensors))


def test_autocast_does_not_reach_it():
    gradient = normal(100_000, seed=1)
    expected = SignSketch([100_000], [CPU])([gradient]).clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SignSketch([100_000], [CPU])([gradient]), expected)
