"""Batched gradient operations against their definitions, element by element."""

from __future__ import annotations

import math

import pytest
import torch
from problems import global_norm, stream

from gqc.gradients import (
    collect,
    count_nonfinite,
    divide_,
    magnitudes,
    multiply_,
    norm_of_such,
    tensor_norms,
    total_norm,
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_total_norm_is_the_definition(dtype):
    grads = [g.to(dtype) for g in stream(1)[0]]
    norm = total_norm(grads)
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(norm) == pytest.approx(global_norm(grads), rel=1e-6)


def test_total_norm_of_mixed_dtypes_complex_empty_and_nothing():
    grads = stream(1)[0]
    mixed = [grads[0].double(), grads[1].bfloat16(), grads[2], torch.zeros(0)]
    assert float(total_norm(mixed)) == pytest.approx(global_norm(mixed), rel=1e-6)
    assert float(total_norm([torch.tensor([3 + 4j])])) == pytest.approx(5.0)
    assert float(total_norm([])) == 0.0


@pytest.mark.parametrize("sizes", [[(7,), (3,)], [(5, 3), ()], [(300_000,), (4,), (2, 9), (0,)]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_look_at_tensors_serves_all_that_are_like_them(sizes, dtype):
    """Small ones are taken together, also next to a large one."""
    first, second = [[torch.randn(size).to(dtype) for size in sizes] for _ in range(2)]
    norm = norm_of_such(first)
    for tensors in (first, second):
        # one float32 sum of 1e5 squares of 16-bit numbers is off by 3e-6
        assert float(norm(tensors)) == pytest.approx(global_norm(tensors), rel=1e-5)
        assert torch.equal(norm(tensors), total_norm(tensors))


def test_sixteen_bit_norms_are_summed_in_float32():
    """In bf16 a sum of 1e5 squares would stop at 256."""
    ones = torch.ones(100_000, dtype=torch.bfloat16)
    assert float(total_norm([ones])) == pytest.approx(math.sqrt(1e5), rel=1e-6)


def test_magnitudes_are_exact_where_squares_are_not():
    tensors = [
        torch.tensor([1e-42, -2e-42]),
        torch.tensor([[-3e38, 1.0]]),
        torch.tensor([3 + 4j]),
        torch.zeros(0),
        torch.tensor([-2.0], dtype=torch.float64),
        torch.tensor(0.5, dtype=torch.bfloat16),
    ]
    expected = [float(torch.tensor(2e-42)), float(torch.tensor(3e38)), 5.0, 0.0, 2.0, 0.5]
    assert magnitudes(tensors).tolist() == expected


def test_divide_is_exact_division():
    grads, expected = stream(1)[0], [g / 3 for g in stream(1)[0]]
    divide_(grads, 3)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


@pytest.mark.parametrize("factor", [0.3, torch.tensor(0.3)])
def test_multiply(factor):
    grads, expected = stream(1)[0], [g * factor for g in stream(1)[0]]
    multiply_(grads, factor)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
    multiply_([], factor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_a_number_is_not_rounded_to_the_type_that_it_multiplies(dtype):
    """torch's batched product rounds it first on a CPU: in bfloat16, 0.3722 becomes 0.3711."""
    grad = torch.randn(1001, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = grad * 0.37219
    multiply_([grad], 0.37219)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_count_nonfinite(bad):
    grads = stream(1)[0]
    assert count_nonfinite(grads) == 0
    assert count_nonfinite([torch.full((3,), 3e38)]) == 0  # though its norm overflows
    grads[1][0] = bad
    grads[2][1, 1, 0] = bad
    assert count_nonfinite(grads) == 2


def test_collect_leaves_out_missing_and_refuses_sparse():
    params = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    params[0].grad, params[2].grad = torch.ones(2), torch.full((2,), 2.0)
    assert [float(g[0]) for g in collect(params)] == [1.0, 2.0]
    params[1].grad = torch.zeros(2).to_sparse()
    with pytest.raises(TypeError, match="parameter 1 of shape"):
        collect(params)


@pytest.mark.parametrize("norm_of", [total_norm, lambda tensors: tensor_norms(tensors)[0]])
def test_a_norm_of_many_elements_is_summed_in_parts(norm_of):
    """In one float32 sum, 3e7 squares are 1.7e-3 off on a CPU, and 1e8 of them 1e-2."""
    many = torch.randn(30_000_000, generator=torch.Generator().manual_seed(0))
    expected = float(many.double().norm())
    assert float(norm_of([many])) == pytest.approx(expected, rel=3e-6)
    assert float(norm_of([many.view(-1, 3).t()])) == pytest.approx(expected, rel=3e-6)
    assert float(norm_of([many.fill_(0.1)])) == pytest.approx(0.1 * math.sqrt(3e7), rel=1e-4)


def test_norms_come_in_the_order_of_the_tensors():
    mixed = [torch.ones(4), torch.full((9,), 2.0).double(), torch.zeros(0), torch.ones(1).half()]
    assert tensor_norms(mixed).tolist() == [2.0, 6.0, 0.0, 1.0]
