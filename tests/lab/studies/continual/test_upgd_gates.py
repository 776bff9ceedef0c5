"""Gates of UPGD as the lab reads them, against the steps that they gate and against formulas."""

import math

import pytest
import torch

from gqc.upgd import UPGD
from gqc.upgd.utility import NORMALIZATIONS
from gqc_lab.studies import continual
from gqc_lab.studies.continual import upgd_gates
from gqc_lab.studies.continual.upgd_gates import CASES, ENDS

LOW, HIGH = 1 / (1 + math.e), math.e / (1 + math.e)


def slow_gate(u, everything, normalization, beta, step):
    """Of one weight, from the formulas of the specification; u is bias-corrected."""
    bound = 1.0 if not normalization.endswith("_published") else 1 - beta**step
    low, high = bound * min(everything), bound * max(everything)
    if normalization == "minmax":
        z = 0.5 if low == high else (u - low) / (high - low)
        return 1 / (1 + math.exp(2 * (z - 0.5)))
    if normalization == "minmax_published":
        z = min(1.0, max(0.0, (u - low) / (high - low + 1e-8)))
        return 1 / (1 + math.exp(2 * (z - 0.5)))
    x = 0.0 if u == high == 0 else u / high
    return 1 / (1 + math.exp(min(x, 700)))


@pytest.mark.parametrize("step", [1, 100, 5000])
def test_constructed_gates_are_those_of_the_formulas(step):
    gates = upgd_gates.constructed_gates(step=step)
    assert len(gates) == len(CASES) * len(NORMALIZATIONS) * 5
    for row in gates.to_dict("records"):
        values, name = CASES[row["case"]], row["normalization"]
        expected = slow_gate(row["utility"], values, name, 0.999, step)
        if row["case"] == "extreme" and name == "max_published":
            expected = min(max(expected, 0.0), 1.0)
        assert row["gate"] == pytest.approx(expected, abs=1e-9)


def orders(step=1):
    table = upgd_gates.order_of_protection(upgd_gates.constructed_gates(step=step))
    return table.set_index(["case", "normalization"])["order"]


def test_what_becomes_of_the_order_of_protection():
    found = orders()
    for case in ("negative", "mixed", "extreme", "tiny"):
        assert found[case, "minmax"] == "kept"
    assert found["negative", "max"] == "reversed"
    assert found["mixed", "max"] == "kept"
    assert found["mixed", "minmax_published"] == "partly"
    assert set(found["equal"]) == {"none to keep"}
    # the epsilon of 1e-8 swallows what is smaller
    assert orders(step=100_000)["tiny", "minmax_published"] == "kept"
    tiny = upgd_gates.constructed_gates(["minmax_published"], step=100_000).set_index("case")
    assert tiny.loc["tiny", "gate"].max() - tiny.loc["tiny", "gate"].min() < 1e-3


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gates_in_training_are_those_of_the_steps(normalization):
    """From outside: without noise and decay a gate is the weight's move over lr x gradient."""
    sizes = {"num_tasks": 1, "task_examples": 48, "batch_size": 8, "width": 8, "device": "cpu"}
    options = {"sigma": 0.0, "weight_decay": 0.0, "lr": 0.1, "dtype": "float64"}
    config = continual.config("smoke", normalization=normalization, **sizes, **options)
    experiment = continual.build(config)
    for _ in range(6):
        images, labels = experiment.draw_batch()
        params = list(experiment.model.parameters())
        loss = torch.nn.functional.cross_entropy(experiment.model(images).float(), labels)
        grads = torch.autograd.grad(loss, params)
        before = [p.detach().clone() for p in params]
        next(experiment)
        moves = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, params, strict=True)])
        g = torch.cat([grad.flatten() for grad in grads])
        moving = g.abs() > 1e-4  # where a move of 1e-5 in float64 has ten digits
        gates, utilities = upgd_gates.read_gates(experiment.inner)
        assert gates.numel() == utilities.numel() == g.numel()
        assert moving.sum() > 100
        seen = moves[moving] / (0.1 * g[moving])
        torch.testing.assert_close(gates[moving], seen, rtol=1e-6, atol=1e-9)


def test_histograms_are_shares_of_all_gates():
    gates = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.5, 0.9, 1.0, 1.0])
    bars = upgd_gates.histogram(gates, "max", bins=4)
    assert bars["left"].tolist() == [0.0, 0.25, 0.5, 0.75]
    assert bars["right"].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert bars["share"].tolist() == [0.25, 0.125, 0.25, 0.375]
    ends = upgd_gates.histogram(torch.tensor([LOW, HIGH]), "minmax", bins=2)  # float32: outside
    assert ends["share"].tolist() == [0.5, 0.5]


def test_numbers_of_gates_by_hand():
    gates = torch.tensor([LOW, LOW + 2e-3, 0.5, 0.6, HIGH])
    utilities = torch.tensor([1.0, 0.9, 0.0, -0.1, -1.0])
    found = upgd_gates.describe(gates, utilities, "minmax")
    assert (found["at_ends"], found["at_ends_used"]) == (0.4, 0.5)
    assert found["unused"] == pytest.approx(0.2)
    assert found["median"] == 0.5
    assert (found["least"], found["largest"]) == pytest.approx((LOW, HIGH))
    assert ENDS["max"] == (0.0, 1.0)


def watched(normalization, **overrides):
    sizes = {"num_tasks": 2, "task_examples": 160, "width": 8, "device": "cpu", **overrides}
    config = continual.config("smoke", normalization=normalization, **sizes)
    return upgd_gates.watch(config, steps=(1, 10, 1000), bins=10)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_watching_reads_at_the_steps_that_the_run_has(normalization):
    bars, numbers, experiment = watched(normalization)
    assert numbers["step"].tolist() == [1, 10]
    assert bars.groupby("step")["share"].sum().tolist() == pytest.approx([1, 1])
    assert experiment.summary()["online_accuracy"] > 0
    is_published = normalization.endswith("_published")
    share = numbers["at_ends_used"].iloc[0]
    assert share > 0.8 if is_published else share < 0.01
    if normalization == "minmax":
        assert numbers["least"].min() >= LOW - 1e-6
        assert numbers["largest"].max() <= HIGH + 1e-6


def test_only_utilities_of_one_scope_are_read():
    with pytest.raises(ValueError, match="method='sgd': expected 'upgd'"):
        upgd_gates.watch(continual.config(method="sgd", device="cpu"))
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="scope='global'"):
        upgd_gates.read_gates(UPGD([w], scope="local"))
    with pytest.raises(ValueError, match="expected one number for all"):
        upgd_gates.read_gates(UPGD([w]))
    with pytest.raises(ValueError, match="normalization='min'"):
        upgd_gates.gates_of([w.detach()], "min", 0.9, 1)


def test_a_comparison_is_every_normalization_at_every_rate():
    configs = upgd_gates.comparison("smoke", ["label_permuted"], NORMALIZATIONS, [0.5, 1.0], [3])
    tuned = continual.config(stream="label_permuted").lr
    assert [(c.normalization, c.lr) for c in configs] == [
        (name, tuned * factor) for name in NORMALIZATIONS for factor in (0.5, 1.0)
    ]
    assert {(c.method, c.stream, c.seed) for c in configs} == {("upgd", "label_permuted", 3)}
