"""UPGD and VGS in the PPO of Stable-Baselines3, beside its loop written by hand."""

import copy

import pytest
import torch

import gqc

sb3 = pytest.importorskip("stable_baselines3")
from stable_baselines3.common.callbacks import BaseCallback  # noqa: E402
from stable_baselines3.common.logger import Logger  # noqa: E402

from gqc.integrations.sb3 import ScaleBeforeClipping, VGSCallback  # noqa: E402


def make(**options):
    return sb3.PPO(
        "MlpPolicy",
        "CartPole-v1",
        n_steps=64,
        batch_size=32,
        n_epochs=2,
        seed=0,
        device="cpu",
        **options,
    )


class Log(Logger):
    """Keeps what is recorded, where it would be printed."""

    def __init__(self, kept):
        super().__init__(None, [])
        self.kept = kept

    def record(self, key, value, exclude=None):
        self.kept[key] = value


def parameters(algorithm):
    return [p.detach().clone() for p in algorithm.policy.parameters()]


def test_upgd_is_the_optimizer(tmp_path):
    chosen = {"optimizer_class": gqc.UPGD, "optimizer_kwargs": {"sigma": 1e-3}}
    algorithm = make(policy_kwargs=chosen)
    before = parameters(algorithm)
    algorithm.learn(128)
    assert isinstance(algorithm.policy.optimizer, gqc.UPGD)
    assert algorithm.policy.optimizer.param_groups[0]["lr"] == 3e-4
    after = parameters(algorithm)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    algorithm.save(tmp_path / "ppo")
    again = sb3.PPO.load(tmp_path / "ppo", device="cpu")
    states = [a.policy.optimizer.state_dict()["state"] for a in (algorithm, again)]
    assert states[0]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("accumulate", ["grad", "buffer"])
def test_a_wrapper_says_that_ppo_clips_each_draw(accumulate):
    algorithm = make()
    algorithm.policy.optimizer = gqc.OptimizerWrapperGNTS(
        algorithm.policy.optimizer, 1e-9, max_draws=2, accumulate=accumulate
    )
    if accumulate == "grad":
        with pytest.raises(RuntimeError, match="clip_norm="):
            algorithm.learn(64)
    else:
        with pytest.warns(UserWarning, match="clip_norm="):
            algorithm.learn(64)


@pytest.mark.parametrize("estimator", ["sketch", "mean_square"])
def test_vgs_scales_before_clipping(estimator):
    """Against the loop of the source: backward, scale, clip, step, update."""
    options = {"alpha": 2.0, "warmup_steps": 2, "beta": 0.9, "estimator": estimator}
    torch.manual_seed(0)
    ours = torch.nn.Linear(4, 1)
    by_hand = copy.deepcopy(ours)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (ours, by_hand)]
    scalers = [gqc.VarianceGradientScaler(o.param_groups, **options) for o in optimizers]
    hooks = ScaleBeforeClipping(optimizers[0], scalers[0])
    factors = []
    for _ in range(12):
        x, y = torch.randn(2, 4), torch.randn(2, 1)
        for net, optimizer in zip((ours, by_hand), optimizers, strict=True):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            if net is by_hand:
                factors.append(scalers[1].scale_gradients())
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
            if net is by_hand:
                scalers[1].step()
        assert torch.equal(ours.weight, by_hand.weight)
    assert min(factors) < 0.9
    hooks.remove()
    (ours(torch.ones(1, 4)) ** 2).sum().backward()
    assert scalers[0].step_count == 12


def test_vgs_goes_into_ppo_and_its_logger():
    logged = {}
    callback = VGSCallback(alpha=1.0, warmup_steps=2)
    scaled = make()
    scaled.set_logger(Log(logged))
    scaled.learn(128, callback=callback)
    assert callback.scaler.step_count == 2 * 2 * 2
    assert callback.scaler.metrics()["vgs/scaling_factor"] < 1
    assert logged["vgs/step_count"] == 4  # as the second rollout ends
    assert not torch.equal(parameters(make().learn(128))[0], parameters(scaled)[0])
    again = make()
    resumed = VGSCallback(alpha=1.0, warmup_steps=2, state=callback.scaler.state_dict())
    again.learn(64, callback=resumed)
    assert resumed.scaler.step_count == 12


def test_a_callback_that_is_used_for_a_second_model_scales_that_one():
    used = VGSCallback(alpha=1.0, warmup_steps=2)
    make().learn(128, callback=used)
    first, again = used.scaler, make().learn(128, callback=used)
    alone = make().learn(128, callback=VGSCallback(alpha=1.0, warmup_steps=2))
    assert used.scaler is not first
    assert first.step_count == used.scaler.step_count == 8
    assert all(map(torch.equal, parameters(again), parameters(alone)))
    again.learn(64, callback=used)
    assert used.scaler.step_count == 12


def test_vgs_that_never_scales_is_plain_ppo():
    plain, scaled = make().learn(128), make().learn(128, callback=VGSCallback(alpha=0.0))
    pairs = zip(parameters(plain), parameters(scaled), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Stop(BaseCallback):
    """An interrupt in the middle of a rollout."""

    def _on_step(self):
        if self.num_timesteps >= 200:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("is_scaled", [False, True])
def test_an_interrupted_run_leaves_nothing_on_the_policy(is_scaled):
    algorithm = make(max_grad_norm=1e9)
    with pytest.raises(KeyboardInterrupt):
        algorithm.learn(512, callback=[VGSCallback(alpha=1.0, warmup_steps=2), Stop()])
    raw, factors = [], []
    optimizer = algorithm.policy.optimizer
    first = optimizer.param_groups[0]["params"][0]
    first.register_hook(lambda grad: raw.append(grad.norm()))
    optimizer.register_step_pre_hook(lambda *_: factors.append(first.grad.norm() / raw[-1]))
    callback = VGSCallback(alpha=1.0, warmup_steps=2) if is_scaled else None
    algorithm.learn(128, callback=callback)
    expected = 0.1 if callback else 1.0  # the least factor, or none; not both together
    assert float(factors[-1]) == pytest.approx(expected)


def test_what_scales_before_clipping_takes_the_place_of_a_former_one():
    """The cell that makes it runs again."""
    param = torch.zeros(50, requires_grad=True)
    optimizer = torch.optim.SGD([param], lr=0.0)
    for _ in range(2):
        scaler = gqc.VarianceGradientScaler([param], alpha=1.0, warmup_steps=3)
        ScaleBeforeClipping(optimizer, scaler)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        raw = torch.randn(50, generator=generator) + 1
        factor = scaler.get_scaling_factor()
        optimizer.zero_grad()
        (param * raw).sum().backward()
        assert factor <= 1
        torch.testing.assert_close(param.grad, factor * raw)
        optimizer.step()
    assert factor < 1


def test_a_policy_of_several_optimizers_is_refused():
    with pytest.raises(TypeError, match=r"SAC has no policy\.optimizer.*OptimizerWrapperVGS"):
        sb3.SAC("MlpPolicy", "Pendulum-v1", device="cpu").learn(1, VGSCallback())


@pytest.mark.parametrize("is_inside", [False, True])
def test_vgs_in_the_optimizer_and_as_a_callback_is_refused(is_inside):
    """Both would scale: of a gradient of 15 the two left 0.6, where one leaves 6."""

    def optimizer(params, lr, **options):
        scaled = gqc.OptimizerWrapperVGS(torch.optim.Adam(params, lr=lr))
        return gqc.OptimizerWrapperSBC(scaled, 1, 1) if is_inside else scaled

    algorithm = make(policy_kwargs={"optimizer_class": optimizer})
    with pytest.raises(ValueError, match="is in an OptimizerWrapperVGS: drop VGSCallback"):
        algorithm.learn(64, VGSCallback())
