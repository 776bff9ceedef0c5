r"""Cost of a pretraining run, from its config: parameters and floating-point operations.

:math:`C = (6N + 12\,L\,w\,T)\,D` for :math:`N` parameters, :math:`D` tokens, :math:`L` blocks of
width :math:`w` and sequences of :math:`T` tokens: two operations per weight forward and four
backward, and attention's products of activations.  Every method spends the same, whenever it steps;
evaluations (2 N a token) and the optimizer's arithmetic are left out.

Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B; 6 N D is Kaplan et al. 2020.
Differs: the token embedding counts in N, since the output layer multiplies by it.
"""

from collections.abc import Mapping
from typing import Any

import torch

from gqc_lab.data.text import load_text_data
from gqc_lab.models import gpt
from gqc_lab.studies.pretraining.settings import PretrainingConfig, config


def count_parameters(c: PretrainingConfig) -> int:
    """Return the number of parameters; a character tokeniser's alphabet is the corpus's."""
    vocabulary = 256 if c.tokenizer == "byte" else load_text_data(c.corpus).vocabulary
    with torch.device("meta"):  # shapes only
        model = gpt.GPT(gpt.GPTConfig(vocabulary, c.context, c.width, c.depth, c.heads))
    return gpt.count_parameters(model)


def training_flops(c: PretrainingConfig) -> float:
    """Return the floating-point operations of a run; see the module."""
    per_token = 6 * count_parameters(c) + 12 * c.depth * c.width * c.context
    return float(per_token) * c.num_microbatches * c.microbatch_tokens


def notebook_flops(parameters: Mapping[str, Any]) -> float:
    """Return the operations of a notebook run that trains each of its ``methods`` once.

    ``parameters`` has ``scale`` and any field of the config; None means the scale's.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    scale, methods = given.pop("scale"), given.pop("methods")
    return sum(training_flops(config(scale, method=method, **given)) for method in methods)
