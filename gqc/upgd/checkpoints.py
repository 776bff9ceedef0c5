"""Hyperparameters, noise streams, checkpoints, copies of UPGD optimizers: all but arithmetic."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from gqc.checks import expect, is_number, one_of, plain
from gqc.gradients import wide
from gqc.ranks import is_on, refuse_flat_shards
from gqc.upgd.utility import NORMALIZATIONS
from gqc.wrappers.options import spell_out
from gqc.wrappers.saved import freeze, join_numbers, thaw

# Not 0 or another seed in use: with that of the weights, the noise would repeat their initial
# values.
SEED = 240_400_781


class UtilityOptions(TypedDict, total=False):
    """The keywords that all share, see :class:`~gqc.upgd.upgd.UPGD`."""

    normalization: str
    scope: str
    protect: bool
    step_scale: float
    adaptive_noise: bool
    noise_reference: str
    noise_beta: float
    min_noise_std: float
    instant_noise_scale: bool
    generator: torch.Generator | None
    nonfinite: str
    foreach: bool | None


Rule = tuple[Callable[[Any], bool], str]  # is the value allowed? and what is, in words


def is_rate(value: Any) -> bool:
    number = float(value) if isinstance(value, Tensor) and value.numel() == 1 else value
    return is_number(number) and number > -1e-12  # schedules that end at 0 round to less


def _one_of(*allowed: Any) -> Rule:
    return lambda value: value in allowed, f"one of {allowed}"


NOT_NEGATIVE: Rule = (lambda value: is_number(value) and value >= 0, "a finite number >= 0")
POSITIVE: Rule = (lambda value: is_number(value) and value > 0, "a finite number > 0")
DECAY: Rule = (lambda value: is_number(value) and 0 <= value < 1, "a number in [0, 1)")
FLAG: Rule = (lambda value: isinstance(value, bool), "True or False")

SHARED: dict[str, Rule] = {
    "lr": (is_rate, "a finite number >= 0, or a tensor of one"),
    "weight_decay": NOT_NEGATIVE,
    "sigma": NOT_NEGATIVE,
    "normalization": _one_of(*NORMALIZATIONS),
    "scope": _one_of("global", "local"),
    "protect": FLAG,
    "step_scale": POSITIVE,
    "adaptive_noise": FLAG,
    "noise_reference": _one_of("rms", "norm"),
    "noise_beta": DECAY,
    "min_noise_std": NOT_NEGATIVE,
    "instant_noise_scale": FLAG,
    "foreach": (lambda value: value is None or isinstance(value, bool), "None, True or False"),
}
ADAM: dict[str, Rule] = {
    "betas": (
        lambda two: isinstance(two, (tuple, list)) and len(two) == 2 and all(map(DECAY[0], two)),
        "two numbers in [0, 1)",
    ),
    "eps": POSITIVE,  # with 0 a zero gradient would be 0 / 0
}
MOMENTS = {"first_moment", "sec_moment", "exp_avg", "exp_avg_sq"}  # what tells files apart


class Generators:
    """Generators by device, made when a device is first seen.

    Args:
        generator: the one of its device, and the seed of the others; None: ``SEED`` for all.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator is a {type(generator).__name__}: expected a torch.Generator or None"
            )
        self._seed = SEED if generator is None else generator.initial_seed()
        self._by_device: dict[str, torch.Generator] = {}
        if generator is not None:
            self._by_device[str(generator.device)] = generator

    def on(self, device: torch.device | str) -> torch.Generator:
        if str(device) not in self._by_device:
            self._by_device[str(device)] = torch.Generator(device).manual_seed(self._seed)
        return self._by_device[str(device)]

    def state_dict(self) -> dict[str, Any]:
        """The seed, and the state of each device's stream as a uint8 tensor."""
        states = {device: g.get_state() for device, g in self._by_device.items()}
        return {"seed": self._seed, "states": states}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; generators that were passed in included.

        A device that is not here is passed over, with a warning.
        """
        self._seed = saved["seed"]
        for device, state in saved["states"].items():
            try:
                generator = self.on(device)
            except RuntimeError:
                warnings.warn(
                    f"the stream of noise on {device} was not loaded: that device is not here. "
                    "Parameters that moved to another draw from a stream of the same seed",
                    stacklevel=3,
                )
                continue
            generator.set_state(state.cpu())

    __getstate__ = state_dict

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self._by_device = {}
        self.load_state_dict(saved)


class CheckpointedOptimizer(Optimizer):
    """Checks hyperparameters, and saves, loads and copies noise streams and float32 state.

    Args:
        own: hyperparameters of the subclass's constructor.  Groups may override each of these and
            of those that all share, and a checkpoint holds them.
        others: see :class:`~gqc.upgd.upgd.UPGD`.
    """

    #: names of the tensors that are kept for each parameter, in its shape; utility first
    kept: ClassVar[tuple[str, ...]] = ("avg_utility",)
    #: of each hyperparameter
    rules: ClassVar[dict[str, Rule]]
    options: ClassVar[type] = UtilityOptions

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = spell_out(cls)  # type: ignore[attr-defined]

    def __init__(
        self,
        params: Iterable[Any],
        own: Mapping[str, Any],
        *,
        normalization: str = "minmax",
        scope: str = "global",
        protect: bool = True,
        step_scale: float = 1.0,
        adaptive_noise: bool = False,
        noise_reference: str = "rms",
        noise_beta: float = 0.999,
        min_noise_std: float = 1e-6,
        instant_noise_scale: bool = True,
        generator: torch.Generator | None = None,
        nonfinite: str = "raise",
        foreach: bool | None = None,
    ) -> None:
        one_of("nonfinite", nonfinite, ("raise", "skip", "ignore"))
        defaults = checked({**locals(), **own}, self.rules)
        self.nonfinite = nonfinite
        self.num_skipped = 0  #: steps passed over for NaN or inf
        self._generators = Generators(generator)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it does not set has the constructor's value.

        Raises: ValueError: a hyperparameter out of its range; nothing is added then.
        """
        if isinstance(param_group, dict):  # torch refuses anything else
            adopt(param_group, self.defaults)
            param_group.update(checked({**self.defaults, **param_group}, self.rules))
        super().add_param_group(param_group)
        refuse_flat_shards(type(self).__name__, self.param_groups[-1]["params"])

    def state_dict(self) -> dict[str, Any]:
        """Return torch's entries and ``"upgd"``: the noise streams and the skipped steps.

        Loads with ``torch.load(..., weights_only=True)``.  With a process group it is also what the
        functions of ``torch.distributed.checkpoint`` take: ``"upgd"`` is in the first group, and
        parameters that have no state yet have one of zeros, as room to load into.
        """
        saved = super().state_dict()
        own = {"generators": self._generators.state_dict(), "num_skipped": self.num_skipped}
        if not is_on():
            return {**saved, "upgd": {**own, "num_states": len(saved["state"])}}
        entries, groups = {**saved["state"]}, [{**group} for group in saved["param_groups"]]
        for group, packed in zip(self.param_groups, groups, strict=True):
            for param, index in zip(group["params"], packed["params"], strict=True):
                if param.requires_grad and index not in entries:
                    entries[index] = self._empty_state(param, group)
        own["num_states"] = len(entries)
        groups[0]["upgd"] = freeze(own)
        return {**saved, "state": entries, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; files of the published classes load too.

        The state is copied, and that of 16-bit parameters stays float32, which torch would round.
        Hyperparameters that the file lacks get the constructor's values.

        Raises: ValueError: the file is another optimizer's, or of parameters of other shapes;
            nothing is changed then.
        """
        final: dict[str, Any] = {}

        def inspect(_: Optimizer, loaded: dict[str, Any]) -> None:
            self._check_state(loaded)
            final.update(loaded)

        hook = self.register_load_state_dict_pre_hook(inspect)  # runs after the user's hooks
        try:
            super().load_state_dict(_unpacked(state_dict))
        finally:
            hook.remove()
        self._copy_state(final)
        if "upgd" in final:
            self._generators.load_state_dict(final["upgd"]["generators"])
            self.num_skipped = final["upgd"]["num_skipped"]

    def _empty_state(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
        """The state of a parameter before its first step."""
        dtype = wide(param.dtype)
        state: dict[str, Any] = {"step": 0}
        state.update({key: torch.zeros_like(param, dtype=dtype) for key in self.kept})
        if group["adaptive_noise"] and not group["instant_noise_scale"]:
            state["grad_norm_ema"] = torch.zeros((), dtype=dtype, device=param.device)
        return state

    def _check_state(self, state_dict: dict[str, Any]) -> None:
        expected = state_dict.get("upgd", {}).get("num_states", 0)
        if (found := len(state_dict["state"])) < expected:
            raise ValueError(
                f"the file holds the state of {expected} parameters, and that of {found} came with "
                "it: torch.distributed.checkpoint loads only what an object has already. Load "
                "within a process group, or load a file of torch.save"
            )
        for index, state in state_dict["state"].items():
            missing = {"step", *self.kept} - set(state)
            if unknown := missing | (MOMENTS & set(state) - {*self.kept}):
                raise ValueError(
                    f"state of parameter {index} {'lacks' if missing else 'has'} {sorted(unknown)}:"
                    f" expected a file of {type(self).__name__}"
                )
        for index, param, _ in self._places(state_dict):
            here = tuple(param.shape)
            for name in self.kept:
                where = f"shape of {name} of parameter {index}"
                there = tuple(state_dict["state"][index][name].shape)
                expect(there == here, where, there, f"{here}: its parameters in the same order")

    def _places(self, state_dict: dict[str, Any]) -> list[tuple[Any, Tensor, dict[str, Any]]]:
        """The index in a file, for each parameter with state there, the parameter and its group."""
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        pairs = [(param, group) for group in self.param_groups for param in group["params"]]
        both = zip(saved, pairs, strict=False)  # torch refuses other numbers
        return [(index, *pair) for index, pair in both if index in state_dict["state"]]

    def _copy_state(self, state_dict: dict[str, Any]) -> None:
        """Put copies of what was saved where torch has cast to the dtype of the parameters."""
        for index, param, group in self._places(state_dict):
            state: dict[str, Any] = dict(state_dict["state"][index])
            state["step"] = int(state["step"])
            if isinstance(average := state.get("grad_norm_ema"), float):
                # The published average starts from 1, of which beta^t is left.
                rest = group["noise_beta"] ** state["step"]
                state["grad_norm_ema"] = torch.tensor(max(average - rest, 0.0))
            self._fit(state, param)
            self.state[param] = state

    def _fit(self, state: dict[str, Any], param: Tensor) -> None:
        """Put copies on the device of ``param`` in place of tensors, in its dtype or float32."""
        for name in {*self.kept, "grad_norm_ema"} & set(state):
            state[name] = state[name].to(param.device, wide(param.dtype), copy=True)

    def __getstate__(self) -> dict[str, Any]:
        # torch copies groups, state and defaults only
        own = {name: vars(self)[name] for name in ("nonfinite", "num_skipped", "_generators")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # load_state_dict comes here too
        for group in self.param_groups:
            adopt(group, self.defaults)
            group.update({**self.defaults, **group})


def check(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raise ValueError, with name, value and range, unless each hyperparameter is allowed."""
    for name, (is_allowed, allowed) in rules.items():
        expect(is_allowed(values[name]), name, values[name], allowed)


def checked(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """:func:`check`, and return the hyperparameters, numpy's numbers as Python's."""
    check(values, rules)
    found = {name: plain(values[name]) for name in rules}
    if "betas" in found:
        found["betas"] = tuple(map(plain, found["betas"]))
    return found


def adopt(group: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Give a group in the published spelling, ``beta1`` and ``beta2``, its ``betas``.

    Raises: ValueError: it asks for what optimizers of torch can do and these cannot.
    """
    for name in ("amsgrad", "maximize"):
        expect(not group.get(name), name, group.get(name), "False: UPGD has no such variant")
    if "betas" in defaults and group.keys() & {"beta1", "beta2"}:
        beta1, beta2 = group.get("betas", defaults["betas"])
        group["betas"] = (group.pop("beta1", beta1), group.pop("beta2", beta2))


def _unpacked(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state as it is without a process group."""
    groups = [{**group} for group in state_dict["param_groups"]]
    entries = {index: {**entry} for index, entry in state_dict["state"].items()}
    join_numbers(entries)
    unpacked = {**state_dict, "state": entries, "param_groups": groups}
    if groups and "upgd" in groups[0]:
        unpacked["upgd"] = thaw(groups[0].pop("upgd"))
    return unpacked
