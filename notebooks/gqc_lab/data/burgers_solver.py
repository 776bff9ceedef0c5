r"""Viscous Burgers' equation, pseudo-spectral in space and ETDRK4 in time.

.. math:: u_t + (u^2/2)_x = (\nu/\pi)\,u_{xx}, \qquad x \in (0, 1) \text{ periodic},\ t > 0

as in PDEBench.  On a grid of N points the Fourier coefficients :math:`\hat u_n` with
:math:`|n| \le (N-1)/3` are kept, so that the product is free of aliasing (the 2/3 rule).  Diffusion
is integrated exactly, the product by fourth-order Runge-Kutta; the step is as short as the largest
value requires, which by the maximum principle is the one at the start.  Double precision
throughout.

Sources: Cox and Matthews 2002 (ETDRK4); Kassam and Trefethen 2005 (its coefficients as contour
means, without cancellation); Takamoto et al. 2022, arXiv:2210.07182 (PDEBench's equation).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

COURANT = 2.0  #: dt max|u| k_max of a step; the bound of RK4 for pure advection is 2.8
TAIL = 1e-3  #: largest share of the last tenth of the modes in a resolved field
CHUNK = 32  #: trajectories solved together; their coefficients fit a core's cache


def internal_grid(nu: float) -> int:
    """Return a grid size that resolves shocks of unit height: 512 from nu = 0.02, 1024 at 0.01."""
    return max(512, 2 ** math.ceil(math.log2(8 / nu)))


def solve(
    initial: Tensor,
    nu: float,
    times: Sequence[float],
    points: int | None = None,
    courant: float = COURANT,
) -> Tensor:
    """Solve for the trajectories from ``initial``, stored at ``times``.

    Args:
        initial: u at t = 0 on :math:`x_i = i/N`, shape (batch, N), N even.
        nu: > 0; the diffusivity is nu / pi.
        times: increasing, >= 0.
        points: stored per field, a divisor of N (every N / points-th); None: all.
        courant: > 0; a lower number means shorter steps.
    Returns: float64, shape (batch, times, points).
    Raises: ValueError: ``points`` does not divide N, or the grid is too coarse for the shocks.
    """
    grid = initial.shape[1]
    points = grid if points is None else points
    if grid % points:
        raise ValueError(f"points={points}: expected a divisor of the grid's {grid} points")
    parts = [_solve_chunk(u.double(), nu, times, points, courant) for u in initial.split(CHUNK)]
    return torch.cat(parts)


def _solve_chunk(
    u: Tensor, nu: float, times: Sequence[float], points: int, courant: float
) -> Tensor:
    grid = u.shape[1]
    modes = (grid - 1) // 3 + 1
    k = 2 * math.pi * torch.arange(modes, dtype=torch.float64, device=u.device)
    advect, diffuse = -0.5j * k, -nu / math.pi * k.square()
    v = torch.fft.rfft(u, norm="forward")[:, :modes].contiguous()
    stored = torch.empty(len(u), len(times), points, dtype=torch.float64, device=u.device)
    for i, (before, time) in enumerate(zip((0.0, *times), times, strict=False)):
        fastest = u.abs().max().item()
        steps = max(1, math.ceil((time - before) * fastest * k[-1].item() / courant))
        if time > before:
            v = _advance(v, advect, _Coefficients(diffuse, (time - before) / steps), steps, grid)
            u = torch.fft.irfft(v, grid, norm="forward")
        _check_resolved(v, time)
        stored[:, i] = u[:, :: grid // points]
    return stored


class _Coefficients:
    r"""Coefficients of ETDRK4 for :math:`\dot v = L v + N(v)`, diagonal L: functions of hL.

    Means over a circle of radius 1 around each hL, in its upper half since L is real.
    """

    def __init__(self, linear: Tensor, step: float) -> None:
        z = step * linear
        angles = math.pi * (torch.arange(32, dtype=torch.float64, device=z.device) + 0.5) / 32
        r = z.unsqueeze(1) + torch.exp(1j * angles)
        e = torch.exp(r)
        self.full, self.half = torch.exp(z), torch.exp(z / 2)
        self.inner = step * ((torch.exp(r / 2) - 1) / r).real.mean(1)
        self.first = step * ((-4 - r + e * (4 - 3 * r + r**2)) / r**3).real.mean(1)
        self.middle = 2 * step * ((2 + r + e * (r - 2)) / r**3).real.mean(1)
        self.last = step * ((-4 - 3 * r - r**2 + e * (4 - r)) / r**3).real.mean(1)


def _advance(v: Tensor, advect: Tensor, c: _Coefficients, steps: int, grid: int) -> Tensor:
    """Take ``steps`` steps of ETDRK4; mode 0, the mean, has no term and does not change."""
    for _ in range(steps):
        nv = _product(v, advect, grid)
        half = c.half * v
        a = half + c.inner * nv
        na = _product(a, advect, grid)
        nb = _product(half + c.inner * na, advect, grid)
        nc = _product(c.half * a + c.inner * (2 * nb - nv), advect, grid)
        v = c.full * v + c.first * nv + c.middle * (na + nb) + c.last * nc
    return v


def _product(v: Tensor, advect: Tensor, grid: int) -> Tensor:
    r"""Return the coefficients of :math:`-(u^2/2)_x`."""
    u = torch.fft.irfft(v, grid, norm="forward")
    return advect * torch.fft.rfft(u * u, norm="forward")[:, : v.shape[1]]


def _check_resolved(v: Tensor, time: float) -> None:
    size = v.abs()
    if not size.isfinite().all():
        raise ValueError(f"the solution is NaN or infinite at t={time:g}: use a smaller courant")
    tail, largest = size[:, -max(1, v.shape[1] // 10) :].max().item(), size.max().item()
    if tail > TAIL * largest:
        raise ValueError(
            f"at t={time:g} the shortest waves have {tail / largest:.1e} of the largest amplitude, "
            f"expected at most {TAIL:g}: use a finer grid or a larger nu"
        )
