"""Loops and trainers as their users write them, each with the name of a control."""

DATA = """
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from gqc_widgets import Live, live_callback
torch.manual_seed(0)
X, y = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(X).float() / 16, torch.tensor(y))
loader = DataLoader(data, 32, shuffle=True)
def make_mlp():
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
model = make_mlp()
"""
MLP = """
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
live = Live(optimizer, total=10**6)
for epoch in range(10**4):
    for x, y in live(loader):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        live.log(loss=loss, accuracy=(model(x).argmax(1) == y).float().mean())
"""
GPT = """
from gqc_lab.models.gpt import GPTConfig, make_gpt
text = torch.randint(0, 32, (10_000,))
sizes = GPTConfig(vocabulary=32, context=16, width=16, depth=1, heads=2)
model = make_gpt(sizes, torch.Generator().manual_seed(0))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
def batches():
    while True:
        rows = torch.stack([text[j : j + 17] for j in torch.randint(0, len(text) - 17, (8,))])
        yield rows[:, :-1], rows[:, 1:]
live = Live(optimizer)
for x, y in live(batches()):
    loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    live.log(loss=loss)
"""
TWO = """
other = make_mlp()
first, second = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, other))
live = Live({"first": first, "second": second})
for epoch in range(10**4):
    for x, y in live(loader):
        for m, optimizer in ((model, first), (other, second)):
            loss = torch.nn.functional.cross_entropy(m(x), y)
            optimizer.zero_grad(); loss.backward(); optimizer.step()
        live.log(loss=loss)
"""
TRANSFORMERS = """
import tempfile
from transformers import Trainer, TrainingArguments
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = make_mlp()
    def forward(self, x, labels):
        logits = self.mlp(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}
rows = [{"x": x, "labels": y} for x, y in data]
callback = live_callback("transformers")
arguments = TrainingArguments(
    tempfile.mkdtemp(), max_steps=10**6, logging_steps=5, report_to=[], save_strategy="no",
    disable_tqdm=True, use_cpu=True)
Trainer(Net(), arguments, train_dataset=rows, callbacks=[callback]).train()
live = callback.live
"""
LIGHTNING = """
import lightning, logging, warnings
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.mlp = make_mlp()
    def training_step(self, batch, i):
        return torch.nn.functional.cross_entropy(self.mlp(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
callback = live_callback("lightning")
lightning.Trainer(
    max_steps=10**6, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
).fit(Net(), loader)
live = callback.live
"""
PPO = """
from stable_baselines3 import PPO
callback = live_callback("stable_baselines3")
PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, device="cpu").learn(10**9, callback)
live = callback.live
"""
LOOPS = {"mlp": (MLP, "lr"), "gpt": (GPT, "lr"), "two optimizers": (TWO, "first.lr")}
LOOPS |= {"transformers": (TRANSFORMERS, "lr"), "lightning": (LIGHTNING, "0.lr")}
LOOPS |= {"stable_baselines3": (PPO, "lr")}
