"""Migration of published checkpoints: what holds, and scalers that break one promise each."""

import warnings

import pytest
import torch

from gqc.scalers import VarianceGradientScaler
from gqc_lab.studies.vgs.migration import PROMISES, VERSIONS, measure, published_state


class Silent(VarianceGradientScaler):
    def load_state_dict(self, state):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().load_state_dict(state)


class Chatty(VarianceGradientScaler):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        warnings.warn("and another thing", UserWarning, stacklevel=1)


class KeepsCount(VarianceGradientScaler):
    """As the published migration did."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.step_count = state["step_count"]


class NeverWarm(VarianceGradientScaler):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.step_count = -(10**6)


class Remembers(VarianceGradientScaler):
    """Has statistics of its own when the file is loaded, and keeps them."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        for param in self._parameters.tensors:
            param.grad = param.detach() + 1
        self.update_statistics()
        self._is_read = False


class Forgets(VarianceGradientScaler):
    def load_state_dict(self, state):
        alpha = self.alpha
        super().load_state_dict(state)
        self.alpha = alpha


class Explodes(VarianceGradientScaler):
    def scale_gradients(self):
        for param in self._parameters.tensors:
            param.grad.mul_(-1)
        return super().scale_gradients()


@pytest.mark.parametrize("seed", [0, 3])
def test_every_version_keeps_every_promise(seed):
    found = measure(seed=seed, device="cpu")
    assert found["version"].tolist() == list(VERSIONS)
    assert found[list(PROMISES)].all(axis=None)
    assert (found["num_warnings"] == 1).all()
    assert (found["least_factor"] < 1).all()


@pytest.mark.parametrize(
    ("make", "broken"),
    [
        (Silent, "warns_once"),
        (Chatty, "warns_once"),
        (KeepsCount, "warmup_restarts"),
        (NeverWarm, "warmup_restarts"),
        (Remembers, "statistics_restart"),
        (Forgets, "config_kept"),
        (Explodes, "goes_on"),
    ],
)
def test_a_broken_promise_is_counted(make, broken):
    (row,) = measure(["3.2"], device="cpu", make=make).to_dict("records")
    assert not row[broken]
    also = {KeepsCount, NeverWarm, Forgets}  # whose factors are others than a new scaler's
    assert [p for p in PROMISES if not row[p] and p != broken] == (
        ["statistics_restart"] if make in also else []
    )


def test_a_file_of_another_versions_estimator_is_refused():
    param = torch.zeros(3, requires_grad=True)
    scaler = VarianceGradientScaler([param], estimator="tensor_mean")
    with pytest.raises(ValueError, match=r"estimator='tensor_mean': version 3.1 had 'mean_square'"):
        published_state(scaler, "3.1")
    with pytest.raises(ValueError, match=r"version='3.3': did you mean"):
        published_state(scaler, "3.3")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_holds_the_settings_of_its_version(version):
    param = torch.zeros(3, requires_grad=True)
    settings = {"min_scaling_factor": 0.02, "variance_cap": 7.0, "beta": 0.9}
    scaler = VarianceGradientScaler([param], estimator=VERSIONS[version][0], **settings)
    param.grad = torch.ones(3)
    scaler.step()
    state = published_state(scaler, version)
    assert state.get("vgs_version") == {"1.x": None, "2.0-unversioned": None, "2.0.1": "2.0"}.get(
        version, version
    )
    assert ("param_grad_mean_ema" in state) == (version != "1.x")
    shared = {key: value for key, value in settings.items() if key in state}
    assert shared == (settings if version == "3.2" else {"beta": 0.9})
    assert {key: state[key] for key in shared} == shared


def test_an_unknown_version_names_the_nearest():
    with pytest.raises(ValueError, match=r"version.*9\.9"):
        measure(["9.9"])
