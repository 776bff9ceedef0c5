"""Settings of continual learning: their meaning, ranges and defaults, and their values by scale."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqc_lab.loop.scaler_controls import SCALER
from gqc_lab.loop.settings import Config, Setting, make_config, read_scales, read_tuned, setting
from gqc_lab.studies.continual.methods import METHODS

STREAMS = ("input_permuted", "label_permuted")  #: as of `gqc_lab.data.streams.KINDS`
_COUNT, _BETA = Setting(low=1), Setting(low=0, below=1)

#: scale -> sizes; a run of laptop takes some seconds on one core, paper is as in the source
SCALES = read_scales(Path(__file__).with_name("scales.csv"))

_TRIALS = Path(__file__).with_name("tuned.csv")
#: (stream, `ContinualConfig.name`) -> values; the trials that they were chosen from are in the file
TUNED = read_tuned(_TRIALS, ("stream", "name"), "online_accuracy", is_larger_better=True)


@dataclass(frozen=True, kw_only=True)
class ContinualConfig(Config):
    """Everything that decides a run; use `config` for values that fit a scale."""

    stream: str = setting(meaning="what changes from task to task", choices=STREAMS)
    method: str = setting(meaning="how weights are updated", choices=tuple(METHODS))
    scale: str = setting(meaning="sizes of network and stream", choices=tuple(SCALES))
    data: str = setting(
        "digits", "images; all but digits need torchvision", choices="gqc_lab.data.images:DATA_SETS"
    )
    num_tasks: int = setting(meaning="tasks of the stream", like=_COUNT)
    task_examples: int = setting(meaning="examples of a task", like=_COUNT)
    batch_size: int = setting(meaning="examples per step, a divisor of ``task_examples``", low=1)
    measure_every: int = setting(meaning="steps between measurements of plasticity", like=_COUNT)
    probe_examples: int = setting(
        meaning="first examples of a task, on which units and rank are measured", like=_COUNT
    )
    width: int = setting(meaning="units of a hidden layer", like=_COUNT)
    depth: int = setting(meaning="hidden layers", like=_COUNT)
    lr: float = setting(meaning="learning rate, constant", label="learning rate", above=0)
    weight_decay: float = setting(0.0, "for the methods with decay", low=0)
    sigma: float = setting(0.0, "deviation of the noise [gradient]", low=0)
    beta_utility: float = setting(0.999, "upgd, adaptive_upgd: decay of the utility", like=_BETA)
    beta1: float = setting(0.9, "decay of Adam's first moment", like=_BETA)
    beta2: float = setting(0.999, "decay of Adam's second moment", like=_BETA)
    normalization: str = setting(
        "minmax", "of the utilities", choices="gqc.upgd.utility:NORMALIZATIONS"
    )
    adaptive_noise: bool = setting(False, "scale the noise with the gradient, see `gqc.upgd.UPGD`")
    vgs: bool = setting(False, "scale gradients by their variance")
    vgs_alpha: float = setting(0.1, like=SCALER["alpha"])
    vgs_beta: float = setting(0.99, like=SCALER["beta"])
    vgs_warmup_steps: int = setting(100, like=SCALER["warmup_steps"])
    gradient_factor: float = setting(1.0, "multiplies every gradient, before VGS", above=0)

    def check_together(self) -> None:
        if self.task_examples % self.batch_size:
            raise ValueError(
                f"task_examples={self.task_examples}: expected a multiple of "
                f"batch_size={self.batch_size}"
            )
        method = METHODS[self.method]
        if self.adaptive_noise and not method.has_gates:
            gated = ", ".join(name for name, each in METHODS.items() if each.has_gates)
            raise ValueError(
                f"adaptive_noise=True with method={self.method!r}: expected one of {gated}"
            )
        if self.sigma and "sigma" not in method.space:
            raise ValueError(
                f"sigma={self.sigma!r} with method={self.method!r}: expected 0, as it has no noise"
            )
        if self.weight_decay and "weight_decay" not in method.space:
            raise ValueError(
                f"weight_decay={self.weight_decay!r} with method={self.method!r}: expected 0; "
                "'l2' and 'shrink_perturb' are the methods with decay"
            )

    @property
    def name(self) -> str:
        """The method with what is added to it."""
        noise = ", adaptive noise" if self.adaptive_noise else ""
        factor = f", gradient x {self.gradient_factor:g}" if self.gradient_factor != 1 else ""
        return self.method + noise + (", VGS" if self.vgs else "") + factor


def config(scale: str = "smoke", **overrides: Any) -> ContinualConfig:
    """Return the config of a scale, with the values tuned for stream and method, at laptop or long.

    A method with VGS or adaptive noise that was not tuned so (`TUNED` has no row of its
    `ContinualConfig.name`) gets the values of the bare method.  ``overrides``, any field of
    `ContinualConfig`, win; stream and method are ``"input_permuted"`` and ``"upgd"`` by default.

    Raises: ValueError: unknown scale or field, or a value out of its range.
    """
    values = {"stream": "input_permuted", "method": "upgd", **overrides}
    return make_config(ContinualConfig, SCALES, scale, values, _tuned)


def _tuned(values: dict[str, Any]) -> dict[str, Any]:
    plain = ContinualConfig(**{"lr": 1.0, **values})
    streams, names = (f"{plain.stream}, {plain.scale}", plain.stream), (plain.name, plain.method)
    keys = [(stream, name) for stream in streams for name in names]
    return next(TUNED[key] for key in keys if key in TUNED)


def comparison(
    scale: str, streams: Sequence[str], methods: Sequence[str], seeds: Iterable[int], **options: Any
) -> list[ContinualConfig]:
    """Return configs of all methods on all streams, seed by seed; ``options``: for `config`."""
    return [
        config(scale, stream=stream, method=method, seed=seed, **options)
        for stream in streams
        for seed in seeds
        for method in methods
    ]
