"""What a UPGD step costs, as ratios to torch's AdamW(foreach) and AdamW(fused): ``make bench``.

Everything takes turns in one process, so that the ratios hold on a busy machine.  ``--threads``,
``--sizes`` and ``--rounds`` choose.
"""

from __future__ import annotations

import argparse

import torch
from interleaved import SIZES, make_parameters, medians, report, set_gradients

from gqc.upgd import UPGD, UPGDW, AdaptiveUPGD

BASELINE = "AdamW(foreach)"


class Published:
    """The loop over tensors of the released code, written from its formulas (``max_published``)."""

    def __init__(self, params, sigma: float) -> None:
        self.params, self.sigma, self.steps = params, sigma, 0
        self.utilities = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        largest = torch.tensor(-torch.inf)
        for w, u in zip(self.params, self.utilities, strict=True):
            u.mul_(0.999).add_(-w.grad * w, alpha=1 - 0.999)
            if u.max() > largest:
                largest = u.max()
        for w, u in zip(self.params, self.utilities, strict=True):
            noise = torch.randn_like(w) * self.sigma
            scaled = torch.sigmoid(u / (1 - 0.999**self.steps) / largest)
            w.mul_(1 - 1e-9 * 0.001).add_((w.grad + noise) * (1 - scaled), alpha=-1e-9)


def contestants():
    """name -> maker of an optimizer; lr is so small that the parameters stay where they are."""
    adamw = torch.optim.AdamW
    yield BASELINE, lambda params: adamw(params, lr=1e-9, foreach=True)
    yield "AdamW(fused)", lambda params: adamw(params, lr=1e-9, fused=True)
    for cls in (UPGD, AdaptiveUPGD, UPGDW):
        yield f"{cls.__name__}, no noise", lambda params, cls=cls: cls(params, lr=1e-9, sigma=0.0)
        yield f"{cls.__name__}, Gaussian noise", lambda params, cls=cls: cls(params, lr=1e-9)
    yield (
        "UPGD minmax_published, no noise",
        lambda params: UPGD(params, lr=1e-9, sigma=0.0, normalization="minmax_published"),
    )
    yield (
        "UPGD foreach=False, no noise",
        lambda params: UPGD(params, lr=1e-9, sigma=0.0, foreach=False),
    )
    yield "the published loop of UPGD", lambda params: Published(params, 0.001)


def bench(numel: int, rounds: int) -> None:
    params = make_parameters(numel)
    set_gradients(params)  # one set for all: at most 3 states of this size are alive beside it
    optimizers = {name: make(params) for name, make in contestants()}
    noise = torch.empty(numel)
    generator = torch.Generator().manual_seed(0)

    def nothing() -> None:
        pass

    runs = {name: (nothing, optimizer.step) for name, optimizer in optimizers.items()}
    runs["normal_ of one flat buffer"] = (nothing, lambda: noise.normal_(generator=generator))
    title = f"{numel:,} parameters in {len(params)} tensors, {torch.get_num_threads()} threads"
    report(title, medians(runs, rounds), BASELINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--sizes", nargs="*", default=["0.1M", "10M"], choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for size in arguments.sizes:
            bench(SIZES[size], arguments.rounds * (20 if SIZES[size] < 1_000_000 else 1))


if __name__ == "__main__":
    main()
