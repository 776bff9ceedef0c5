"""What a wrapper costs, as ratios to torch AdamW and to the peer: ``make bench``.

A microbatch that does not step is compared with one batched norm and its host sync; a step with the
wrapped step plus norm plus scaling.  Run as a script; ``--threads`` and ``--sizes`` choose.
"""

from __future__ import annotations

import argparse

import gradient_quality_control as peer
import torch
from interleaved import SIZES, make_parameters, medians, report, set_gradients

import gqc
from gqc.gradients import divide_, total_norm


def nothing() -> None:
    pass


def adamw(params, **kwargs):
    return torch.optim.AdamW(params, lr=1e-9, **kwargs)


def ours(params, threshold, **kwargs):
    return gqc.OptimizerWrapperGNTS(
        adamw(params, foreach=True), threshold, max_draws=10**9, **kwargs
    )


def theirs(params, threshold):
    wrapper = peer.OptimizerWrapperGNTS(adamw(params, foreach=True), max_batch_draws=10**9)
    for group in wrapper.param_groups:
        group["gradient_norm_threshold"] = threshold
    return wrapper


def bench(numel: int, rounds: int) -> None:
    names = ["foreach", "fused", "norm", "draw", "peer draw", "step", "peer step", "parts"]
    params = {name: make_parameters(numel) for name in names}
    for group in params.values():
        set_gradients(group)
    kept = {name: [p.grad for p in group] for name, group in params.items()}

    def restore(name):
        def run() -> None:
            for param, grad in zip(params[name], kept[name], strict=True):
                param.grad = grad

        return run

    optimizers = {name: adamw(params[name], foreach=True) for name in ("foreach", "parts")}
    fused = adamw(params["fused"], fused=True)
    draw, peer_draw = ours(params["draw"], 1e-30), theirs(params["peer draw"], 1e-30)
    step, peer_step = ours(params["step"], 1e30), theirs(params["peer step"], 1e30)
    plain = params["norm"]

    def batched_norm() -> None:
        grads = [p.grad for p in plain if p.grad is not None]
        torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))).item()

    def parts() -> None:
        grads = [p.grad for p in params["parts"]]
        total_norm(grads).item()
        divide_(grads, 1.0000001)
        optimizers["parts"].step()

    seconds = medians(
        {
            "AdamW(foreach).step": (restore("foreach"), optimizers["foreach"].step),
            "AdamW(fused).step": (restore("fused"), fused.step),
            "one batched norm and its sync": (nothing, batched_norm),
            "gqc GNTS, a draw without a step": (nothing, draw.step),
            "torch-gqc GNTS, a draw without a step": (nothing, peer_draw.step),
            "norm + scaling + AdamW(foreach).step": (restore("parts"), parts),
            "gqc GNTS, a draw with a step": (restore("step"), step.step),
            "torch-gqc GNTS, a draw with a step": (restore("peer step"), peer_step.step),
        },
        rounds,
    )
    title = f"{numel:,} parameters in {len(plain)} tensors, {torch.get_num_threads()} threads"
    report(title, seconds, "AdamW(foreach).step")
    draw_ratio = (
        seconds["gqc GNTS, a draw without a step"] / seconds["one batched norm and its sync"]
    )
    step_ratio = (
        seconds["gqc GNTS, a draw with a step"] / seconds["norm + scaling + AdamW(foreach).step"]
    )
    print(f"  a draw / (norm + sync): {draw_ratio:.2f}   a step / its parts: {step_ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    arguments = parser.parse_args()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for size in arguments.sizes:
            bench(SIZES[size], rounds=200 if SIZES[size] < 5_000_000 else 40)


if __name__ == "__main__":
    main()
