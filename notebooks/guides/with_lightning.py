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
# # How do I use GNTS in Lightning?
#
# Return the wrapper and the threshold's schedule from `configure_optimizers`, and add
# `WrapperCallback`. It steps the schedule after each draw, refuses `gradient_clip_val`, logs, and
# steps with the draws that are left at the end of `fit`.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["install"]
if find_spec("lightning") is None:
    raise SystemExit("skipped: this guide needs lightning; run: %pip install lightning")

# %%
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from gqc import OptimizerWrapperGNTS
from gqc import get_norm_threshold_cosine_annealing_with_warmup as norm_schedule

import lightning
from gqc.integrations.lightning import WrapperCallback

pixels, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
data = torch.utils.data.TensorDataset((pixels / 16).float()[:1500], labels[:1500])
loader = torch.utils.data.DataLoader(data, batch_size=8)


# %% [markdown]
# ## The module and its trainer
#
# The schedule is given its warmup and the length of the run in microbatches, then the threshold at
# the start and at the end.

# %% tags=["lightning"]
class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )

    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        optimizer = OptimizerWrapperGNTS(optimizer, clip_norm=1.0)  # changed
        schedule = norm_schedule(optimizer, 40, len(loader), 0.8, 0.5)
        return [optimizer], [{"scheduler": schedule}]  # changed

def make_trainer(**options):
    return lightning.Trainer(
        callbacks=[WrapperCallback()],  # changed
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )


# %%
import logging
import warnings

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # hardware, tips
warnings.simplefilter("ignore", FutureWarning)  # Lightning's own, of torch's pytrees
warnings.filterwarnings("ignore", ".*does not have many workers")
torch.manual_seed(0)
model = Classifier()
trainer = make_trainer()
trainer.fit(model, loader)
numbers = trainer.optimizers[0].numbers()
print(f"{numbers['batches']} microbatches made {numbers['steps']} steps")
print(f"threshold at the end: {numbers['gradient_norm_threshold']:.2f}")

# %% [markdown]
# - `max_steps` and `trainer.global_step` count **microbatches**.
# - Numbers of the wrapper are logged as `gqc/...`, to whatever logger the trainer has.
# - Checkpoints hold the open window and the schedule. A run that is resumed from the end of an
#   epoch continues bit for bit; in mid-epoch Lightning starts the loader again, unless it has a
#   `state_dict`.
# - Draws count alike in a window, also the short last batch: `drop_last=True` leaves it out.
# - `accumulate_grad_batches=k` makes one draw of k microbatches; k has to divide the number of
#   batches of an epoch, since Lightning divides the losses of a short last group by k too.
# - `StochasticWeightAveraging` replaces a schedule that is returned: attach it
#   (`gqc.integrations.attach`).
# - With manual optimization call `self.optimizers().step()` after each `manual_backward`, then
#   `self.lr_schedulers().step()`.
# - With several optimizers, or a schedule of the learning rate too, return more of them; torch's
#   own schedules need `"interval": "step"` to count microbatches.
#
# ## What is refused

# %%
try:
    make_trainer(gradient_clip_val=1.0).fit(Classifier(), loader)
except ValueError as error:
    print(error)
