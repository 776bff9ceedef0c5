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
# # How do I use GNTS in the Trainer of Hugging Face?
#
# Pass the wrapper as the Trainer's optimizer, turn off `max_grad_norm`, and add `WrapperCallback`.
# The callback refuses settings that would be silently wrong, steps and saves the threshold
# schedule, logs, and steps with the draws that are left at the end.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %% tags=["install"]
if find_spec("transformers") is None:
    raise SystemExit("skipped: this guide needs transformers; run: %pip install transformers")

# %%
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from gqc import OptimizerWrapperGNTS
from gqc import get_norm_threshold_cosine_annealing_with_warmup as norm_schedule

from gqc.integrations.huggingface import WrapperCallback
from transformers import Trainer, TrainingArguments

pixels, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
data = [{"pixels": x.float() / 16, "labels": y} for x, y in zip(pixels, labels, strict=True)]

class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )

    def forward(self, pixels, labels):
        return {"loss": F.cross_entropy(self.net(pixels), labels)}


# %% [markdown]
# ## The script
#
# The schedule is given its warmup and the length of the run in microbatches, then the threshold at
# the start and at the end.

# %% tags=["huggingface"]
import math
import tempfile

torch.manual_seed(0)
model, folder = Classifier(), tempfile.mkdtemp()
total = 2 * math.ceil(1500 / 8)  # microbatches of 2 epochs
args = TrainingArguments(
    folder,
    num_train_epochs=2,
    per_device_train_batch_size=8,
    max_grad_norm=0,  # changed
    logging_steps=75,
    report_to="none",
    use_cpu=True,
    disable_tqdm=True,
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
optimizer = OptimizerWrapperGNTS(optimizer, clip_norm=1.0)  # changed
trainer = Trainer(
    model,
    args,
    train_dataset=data[:1500],
    optimizers=(optimizer, None),
    callbacks=[WrapperCallback(norm_schedule(optimizer, 40, total, 0.8, 0.5))],  # changed
)

# %%
from transformers import PrinterCallback

trainer.remove_callback(PrinterCallback)  # prints each log entry
result = trainer.train()
for entry in trainer.state.log_history[:-1]:
    print(
        f"microbatch {entry['step']:3}: loss {entry['loss']:.1f} nat, "
        f"{entry['gqc/steps']:3} steps, threshold {entry['gqc/gradient_norm_threshold']:.2f}"
    )

# %% [markdown]
# - The Trainer believes that each of its calls steps, so `max_steps`, `logging_steps`,
#   `save_steps`, `warmup_steps` and its lr schedule count **microbatches**.
# - A checkpoint holds the open window and the threshold's schedule;
#   `trainer.train(resume_from_checkpoint=...)` continues bit for bit.
# - Draws count alike in a window, also the short last batch and those of fewer tokens;
#   `dataloader_drop_last=True` leaves the short one out.
# - The Trainer clears gradients itself, so the wrapper must keep `accumulate="buffer"`, its
#   default.
# - Numbers of the wrapper join each log entry as `gqc/...`. For reporters set `report_to="none"`
#   and put them after the callback: `callbacks=[WrapperCallback(schedule), WandbCallback()]`.
#
# ## What is refused

# %%
trainer.args.max_grad_norm = 1.0  # the Trainer's default
try:
    trainer.train()
except ValueError as error:
    print(error)
