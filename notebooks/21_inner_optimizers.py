# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags
#     notebook_metadata_filter: kernelspec,jupytext
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Is the effect of GNTS specific to Adam?
#
# GNTS is published with AdamW inside. Adam divides each gradient by its own size, so a noisy
# gradient makes a step as long as a clean one; SGD does not, Muon makes the singular values of a
# whole matrix equal, and SOAP is Adam in the eigenbases of Shampoo. A simple theory predicts that
# with Adam a few clean steps are worth many noisy ones.
#
# **Question.** At equal tokens, against a constant batch tuned in the same way: does GNTS help
# inside AdamW, SGD with momentum, Muon, or SOAP? And is AdamW with n times the batch, a learning
# rate √n times as large and betas of the same half-life in tokens, worth the same?

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["evidence", "nbval-ignore-output"]
from gqc_lab import claims

claims.show_evidence("21_inner_optimizers")

# %% [markdown]
# ## Run it yourself
#
# The rest of this notebook does the same in seconds at the `smoke` scale: a regression test, not
# evidence. The committed results above are from
#
# ```
# gqc batch run notebooks/batches/21_adam_tradeoff.yaml --jobs 2
# gqc batch run notebooks/batches/21_inner_optimizers.yaml --jobs 2
# gqc batch run notebooks/batches/21_second_order.yaml --jobs 2
# ```

# %% tags=["parameters"]
# settings: gqc_lab.studies.pretraining.PretrainingConfig
scale = "smoke"  # seconds, minutes, a GPU
comparisons = [
    "adamw",
    "sgd",
    "muon",
    "soap",
    "tradeoff",
]  # each one of adamw, sgd, muon, soap, tradeoff
seed = 0  # of the weights and of the order of the text
tokens: int | None = None  # training budget, None: the scale's
corpus: str | None = None  # kjv, hf:NAME or the path of a text; None: the scale's
device = "auto"
dtype = "float32"

# %%
from math import exp

from gqc_lab import figures, runs
from gqc_lab.loop.settings import of_scale
from gqc_lab.studies.pretraining import equal_tokens, inner_optimizers

# %% [markdown]
# ## Train
#
# - `adamw`, `sgd` (momentum 0.9), `muon` (for the matrices of the blocks, AdamW for the rest),
#   `soap`: a step on a constant number of microbatches (*control*), and GNTS;
# - `tradeoff`: AdamW with a step on every n microbatches, scaled by the rule above.

# %% tags=["nbval-ignore-output"]
place = {"corpus": corpus, "device": device, "dtype": dtype, "seed": seed}
place |= of_scale(inner_optimizers.SCALES, scale, tokens=tokens)
place |= {"evaluation_tokens": max(place["tokens"] // 8, 1)} if "tokens" in place else {}
compared = {name: inner_optimizers.comparison(name, scale, **place) for name in comparisons}
history, results, data_hash = equal_tokens.run_all(compared, inner_optimizers.build)

# %% tags=["nbval-ignore-output"]
figures.claims.comparison_losses(history)

# %% [markdown]
# ## What this run says
#
# Means of the logical batch cover closed windows only: what a window that is still open at the end
# has drawn belongs to no step.

# %%
shown = {"lr": 4, "val_loss": 2, "perplexity": 1, "steps": 0, "mean_logical_batch_examples": 0}
results.set_index(["comparison", "method"])[list(shown)].round(shown)

# %%
for name, table in results.groupby("comparison", sort=False):
    loss = table.set_index("method")["val_loss"]
    for method in loss.index[1:]:
        difference = loss[method] - loss.iloc[0]
        print(f"{name}: {method} minus {loss.index[0]}: {difference:+.2f} nat/token", end=", ")
        print(f"perplexity {exp(difference):.2f} times")
print(f"after {results['tokens'].min():,} tokens each, of one seed: no interval")

# %% [markdown]
# **Limits.** The learning rate and batch, or the learning rate and threshold, of each run were
# chosen from ten or eleven runs on one seed that no report uses, for the model and budget of the
# laptop scale alone. Thresholds that let more than 95 of 100 microbatches through were left out:
# they decide nothing. The momentum of SGD and Muon is not tuned, nor are the averages of SOAP. The
# rule of √n leaves the weight decay as it is, so there is less decay per token.

# %%
saved = runs.save(history, results, data_hash=data_hash)
