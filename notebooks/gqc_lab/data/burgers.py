r"""Trajectories of Burgers' equation: simulated from a seed, or read from a PDEBench file.

Simulated trajectories start from sums of two sines,
:math:`u_0 = \sum_i A_i \sin(2\pi n_i x + \phi_i)` with :math:`A_i \in [0, 1]`,
:math:`n_i \in \{1, .., 4\}`, :math:`\phi_i \in [0, 2\pi)`, and are cached in the folder named by
the environment variable ``GQC_CACHE``, by default ``~/.cache/gqc``.

Source: Takamoto et al. 2022, arXiv:2210.07182 (PDEBench).  Differs: no absolute values and no
windows of initial fields, and 256 points at 101 times where the published files have 1024 at 201.
"""

import contextlib
import hashlib
import math
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gqc_lab.data import burgers_solver
from gqc_lab.data.burgers_solver import internal_grid, solve
from gqc_lab.data.images import cache_folder, hash_tensors
from gqc_lab.loop.placement import make_generator

NUM_WAVES, MAX_MODE = 2, 4
END_TIME = 2.0


@dataclass(frozen=True)
class BurgersData:
    """Fields on one periodic grid, split by trajectory.

    Args:
        train, test: u, float32 on the CPU, shape (trajectories, times, points).
        positions: x of the points in [0, 1), float32.
        times: t of the stored fields, float32.
        nu: coefficient of the equation; the diffusivity is nu / pi.
        hash: sha256 of the fields, positions, times and nu.
    """

    train: Tensor
    test: Tensor
    positions: Tensor
    times: Tensor
    nu: float
    hash: str


def load_burgers_data(
    source: str = "simulated",
    num_train: int = 64,
    num_test: int = 16,
    nu: float = 0.01,
    seed: int = 0,
    points: int = 256,
    num_times: int = 101,
) -> BurgersData:
    """Simulate a data set, load it from the cache, or read it from a file.

    Args:
        source: ``"simulated"``, or the path of a PDEBench HDF5 file, whose name states nu
            (``1D_Burgers_Sols_Nu0.01.hdf5``).
        num_train, num_test: trajectories, at least 1; the first and the last ones of a file.
        nu: in [0.001, 1]; must match that of a file.
        seed: of the training trajectories; the test trajectories are the same for every seed.
        points, num_times: kept per trajectory, evenly spaced; times start at 0.
    Raises: ValueError: no such file, or one that does not fit.  ImportError: a file needs h5py.
    """
    if source != "simulated":
        return _read_pdebench(source, num_train, num_test, nu, points, num_times)
    times = torch.linspace(0, END_TIME, num_times, dtype=torch.float64)
    train, test = (
        _cached(stream, count, nu, number, points, times)
        for stream, count, number in (("train", num_train, seed), ("test", num_test, 0))
    )
    return make_burgers_data(train, test, torch.arange(points) / points, times, nu)


def make_burgers_data(
    train: Tensor, test: Tensor, positions: Tensor, times: Tensor, nu: float
) -> BurgersData:
    """Check existing fields and make a data set of them.

    Raises: ValueError: shapes that do not fit together, NaN in a field, or a grid that is not
        uniform and periodic.
    """
    check_periodic(positions)
    for name, fields in (("train", train), ("test", test)):
        wanted = (len(times), len(positions))
        if fields.ndim != 3 or tuple(fields.shape[1:]) != wanted:
            raise ValueError(
                f"{name} fields of shape {tuple(fields.shape)}: expected (trajectories, "
                f"{wanted[0]}, {wanted[1]}) for {wanted[0]} times and {wanted[1]} positions"
            )
        bad = (~fields.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"{name} fields: NaN or infinite in trajectories {bad[:5]}")
    parts = {"train": train, "test": test, "positions": positions, "times": times}
    plain = {name: part.to(torch.float32).contiguous() for name, part in parts.items()}
    return BurgersData(**plain, nu=nu, hash=hash_tensors(*plain.values(), torch.tensor(nu)))


def draw_initial(num: int, grid: int, generator: torch.Generator) -> Tensor:
    """Draw initial fields, float64, shape (num, grid); see the module."""
    shape = (num, NUM_WAVES, 1)
    amplitude = torch.rand(shape, generator=generator, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(shape, generator=generator, dtype=torch.float64)
    mode = torch.randint(1, MAX_MODE + 1, shape, generator=generator)
    x = torch.arange(grid, dtype=torch.float64) / grid
    return (amplitude * torch.sin(2 * math.pi * mode * x + phase)).sum(1)


def check_periodic(positions: Tensor) -> None:
    """Refuse ``positions`` that are not a uniform grid over [0, 1); often 1 repeats 0."""
    gaps = positions.double().diff()
    count = len(positions)
    if positions.ndim != 1 or count < 2 or not positions.isfinite().all():
        raise ValueError(f"positions: shape {tuple(positions.shape)}: expected a finite vector")
    if not (gaps - gaps.mean()).abs().max() <= 1e-3 * gaps.mean():
        raise ValueError(
            f"positions: gaps from {gaps.min():.4g} to {gaps.max():.4g}: expected a uniform grid"
        )
    length = gaps.mean().item() * count
    if not (abs(length - 1) <= 0.5 / count and -1e-6 <= positions[0] < 1):
        raise ValueError(
            f"positions: {count} points from {positions[0]:.4g} to {positions[-1]:.4g} make a "
            f"period of {length:.5g}: expected 1, a periodic grid without its end point"
        )


def _cached(stream: str, num: int, nu: float, seed: int, points: int, times: Tensor) -> Tensor:
    """Return simulated fields in float32, simulating them at most once per machine."""
    settings = [stream, num, nu, seed, points, len(times), END_TIME, NUM_WAVES, MAX_MODE]
    code = Path(burgers_solver.__file__).read_bytes() + Path(__file__).read_bytes()
    key = hashlib.sha256(repr(settings).encode() + code).hexdigest()
    path = cache_folder() / f"burgers-{key[:16]}.pt"
    if path.is_file():
        with contextlib.suppress(Exception):  # a damaged file can make torch.load raise anything
            saved = torch.load(path, weights_only=True)
            if hash_tensors(saved["fields"]) == saved["hash"]:
                return saved["fields"]
        warnings.warn(f"{path} is damaged; simulating it again", RuntimeWarning, stacklevel=3)
    generator = make_generator(seed, f"burgers {stream}")
    initial = draw_initial(num, max(internal_grid(nu), points), generator)
    fields = solve(initial, nu, times.tolist(), points).float()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.save({"fields": fields, "hash": hash_tensors(fields)}, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return fields


def _read_pdebench(
    source: str, num_train: int, num_test: int, nu: float, points: int, num_times: int
) -> BurgersData:
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(
            f"source={source!r}: no such file; expected 'simulated' or the path of an HDF5 file"
        )
    stated = re.search(r"[Nn]u(\d*\.?\d+)", path.stem)
    if stated is None or not math.isclose(float(stated[1]), nu):
        raise ValueError(
            f"nu={nu!r}, file {path.name}: expected a name that states the same, such as "
            f"1D_Burgers_Sols_Nu{nu:g}.hdf5"
        )
    try:
        import h5py
    except ImportError:
        raise ImportError(f"source={source!r} needs the package h5py: pip install h5py") from None
    with h5py.File(path, "r") as file:
        wanted = ("tensor", "x-coordinate", "t-coordinate")
        if missing := [name for name in wanted if name not in file]:
            raise ValueError(f"{path.name}: no {', '.join(missing)}; has {', '.join(file)}")
        tensor = file["tensor"]
        if len(tensor.shape) != 3:
            shape = f"{path.name}: tensor of shape {tuple(tensor.shape)}"
            raise ValueError(f"{shape}: expected (cases, times, points)")
        count, long, wide = tensor.shape
        every_time = _stride("num_times", num_times, long, ends=1)
        every_point = _stride("points", points, wide)
        if num_train + num_test > count:
            raise ValueError(
                f"num_train={num_train}, num_test={num_test}: {path.name} has {count} trajectories"
            )
        pick = (slice(None, None, every_time), slice(None, None, every_point))
        train = torch.from_numpy(tensor[:num_train][:, *pick])
        test = torch.from_numpy(tensor[count - num_test :][:, *pick])
        positions = torch.from_numpy(file["x-coordinate"][:wide:every_point])
        # PDEBench lists one time more than it stores fields.
        times = torch.from_numpy(file["t-coordinate"][:long:every_time])
    return make_burgers_data(train, test, positions, times, nu)


def _stride(name: str, wanted: int, stored: int, ends: int = 0) -> int:
    """Return n such that every n-th stored one is kept; ``ends``: 1 where the last one is too."""
    if not ends < wanted <= stored or (stored - ends) % (wanted - ends):
        raise ValueError(f"{name}={wanted}: the file's {stored} cannot be thinned to that number")
    return (stored - ends) // (wanted - ends)
