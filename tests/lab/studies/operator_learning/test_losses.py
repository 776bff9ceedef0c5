"""The operator's losses: an invertible toy pair, definitions by hand, weights and shares."""

import math

import pytest
import torch

from gqc_lab.studies.operator_learning.losses import (
    LOSSES,
    compute_operator_loss_bundle,
    effective_weights,
    inverse_decoding_loss,
    inverse_encoding_loss,
    spectral_loss,
)

POINTS, TOKENS = 12, 4
POSITIONS = torch.arange(POINTS) / POINTS
GENERATOR = torch.Generator().manual_seed(0)
ORDER = torch.randperm(POINTS, generator=GENERATOR)
FIELDS = torch.randn(5, POINTS, generator=GENERATOR)
LATENTS = torch.randn(5, TOKENS, POINTS // TOKENS, generator=GENERATOR)


def encode(fields, positions):
    """Points in another order, four times as large: exactly invertible in floating point."""
    return 4 * fields[:, ORDER].unflatten(1, (TOKENS, -1))


def decode(latents, positions):
    return latents.flatten(1)[:, ORDER.argsort()] / 4


def encode_wrongly(fields, positions):
    return encode(fields, positions) + 0.1


def decode_wrongly(latents, positions):
    return decode(latents, positions) + 0.1


def test_an_invertible_pair_has_no_inverse_loss():
    assert inverse_encoding_loss(encode, decode, FIELDS, POSITIONS) == 0
    assert inverse_decoding_loss(encode, decode, LATENTS, POSITIONS) == 0


@pytest.mark.parametrize(
    ("encoder", "decoder", "in_fields", "in_latents"),
    [(encode_wrongly, decode, 0.1 / 4, 0.1), (encode, decode_wrongly, 0.1, 0.4)],
)
def test_a_wrong_half_shows_in_the_space_where_each_is_measured(
    encoder, decoder, in_fields, in_latents
):
    """Encoding in physical space, decoding in latent space: an offset is the error, squared."""
    found = inverse_encoding_loss(encoder, decoder, FIELDS, POSITIONS)
    assert found.item() == pytest.approx(in_fields**2, rel=1e-4)
    found = inverse_decoding_loss(encoder, decoder, LATENTS, POSITIONS)
    assert found.item() == pytest.approx(in_latents**2, rel=1e-4)


def test_gradients_of_inverse_losses_reach_both_halves_and_not_the_latents():
    scale = torch.tensor(1.1, requires_grad=True)
    shift = torch.tensor(0.2, requires_grad=True)
    latents = LATENTS.clone().requires_grad_()
    pair = (lambda u, x: scale * encode(u, x), lambda z, x: decode(z, x) + shift)
    for loss in (
        inverse_encoding_loss(*pair, FIELDS, POSITIONS),
        inverse_decoding_loss(*pair, latents, POSITIONS),
    ):
        gradients = torch.autograd.grad(loss, [scale, shift, latents], allow_unused=True)
        assert gradients[0].abs() > 0
        assert gradients[1].abs() > 0
        assert gradients[2] is None


def test_spectral_loss_by_hand_and_blind_to_shifts():
    x = torch.arange(16) / 16
    low, high = torch.sin(2 * math.pi * x)[None], torch.sin(4 * math.pi * x)[None]
    assert spectral_loss(low.roll(3, 1), low).item() == pytest.approx(0, abs=1e-12)
    # Orthonormal: a unit sine of 16 points has |c| = 16 / 2 / 4 = 2 in one of 9 modes.
    assert spectral_loss(low, high).item() == pytest.approx(2 * 2**2 / 9, rel=1e-5)
    assert spectral_loss(3 * low, low).item() == pytest.approx(4**2 / 9, rel=1e-5)


def everything(weights, **options):
    ones = torch.ones(2, POINTS)
    return compute_operator_loss_bundle(
        weights=weights,
        predicted_latents=LATENTS + 2,
        next_latents=LATENTS,
        predicted_fields=ones,
        next_fields=3 * ones,
        predicted_rollout=LATENTS[:, None].expand(-1, 3, -1, -1) - 1,
        target_rollout=LATENTS[:, None].expand(-1, 3, -1, -1),
        fields=FIELDS,
        positions=POSITIONS,
        latents=LATENTS,
        query_positions=POSITIONS,
        encoder=encode,
        decoder=decode_wrongly,
        **options,
    )


WEIGHTS = {
    "lambda_forward": 1.0,
    "lambda_spectral": 0.05,
    "lambda_rollout": 0.5,
    "lambda_inv_enc": 0.5,
    "lambda_inv_dec": 0.25,
}


def test_the_bundle_is_the_weighted_sum():
    bundle = everything(WEIGHTS)
    spectral = ((3 - 1) * POINTS**0.5) ** 2 / (POINTS // 2 + 1)  # the mean, one of 7 modes
    expected = {"forward": 4.0, "spectral": spectral, "rollout": 1.0}
    expected |= {"inv_enc": 0.01, "inv_dec": 0.16}
    found = {n: loss.item() for n, loss in bundle.components.items()}
    assert found == pytest.approx(expected, rel=1e-4)
    weighted = {n: WEIGHTS[f"lambda_{n}"] * loss for n, loss in expected.items()}
    total = sum(weighted.values())
    assert bundle.total.item() == pytest.approx(total, rel=1e-5)
    shares = {n: part / total for n, part in weighted.items()}
    assert bundle.shares() == pytest.approx(shares, rel=1e-4)
    record = bundle.record()
    assert list(record) == [f"{kind}/{n}" for n in LOSSES for kind in ("loss", "weight", "share")]
    assert record["share/rollout"] == pytest.approx(0.5 / total, rel=1e-4)


def test_absent_inputs_and_zero_weights_are_left_out():
    def fail(*_):
        raise AssertionError("a loss of weight 0 was computed")

    bundle = compute_operator_loss_bundle(
        weights={},  # the defaults: forward and spectral
        predicted_latents=LATENTS + 2,
        next_latents=LATENTS,
        fields=FIELDS,
        positions=POSITIONS,
        encoder=fail,
        decoder=fail,
    )
    assert list(bundle.components) == ["forward"]
    assert bundle.total.item() == pytest.approx(4.0)
    record = bundle.record()
    assert (record["loss/inv_enc"], record["weight/inv_enc"], record["share/inv_enc"]) == (
        *(None, 0.0, 0.0),
    )


def test_all_weights_zero_is_a_total_of_zero():
    bundle = everything(dict.fromkeys(WEIGHTS, 0.0))
    assert bundle.components == {}
    assert bundle.total == 0
    bundle.total.backward()


def test_inverse_weights_follow_the_curriculum_and_the_cap():
    weights = {**WEIGHTS, "inverse_loss_warmup_epochs": 4}
    found = [effective_weights(weights, epoch)["inv_enc"] for epoch in (0, 3.99, 4, 4.2, 8)]
    assert found == pytest.approx([0, 0, 0, 0.025, 0.05])
    assert effective_weights(weights)["inv_enc"] == 0.5  # no epoch: no curriculum
    assert effective_weights(weights, 100)["forward"] == 1.0
    assert "inv_enc" not in everything(weights, current_epoch=3).components


def test_inverse_losses_every_third_batch():
    weights = {**WEIGHTS, "inverse_loss_frequency": 3}
    found = [effective_weights(weights, batch=b)["inv_dec"] for b in range(7)]
    assert found == [0.25, 0, 0, 0.25, 0, 0, 0.25]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05])
def test_the_share_cap_holds(share):
    heavy = {**WEIGHTS, "lambda_inv_enc": 1e3, "lambda_inv_dec": 1e3}
    free = everything(heavy).shares()
    assert free["inv_enc"] > 0.05
    assert free["inv_dec"] > 0.05
    bundle = everything({**heavy, "inverse_loss_max_share": share})
    for name in ("inv_enc", "inv_dec"):
        assert bundle.shares()[name] == pytest.approx(share, rel=1e-5)
        assert bundle.weights[name] <= 1e3
    assert bundle.weights["forward"] == 1.0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"lambda_invenc": 1.0}, "weight='lambda_invenc': did you mean 'lambda_inv_enc'"),
        ({"lambda_forward": -1.0}, "lambda_forward=-1.0: expected a number of at least 0"),
        ({"lambda_forward": math.nan}, "lambda_forward=nan"),
        (
            {"inverse_loss_frequency": 0},
            "inverse_loss_frequency=0: expected an integer of at least 1",
        ),
        ({"inverse_loss_frequency": 1.5}, "inverse_loss_frequency=1.5"),
        ({"inverse_loss_max_share": 1.5}, "inverse_loss_max_share=1.5"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        everything(weights)


def test_bad_inputs():
    with pytest.raises(ValueError, match="no loss has its inputs"):
        compute_operator_loss_bundle(weights={})
    with pytest.raises(ValueError, match="no loss has its inputs"):
        compute_operator_loss_bundle(weights={}, predicted_latents=LATENTS, encoder=encode)
    with pytest.raises(
        ValueError, match=r"forward: prediction of shape \(5, 4, 3\), target .*4, 4"
    ):
        compute_operator_loss_bundle(
            weights={}, predicted_latents=LATENTS, next_latents=torch.zeros(5, 4, 4)
        )
    pair = {"encoder": encode, "decoder": decode}
    with pytest.raises(ValueError, match=r"fields of shape \(5, 12\) at positions of shape \(9,\)"):
        compute_operator_loss_bundle(weights={}, fields=FIELDS, positions=POSITIONS[:9], **pair)
    with pytest.raises(ValueError, match=r"fields: NaN or infinite in examples \[0, 1, 2, 3, 4\]"):
        compute_operator_loss_bundle(
            weights={}, fields=FIELDS * math.nan, positions=POSITIONS, **pair
        )
