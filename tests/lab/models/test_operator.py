"""The operator's parts: shapes, equivariance, latents that roll out, weights by seed."""

import math

import pytest
import torch

from gqc_lab.loop.placement import make_generator
from gqc_lab.models.operator import Kernel, make_operator
from gqc_lab.models.operator_sizes import OperatorConfig

SMALL = OperatorConfig(tokens=8, latent_dim=4, hidden=16, blocks=2, heads=4, neighbors=8)
POINTS = 32
POSITIONS = torch.arange(POINTS) / POINTS


def make(config=SMALL, seed=0):
    return make_operator(config, make_generator(seed, "weights"))


def fields(batch=3, points=POINTS):
    return torch.randn(batch, points, generator=make_generator(1, "fields"))


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=2e-5)


def test_shapes_and_rollouts_are_repeated_steps():
    model = make()
    latents = model.encoder(fields(), POSITIONS)
    assert latents.shape == (3, 8, 4)
    assert model.decoder(latents, torch.rand(5)).shape == (3, 5)
    states = model.rollout(latents, 3)
    by_hand = latents
    for step in range(3):
        by_hand = model.approximator(by_hand)
        close(states[:, step], by_hand)
    predicted = model(fields(), POSITIONS, steps=3)
    assert predicted.shape == (3, 3, POINTS)
    close(predicted[:, 2], model.decoder(by_hand, POSITIONS))


def test_latents_have_unit_variance():
    latents = make().encoder(fields(), POSITIONS)
    close(latents.mean(-1), torch.zeros(3, 8))
    torch.testing.assert_close(latents.var(-1, correction=0), torch.ones(3, 8), rtol=0.01, atol=0)
    plain = make(OperatorConfig(**{**vars(SMALL), "is_normalized": False}))
    assert plain.encoder(100 * fields(), POSITIONS).var(-1).mean() > 10
    assert not [m for m in plain.modules() if isinstance(m, torch.nn.LayerNorm)]


def test_shifting_a_field_by_a_token_shifts_everything():
    model, per_token = make(), POINTS // 8
    latents = model.encoder(fields(), POSITIONS)
    close(model.encoder(fields().roll(3 * per_token, 1), POSITIONS), latents.roll(3, 1))
    close(model.approximator(latents.roll(3, 1)), model.approximator(latents).roll(3, 1))
    moved = model.decoder(latents.roll(3, 1), POSITIONS)
    close(moved, model.decoder(latents, POSITIONS).roll(3 * per_token, 1))


def test_a_point_and_its_image_one_period_on_are_the_same():
    model = make()
    latents = model.encoder(fields(), POSITIONS)
    close(model.decoder(latents, POSITIONS + 1), model.decoder(latents, POSITIONS))
    close(model.encoder(fields(), POSITIONS - 1), latents)


def test_the_order_of_points_does_not_matter():
    model, order = make(), torch.randperm(POINTS, generator=make_generator(2, "order"))
    u = torch.rand(POINTS, generator=make_generator(3, "mesh")).sort().values  # no ties
    latents = model.encoder(fields(), u)
    close(model.encoder(fields()[:, order], u[order]), latents)
    close(model.decoder(latents, u[order]), model.decoder(latents, u)[:, order])


def test_decoded_fields_have_no_jump_where_the_nearest_tokens_change():
    model = make()
    latents = model.encoder(fields(), POSITIONS)
    x = torch.linspace(0, 1, 4001)
    steps = model.decoder(latents, x).diff(dim=1).abs()
    assert steps.max() < 0.05 * model.decoder(latents, x).abs().max()


def test_the_encoder_by_loops():
    model = make().double()
    encoder, u = model.encoder, fields(1)[0].double()
    kernel: Kernel = encoder.kernel
    seen = []
    for token in range(8):
        center = (token + 0.5) / 8
        offsets = {i: 8 * ((i / POINTS - center + 0.5) % 1 - 0.5) for i in range(POINTS)}
        near = sorted(offsets, key=lambda i: (abs(offsets[i]), i))[:8]
        farthest = max(abs(offsets[i]) for i in near)
        fade = {i: math.cos(math.pi / 2 * offsets[i] / farthest) ** 2 for i in near}
        weights = [fade[i] * kernel(torch.tensor(offsets[i], dtype=torch.float64)) for i in near]
        total = sum(u[i] * w for i, w in zip(near, weights, strict=True))
        seen.append(total / sum(fade.values()))
    x = torch.stack(seen)[None]
    x = x + encoder.mix(torch.nn.functional.gelu(x, approximate="tanh"))
    for block in encoder.blocks:
        x = block(x)
    expected = encoder.norm(encoder.out(x))
    torch.testing.assert_close(encoder(u[None], POSITIONS.double()), expected)


def test_attention_by_loops():
    block = make().approximator.blocks[0].double()
    torch.nn.init.normal_(block.distance_bias, generator=make_generator(4, "bias"))
    x = torch.randn(1, 8, 16, generator=make_generator(5, "x"), dtype=torch.float64)
    q, k, v = block.query_key_value(block.attention_norm(x))[0].chunk(3, dim=-1)
    mixed = torch.zeros(8, 16, dtype=torch.float64)
    for head in range(4):
        part = slice(4 * head, 4 * head + 4)
        for i in range(8):
            scores = torch.stack(
                [
                    q[i, part] @ k[j, part] / 2 + block.distance_bias[head, (j - i) % 8]
                    for j in range(8)
                ]
            )
            mixed[i, part] = scores.softmax(0) @ v[:, part]
    y = x + block.attention_out(mixed)
    inner = torch.nn.functional.gelu(block.mlp_in(block.mlp_norm(y)), approximate="tanh")
    torch.testing.assert_close(block(x), y + block.mlp_out(inner))


def test_weights_are_of_the_seed_alone_and_a_step_begins_near_the_identity():
    before = torch.get_rng_state()
    one, same, other = make(), make(), make(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, one.parameters(), same.parameters()))
    assert not torch.equal(one.encoder.out.weight, other.encoder.out.weight)
    latents = one.encoder(fields(), POSITIONS)
    change = (one.approximator(latents) - latents).square().mean().sqrt()
    assert 0 < change < 0.3


def test_every_parameter_gets_a_gradient():
    model = make()
    model(fields(), POSITIONS, steps=2).square().sum().backward()
    assert [
        n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0
    ] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens=0"),
        ({"hidden": 30}, "hidden=30: expected a multiple of heads=4"),
        ({"neighbors": 2}, "neighbors=2: expected an integer of at least 3"),
        ({"codec_blocks": -1}, "codec_blocks=-1"),
        ({"blocks": 1.5}, "blocks=1.5"),
    ],
)
def test_bad_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        OperatorConfig(**{**vars(SMALL), **options})


def test_shapes_that_do_not_fit_are_both_named():
    model = make()
    with pytest.raises(ValueError, match=r"fields of shape \(3, 32\) with positions .*\(31,\)"):
        model.encoder(fields(), POSITIONS[:31])


def test_dtypes():
    for dtype in (torch.float64, torch.bfloat16):
        predicted = make().to(dtype)(fields().to(dtype), POSITIONS.to(dtype))
        assert predicted.dtype == dtype
        assert math.isfinite(predicted.float().sum().item())
