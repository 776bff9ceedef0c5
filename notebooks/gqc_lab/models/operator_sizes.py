"""Sizes of the operator in `gqc_lab.models.operator`; part of a study's settings, so no torch."""

from dataclasses import dataclass

from gqc_lab.loop.settings import Checked, setting


@dataclass(frozen=True)
class OperatorConfig(Checked):
    """Sizes of an operator.

    Raises: ValueError: a size is out of range, or ``hidden`` is not a multiple of ``heads``.
    """

    tokens: int = setting(32, "latent tokens around the period", low=1)
    latent_dim: int = setting(16, "channels of a token", low=1)
    hidden: int = setting(96, "channels inside E, A and D, a multiple of ``heads``", low=1)
    blocks: int = setting(3, "transformer blocks of A", low=1)
    codec_blocks: int = setting(1, "transformer blocks of E and of D", low=0)
    heads: int = setting(6, "attention heads", low=1)
    neighbors: int = setting(16, "points that a token sees; the farthest has weight 0", low=3)
    is_normalized: bool = setting(True, "whether the blocks and the latents have layer norms")

    def check_together(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden}: expected a multiple of heads={self.heads}")
