"""The small GPT against a slow reference, and its initialisation."""

import math

import pytest
import torch

from gqc_lab.models.gpt import GPT, GPTConfig, count_parameters, make_gpt

SMALL = GPTConfig(vocabulary=11, context=7, width=12, depth=2, heads=3)


def slow_gpt(weights, config, ids):
    """One sequence, one head and one position at a time, from the formulas."""

    def norm(x, gain):
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * gain

    size = config.width // config.heads
    xs = [weights["tokens.weight"][t] + weights["positions.weight"][i] for i, t in enumerate(ids)]
    for b in range(config.depth):
        w = {k.removeprefix(f"blocks.{b}."): v for k, v in weights.items()}
        qkv = [w["query_key_value.weight"] @ norm(x, w["attention_norm.weight"]) for x in xs]
        mixed = []
        for i in range(len(xs)):
            heads = []
            for h in range(config.heads):
                q, k, v = (
                    [a[part * config.width + h * size :][:size] for a in qkv] for part in range(3)
                )
                scores = torch.stack([q[i] @ k[j] / math.sqrt(size) for j in range(i + 1)])
                shares = scores.exp() / scores.exp().sum()
                heads.append(sum(s * v[j] for j, s in enumerate(shares)))
            mixed.append(w["attention_out.weight"] @ torch.cat(heads))
        xs = [x + m for x, m in zip(xs, mixed, strict=True)]
        for i, x in enumerate(xs):
            a = w["mlp_in.weight"] @ norm(x, w["mlp_norm.weight"])
            gelu = 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
            xs[i] = x + w["mlp_out.weight"] @ gelu
    return torch.stack([weights["head.weight"] @ norm(x, weights["norm.weight"]) for x in xs])


def make(config=SMALL, seed=0):
    return make_gpt(config, torch.Generator().manual_seed(seed))


def test_logits_equal_the_slow_reference():
    config = SMALL
    model = make(config).double()
    with torch.no_grad():
        for p in model.parameters():  # far from the small initial values, where all logits agree
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        ids = torch.tensor([[3, 10, 0, 0, 5], [1, 2, 3, 4, 9]])
        got = model(ids)
        weights = {k: v.double() for k, v in model.state_dict().items()}
        for row in range(2):
            expected = slow_gpt(weights, config, ids[row].tolist())
            # float64 rounding, about 1e-16 a sum, through two blocks with values up to about 100
            torch.testing.assert_close(got[row], expected, rtol=1e-10, atol=1e-10)


def test_a_token_sees_nothing_after_it():
    model = make()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    other = torch.tensor([[1, 2, 3, 9, 9]])
    assert torch.equal(model(ids)[:, :3], model(other)[:, :3])
    assert not torch.equal(model(ids)[:, 3], model(other)[:, 3])


def test_weights_follow_the_generator_and_leave_the_global_stream_alone():
    before = torch.get_rng_state()
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.tokens.weight, other.tokens.weight)


def test_scale_of_the_initial_weights():
    model = make(GPTConfig(vocabulary=50, context=64, width=128, depth=8, heads=4))
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert torch.equal(p, torch.ones_like(p))
            continue
        std = 0.02 * math.sqrt(6)  # 768 / 128 = 6
        std /= 4 if name.endswith("_out.weight") else 1  # sqrt(2 * 8) = 4
        # The standard error of a standard deviation is std / sqrt(2 n); five of them.
        assert abs(p.std() / std - 1) < 5 / math.sqrt(2 * p.numel())
        assert abs(p.mean()) < 5 * std / math.sqrt(p.numel())


def test_tied_embedding_is_one_parameter():
    model = make()
    assert model.head.weight is model.tokens.weight
    by_hand = 2 * (12 * 12**2 + 2 * 12) + 12 + (11 + 7) * 12  # blocks, last norm, embeddings
    assert count_parameters(model) == by_hand


@pytest.mark.parametrize(
    ("scale", "expected"), [("paper", 50e6), ("paper-16x", 800e6), ("laptop", 160e3)]
)
def test_sizes_of_the_scales(scale, expected):
    from gqc_lab.studies.pretraining.settings import SCALES

    sizes = {k: SCALES[scale][k] for k in ("context", "width", "depth", "heads")}
    with torch.device("meta"):
        model = GPT(GPTConfig(vocabulary=256 if "paper" in scale else 68, **sizes))
    assert abs(count_parameters(model) / expected - 1) < 0.03
