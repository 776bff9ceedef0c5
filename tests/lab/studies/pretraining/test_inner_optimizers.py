"""Other optimizers inside the wrapper: they are torch's own, and runs differ in one thing."""

import copy
import math
from dataclasses import asdict, fields, replace

import pytest
import torch
from pytorch_optimizer import SOAP
from same_runs import assert_same_run, run, weights
from torch.nn import functional as F

from gqc_lab.data.text import draw_batch
from gqc_lab.loop.placement import make_generator
from gqc_lab.studies import pretraining
from gqc_lab.studies.pretraining import inner_optimizers
from gqc_lab.studies.pretraining.settings import SCALES

SMALL = {"tokens": 2**12, "evaluation_tokens": 2**10, "evaluation_sequences": 4, "device": "cpu"}
SMALL |= {"microbatch_size": 2, "width": 16, "max_draws": 6}  # 32 microbatches
CASES = [(inner, method) for inner in inner_optimizers.INNER for method in ("adamw", "gnts")]
every_case = pytest.mark.parametrize(("inner", "method"), CASES)


def small(inner, method, **overrides):
    return inner_optimizers.config("smoke", inner, method, **{**SMALL, **overrides})


def slow(config, make_optimizers):
    """Plain torch, nothing of the kit but data and initial weights: the trained weights."""
    start = inner_optimizers.build(config)
    model, generator = start.model, make_generator(config.seed, "data")
    optimizers, total = make_optimizers(model), config.num_microbatches
    warmup = round(config.lr_warmup * total)
    for t in range(1, total + 1):
        inputs, targets = draw_batch(start.data.train, 2, config.context, generator)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        (loss / config.accumulation).backward()
        share = (t - warmup) / (total - warmup)
        cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2
        if t % config.accumulation == 0:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * (t / warmup if t < warmup else cosine)
                optimizer.step()
                optimizer.zero_grad()
    return weights(start)


def plain_sgd(model):
    return [torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)]


def plain_muon(model):
    names = dict(model.named_parameters())
    blocks = [p for n, p in names.items() if n.startswith("blocks.") and "norm" not in n]
    embeddings = [names["tokens.weight"], names["positions.weight"]]
    gains = [p for n, p in names.items() if "norm" in n]
    groups = [{"params": embeddings, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(blocks, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True),
    ]


def plain_soap(model):
    names = dict(model.named_parameters())
    gains = [p for n, p in names.items() if "norm" in n]
    others = [p for n, p in names.items() if "norm" not in n]
    groups = [{"params": others}, {"params": gains, "weight_decay": 0.0}]
    return [SOAP(groups, betas=(0.9, 0.99), weight_decay=0.1)]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("make", [plain_sgd, plain_muon, plain_soap], ids=["sgd", "muon", "soap"])
def test_a_control_is_plain_torch(make, accumulation):
    inner = make.__name__.removeprefix("plain_")
    config = small(inner, "adamw", accumulation=accumulation, tokens=2**11)
    ours = weights(run(inner_optimizers.build(config)))
    before = weights(inner_optimizers.build(config))
    expected = slow(config, make)
    # 1/n before or after the sum, and the order of factors of the rate, differ in the last bit,
    # which Muon's own rounding to bfloat16 (2^-8) can make into as much of a step.
    tolerance = 2**-8 if make is plain_muon else 1e-5
    assert (ours - expected).norm() < tolerance * (expected - before).norm()


@pytest.mark.parametrize("method", ["adamw", "gnts"])
def test_with_adamw_inside_it_is_pretraining(method):
    ours = run(inner_optimizers.build(small("adamw", method)))
    shared = {f.name for f in fields(pretraining.PretrainingConfig)}
    values = {k: v for k, v in asdict(ours.config).items() if k in shared}
    theirs = run(pretraining.build(pretraining.PretrainingConfig(**values)))
    assert torch.equal(weights(ours), weights(theirs))
    assert ours.history["loss"].tolist() == theirs.history["loss"].tolist()


@every_case
def test_a_run_that_is_cut_goes_on_bit_for_bit(inner, method, tmp_path):
    config = small(inner, method, **({"accumulation": 3} if method == "adamw" else {}))
    whole = run(inner_optimizers.build(config))
    assert 1 < whole.history["stepped"].sum() < 32  # some windows of several draws
    cuts = whole.history.index[~whole.history["stepped"]] + 1
    first = run(inner_optimizers.build(config), until=int(cuts[len(cuts) // 2]))
    assert first.wrapper.num_draws > 0  # in the middle of a window
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = inner_optimizers.build(config)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same_run(run(second), whole)


@pytest.mark.parametrize("inner", ["sgd", "muon"])
def test_a_loaded_state_is_that_of_the_same_inner_optimizer(inner):
    state = copy.deepcopy(run(inner_optimizers.build(small(inner, "gnts")), 3).state_dict())
    other = inner_optimizers.build(small("adamw", "gnts", lr=small(inner, "gnts").lr))
    with pytest.raises(ValueError, match=f"its inner is '{inner}'"):
        other.load_state_dict(state)


def test_a_twin_trains_alike():
    first = run(inner_optimizers.build(small("muon", "gnts")))
    assert_same_run(run(first.twin()), first)


@pytest.mark.parametrize("name", inner_optimizers.COMPARISONS)
@pytest.mark.parametrize("scale", SCALES)
def test_configs_differ_in_what_is_compared(name, scale):
    first, *others = inner_optimizers.comparison(name, scale, seed=3).values()
    allowed = {"method", "lr", "accumulation", "start_norm", "end_norm", "norm_warmup"}
    if name == "tradeoff":
        allowed = {"lr", "accumulation", "beta1", "beta2"}
    for other in others:
        a, b = asdict(first), asdict(other)
        assert {key for key in a if a[key] != b[key]} <= allowed
    inner = "adamw" if name == "tradeoff" else name
    assert {c.inner for c in (first, *others)} == {inner}


def test_the_tradeoff_keeps_what_the_theory_keeps():
    configs = inner_optimizers.comparison("tradeoff", "laptop", lr=0.004, beta1=0.8, accumulation=3)
    assert list(configs) == ["n = 1", "n = 2", "n = 4", "n = 8"]
    for n, c in zip((1, 2, 4, 8), configs.values(), strict=True):
        assert c.accumulation == n
        assert c.lr**2 / n == pytest.approx(0.004**2)
        for beta, every in ((c.beta1, 0.8), (c.beta2, 0.99)):  # half-lives [microbatches]
            assert n * math.log(0.5) / math.log(beta) == pytest.approx(
                math.log(0.5) / math.log(every)
            )


def test_methods_are_tuned_alike():
    tuned = inner_optimizers.TUNED
    for inner in inner_optimizers.INNER:
        assert ("laptop", inner, "adamw") in tuned
        assert ("laptop", inner, "gnts") in tuned
    for scale, inner, method in tuned:
        inner_optimizers.config(scale, inner, method)  # refuses a misspelt field


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="inner='moun': did you mean 'muon'"):
        inner_optimizers.config("smoke", "moun")
    with pytest.raises(ValueError, match="comparison='tradeof': did you mean 'tradeoff'"):
        inner_optimizers.comparison("tradeof")
    with pytest.raises(ValueError, match="vgs_alpha"):
        inner_optimizers.config("smoke", "sgd", "vgs")
    with pytest.raises(ValueError, match="inner='x'"):
        replace(small("sgd", "gnts"), inner="x")


def test_a_torch_without_muon_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match="has no Muon"):
        inner_optimizers.build(small("muon", "gnts"))
