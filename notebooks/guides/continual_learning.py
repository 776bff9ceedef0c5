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
# # How do I keep a network plastic with UPGD?
#
# Utility-based perturbed gradient descent protects weights that are useful and perturbs those that
# are not, for streams whose task changes. It is a drop-in optimizer.

# %% tags=["install"]
from importlib.util import find_spec
if find_spec("gqc") is None:
    # ADDRESS: git+https://..., or file:///content/ and the name of a wheel that you uploaded
    raise ModuleNotFoundError('gqc is missing; run: %pip install "gqc-kit[lab] @ ADDRESS"')

# %%
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from gqc import UPGD

pixels, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
pixels = (pixels / 16).float()


# %% [markdown]
# ## A stream of tasks
#
# In each task the labels are permuted again. Accuracy is measured online: on each microbatch before
# it is trained on.

# %%
def run(make_optimizer, tasks=12, batches=120):
    stream = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer, right = make_optimizer(net.parameters()), []
    for _ in range(tasks):
        swapped = torch.randperm(10, generator=stream)[labels]
        right.append(learn(net, optimizer, swapped, batches, stream))
    return right

def learn(net, optimizer, targets, batches, stream):
    correct = 0
    for chosen in torch.randint(len(pixels), (batches, 8), generator=stream):
        output = net(pixels[chosen])
        correct += (output.argmax(1) == targets[chosen]).sum().item()
        optimizer.zero_grad()
        F.cross_entropy(output, targets[chosen]).backward()
        optimizer.step()
    return correct / (8 * batches)

ways = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "UPGD": lambda p: UPGD(p, lr=0.2, sigma=1e-3),
}
for name, make in ways.items():
    accuracy = run(make)
    print(f"{name:4}: accuracy {accuracy[0]:.1f} on the first task, {accuracy[-1]:.1f} on the last")

# %% [markdown]
# On a stream this short neither loses plasticity, and with one seed they agree to one digit.
# [Notebook 10](../10_upgd_continual.ipynb) compares them on longer streams, tuned and over seeds.
#
# - A gate of 1/2 is neutral, so `UPGD` takes about twice the learning rate of SGD. `AdaptiveUPGD`
#   and `UPGDW` take that of Adam and AdamW. All need tuning of `sigma` and `weight_decay` to
#   protect anything.
# - `sigma` is the standard deviation of the perturbation; `beta_utility` how long utility is
#   averaged.
# - The noise comes from a generator of the optimizer, which `state_dict()` saves: runs resume bit
#   for bit, and the global stream is not touched.
