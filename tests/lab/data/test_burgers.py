r"""The solver against Cole-Hopf, and the data sets made with it.

Measured, relative L2 error at t = 0.3 of two sines (nu = 0.01, shocks of height 1.8):

====================  =======  =======  =======  =======
1024 points, Courant  1        2        4        8
error                 7.7e-10  1.2e-8   2.0e-7   3.2e-6
order                          4.0      4.0      4.0
====================  =======  =======  =======  =======
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from burgers_reference import cole_hopf, sine_sum, sine_sum_integral

from gqc_lab.data import burgers, burgers_solver
from gqc_lab.data.burgers import draw_initial, load_burgers_data, make_burgers_data
from gqc_lab.data.burgers_solver import internal_grid, solve
from gqc_lab.loop.placement import make_generator

TERMS = [(1.0, 1, 0.3), (0.9, 3, 1.0)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GQC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def initial(grid, terms=TERMS):
    return torch.from_numpy(sine_sum(terms, np.arange(grid) / grid))[None]


def error(nu, grid, t, points=64, **options):
    exact = cole_hopf(TERMS, nu, np.arange(points) / points, t)
    found = solve(initial(grid), nu, [t], points, **options)[0, 0].numpy()
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


def test_the_reference_solves_the_equation():
    """Central differences of the reference itself, at a smooth time."""
    nu, h, t = 0.3, 1e-3, 0.05
    x = np.arange(0, 1, 0.1)
    u = {s: cole_hopf(TERMS, nu, x + s * h, t) for s in (-1, 0, 1)}
    dt = (cole_hopf(TERMS, nu, x, t + h) - cole_hopf(TERMS, nu, x, t - h)) / (2 * h)
    dx, dxx = (u[1] - u[-1]) / (2 * h), (u[1] - 2 * u[0] + u[-1]) / h**2
    residual = dt + u[0] * dx - nu / math.pi * dxx
    assert abs(residual).max() < 1e-3 * abs(u[0] * dx).max()
    slope = (sine_sum_integral(TERMS, x + h) - sine_sum_integral(TERMS, x - h)) / (2 * h)
    np.testing.assert_allclose(slope, sine_sum(TERMS, x), atol=1e-3)


@pytest.mark.parametrize("t", [0.02, 0.1, 0.5, 2.0])
def test_error_against_cole_hopf_at_published_viscosity(t):
    assert error(0.01, internal_grid(0.01), t) < 1e-6  # the floor is 1e-4


@pytest.mark.parametrize(("nu", "grid"), [(0.1, 512), (1.0, 512), (0.02, 512)])
def test_error_at_other_viscosities(nu, grid):
    assert internal_grid(nu) == grid
    assert error(nu, grid, 0.2) < 1e-6


def test_fine_shocks_get_a_fine_grid():
    assert internal_grid(0.001) == 8192
    assert error(0.002, internal_grid(0.002), 0.15, points=16) < 1e-5


def test_the_order_in_time_is_four():
    errors = [error(0.01, 1024, 0.3, courant=c) for c in (2.0, 4.0, 8.0)]
    orders = [math.log2(b / a) for a, b in pairwise(errors)]
    assert all(3.7 < order < 4.3 for order in orders), (errors, orders)


def test_the_order_in_space_is_spectral():
    """Each doubling squares the error, where an algebraic order divides it by a constant."""
    for grid in (48, 64):
        coarse, fine = (error(0.1, n, 0.1, points=16, courant=0.2) for n in (grid, 2 * grid))
        assert 1e-8 < coarse < 1e-2
        assert fine < 10 * coarse**2


def test_the_mean_is_conserved():
    fields = draw_initial(8, 1024, make_generator(0, "test")) + torch.linspace(-1, 1, 8)[:, None]
    found = solve(fields, 0.01, [0.3, 2.0])
    assert (found.mean(2) - fields.double().mean(1, keepdim=True)).abs().max() < 1e-12


def test_trajectories_do_not_depend_on_how_they_are_cut(monkeypatch):
    fields = draw_initial(6, 512, make_generator(0, "test"))
    together = solve(fields, 0.1, [0.1, 0.2], 64)
    monkeypatch.setattr(burgers_solver, "CHUNK", 2)
    apart = solve(fields, 0.1, [0.1, 0.2], 64)
    # A chunk's steps follow its fastest value, so only the error of time steps differs.
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-7)
    assert together.shape == (6, 2, 64)


def test_time_zero_is_the_initial_field():
    fields = initial(512)
    assert torch.equal(solve(fields, 0.1, [0.0, 0.1], 64)[:, 0], fields[:, ::8])


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        (initial(512), {"points": 100}, "points=100: expected a divisor of the grid's 512"),
        (initial(64), {"nu": 0.001, "times": [0.1]}, "use a finer grid or a larger nu"),
    ],
)
def test_bad_input_of_the_solver(fields, options, message):
    with pytest.raises(ValueError, match=message):
        solve(fields, **{"nu": 0.1, "times": [0.1], **options})


def small(**options):
    return load_burgers_data(
        **{"num_train": 3, "num_test": 2, "nu": 0.2, "points": 64, "num_times": 5, **options}
    )


def test_a_data_set_solves_the_equation_from_sums_of_two_sines():
    data = small()
    assert data.train.shape == (3, 5, 64)
    assert data.test.shape == (2, 5, 64)
    assert data.train.dtype == torch.float32
    assert data.times.tolist() == [0, 0.5, 1, 1.5, 2]
    spectrum = torch.fft.rfft(data.train[:, 0], norm="forward").abs()
    present = spectrum > 1e-6
    assert (present.sum(1) <= 2).all()
    assert present[:, 1:5].sum() == present.sum() > 0
    assert 2 * spectrum.max() <= 2
    again = solve(data.train[:, 0], 0.2, [0.5])[:, 0].float()
    torch.testing.assert_close(again, data.train[:, 1], rtol=0, atol=1e-6)


def test_seeds_change_training_fields_and_not_the_test(cache):
    one, same, other = small(), small(), small(seed=1)
    assert one.hash == same.hash != other.hash
    assert torch.equal(one.test, other.test)
    assert not torch.equal(one.train, other.train)
    assert not torch.equal(one.train[:2], one.test)
    assert len(list(cache.iterdir())) == 3


def test_a_cached_set_is_read_and_not_made_again(monkeypatch):
    made = small()
    monkeypatch.setattr(burgers, "solve", None)  # would fail
    assert small().hash == made.hash


@pytest.mark.parametrize("damage", [b"", b"half a file", None])
def test_a_damaged_cache_is_noticed_and_mended(cache, damage):
    made = small()
    for path in cache.iterdir():
        if damage is not None:
            path.write_bytes(damage)
        else:
            saved = torch.load(path, weights_only=True)
            saved["fields"][0, 0, 0] += 1
            torch.save(saved, path)
    with pytest.warns(RuntimeWarning, match="simulating it again"):
        assert small().hash == made.hash
    assert small().hash == made.hash


def write_pdebench(folder, name="1D_Burgers_Sols_Nu0.01.hdf5", x=None, drop=(), nan=False):
    import h5py

    generator = make_generator(0, "file")
    tensor = torch.randn(6, 21, 32, generator=generator).numpy()
    if nan:
        tensor[0, 4, 8] = math.nan
    x = (np.arange(32) + 0.5) / 32 if x is None else x
    content = {"tensor": tensor, "x-coordinate": x, "t-coordinate": np.linspace(0, 2.1, 22)}
    with h5py.File(folder / name, "w") as file:
        for key, value in content.items():
            if key not in drop:
                file[key] = value.astype(np.float32)
    return str(folder / name), tensor


def read(source, **options):
    wanted = {"num_train": 4, "num_test": 2, "nu": 0.01, "points": 16, "num_times": 11}
    return load_burgers_data(source, **{**wanted, **options})


def test_a_pdebench_file_is_thinned(tmp_path):
    source, tensor = write_pdebench(tmp_path)
    data = read(source)
    np.testing.assert_array_equal(data.train.numpy(), tensor[:4, ::2, ::2])
    np.testing.assert_array_equal(data.test.numpy(), tensor[4:, ::2, ::2])
    np.testing.assert_allclose(data.times, np.arange(11) * 0.2, rtol=1e-6)
    np.testing.assert_allclose(data.positions, (np.arange(16) * 2 + 0.5) / 32)
    assert read(source).hash == data.hash != read(source, num_train=3).hash


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ({}, {"points": 24}, "points=24: the file's 32 cannot be thinned"),
        ({}, {"num_times": 12}, "num_times=12: the file's 21 cannot be thinned"),
        ({}, {"num_times": 41}, "num_times=41: the file's 21"),
        ({}, {"num_times": 1}, "num_times=1: the file's 21"),
        ({}, {"num_train": 5}, "num_train=5, num_test=2: .* has 6 trajectories"),
        ({}, {"nu": 0.1}, "nu=0.1, file 1D_Burgers_Sols_Nu0.01.hdf5"),
        ({"name": "burgers.hdf5"}, {}, "expected a name that states the same"),
        ({"drop": ["x-coordinate"]}, {}, "no x-coordinate; has t-coordinate, tensor"),
        ({"x": np.linspace(0, 1, 32)}, {}, "expected 1, a periodic grid without its end point"),
        ({"x": np.linspace(0, 1, 32) ** 2}, {}, "expected a uniform grid"),
        ({"nan": True}, {}, r"train fields: NaN or infinite in trajectories \[0\]"),
    ],
)
def test_files_that_do_not_fit(tmp_path, file, options, message):
    source, _ = write_pdebench(tmp_path, **file)
    with pytest.raises(ValueError, match=message):
        read(source, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "no/such/file"}, "source='no/such/file': no such file"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_shapes_that_do_not_fit_are_both_named():
    fields, x, t = torch.zeros(2, 5, 16), torch.arange(16) / 16, torch.arange(4.0)
    with pytest.raises(ValueError, match=r"train fields of shape \(2, 5, 16\): .* 4 times and 16"):
        make_burgers_data(fields, fields, x, t, 0.1)


def test_the_global_random_stream_is_not_touched():
    before = torch.get_rng_state()
    small()
    assert torch.equal(torch.get_rng_state(), before)
