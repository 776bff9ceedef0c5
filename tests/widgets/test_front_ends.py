"""`Live` without JupyterLab: under nbclient, and in stand-ins for VS Code and Colab."""

import sys
import types
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import nbformat
import pytest
import torch
from traitlets.config import Config

from gqc_lab.loop.jupyter import Cell
from gqc_widgets import Live

LOOP = """
import time, torch
from gqc_widgets import Live
weight = torch.zeros(1, requires_grad=True)
optimizer = torch.optim.SGD([weight], lr=0.1)
live = Live(optimizer, label="digits")
def train(batches, seconds=0.0):
    for i in live(batches):
        optimizer.zero_grad()
        (weight - 1).square().sum().backward()
        optimizer.step()
        live.log(loss=(weight - 1).square())
        time.sleep(seconds)
"""
BACKGROUND = """
@live.background
def loop():
    train(range({count}), {seconds})
"""


@pytest.fixture
def unix_sockets():
    """Options that keep a kernel off network ports, which another test could be using."""
    with TemporaryDirectory() as folder:
        yield {"transport": "ipc", "connection_file": f"{folder}/k.json"}


@pytest.mark.slow
def test_without_a_person_there_is_one_picture_and_the_cell_waits_for_its_thread(unix_sockets):
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    sources = [LOOP, "train(range(20))", "live = Live(optimizer)" + BACKGROUND, "len(live.history)"]
    sources[2] = sources[2].format(count=50, seconds=0.001)
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    config = Config(KernelManager=unix_sockets)
    client = NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=600, config=config)
    with client.setup_kernel():
        for number, cell in enumerate(cells):
            client.execute_cell(cell, number)
        for cell in cells[1:3]:
            (output,) = cell.outputs
            assert set(output.data) >= {"image/png"}
            assert not any("widget" in kind for kind in output.data)
        assert cells[3].outputs[0].data["text/plain"] == "50"
        failing = nbformat.v4.new_code_cell("@live.background\ndef broken():\n    1 / 0")
        client.nb.cells.append(failing)
        with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
            client.execute_cell(failing, 4)


@pytest.fixture
def client(unix_sockets):
    from jupyter_client.manager import KernelManager

    manager = KernelManager(**unix_sockets)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready()
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def send(client, code, expression="0"):
    """Run a cell as JupyterLab and VS Code do, which name it; return what `wait` takes."""
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    content |= {"stop_on_error": True, "user_expressions": {"value": expression}}
    metadata = {"cellId": "vscode-notebook-cell:/n.ipynb#W0sZmlsZQ%3D%3D"}
    message = client.session.msg("execute_request", content, metadata=metadata)
    client.shell_channel.send(message)
    return message["header"]["msg_id"]


def wait(client, cell):
    """Return the value of the expression at the end of a cell."""
    while (reply := client.get_shell_msg(timeout=600))["parent_header"].get("msg_id") != cell:
        pass
    assert reply["content"]["status"] == "ok", reply["content"]
    return eval(reply["content"]["user_expressions"]["value"]["data"]["text/plain"])


def edit(client, fields, name, text):
    """What the page sends where a person has typed into a field."""
    data = {"method": "custom", "content": {"edit": [name, text]}}
    client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": fields, "data": data}))


@pytest.mark.slow
def test_a_cell_that_trains_hears_an_edit_before_it_ends(client):
    """Also one that comes before its first batch, which the kernel may have read before the cell
    begins: it would handle that after the end."""
    fields = wait(client, send(client, LOOP, "live.view.fields.model_id"))
    loop = """
known = len(live.changes)
for i in live(range(2000)):
    if i == 0:
        print("begun", flush=True)
    time.sleep(0.005)
    if len(live.changes) > known:
        break
"""
    rates = [0.05, 0.06, 0.07, 0.08, 0.09]
    for rate in rates:
        cell = send(client, loop, "i < 1999")
        while rate == rates[0] and client.get_iopub_msg(timeout=600)["content"].get("name") != (
            "stdout"
        ):
            pass
        edit(client, fields, "lr", str(rate))
        assert wait(client, cell), rate
    changes = wait(client, send(client, "", "live.changes"))
    assert [(change["name"], change["value"]) for change in changes] == [("lr", r) for r in rates]


@pytest.mark.slow
def test_a_page_that_is_loaded_again_finds_the_widgets_of_a_cell_that_trains(client):
    """It asks who they are and for their states, and would wait for the end of the cell."""
    wait(client, send(client, LOOP, "live.view.fields.model_id"))
    code = "for i in live(range(10**6)):\n    time.sleep(0.005)\n    if live.changes: break"
    code = code.replace("break", "break\n    print(i, flush=True) if i == 0 else None")
    cell = send(client, code, "live.view.fields.model_id")
    while client.get_iopub_msg(timeout=600)["content"].get("name") != "stdout":
        pass
    for kind in ("kernel_info_request", "comm_info_request"):
        question = client.session.msg(kind, {})
        client.shell_channel.send(question)
        while (answer := client.get_shell_msg(timeout=600))["parent_header"].get(
            "msg_id"
        ) != question["msg_id"]:
            assert answer["parent_header"].get("msg_id") != cell
    fields = [
        name
        for name, comm in answer["content"]["comms"].items()
        if comm["target_name"] == "jupyter.widget"
    ]
    content = {"comm_id": "page", "target_name": "jupyter.widget.control", "data": {}}
    version = {"version": "1.0.0"}
    client.shell_channel.send(client.session.msg("comm_open", content, metadata=version))
    data = {"method": "request_states"}
    client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": "page", "data": data}))
    while (news := client.get_iopub_msg(timeout=600))["content"].get("comm_id") != "page":
        pass
    states = news["content"]["data"]["states"]
    assert set(states) <= set(fields)
    (own,) = (name for name, each in states.items() if "specs" in each["state"])
    edit(client, own, "lr", "0.05")
    assert wait(client, cell) == own


@pytest.mark.slow
def test_a_loop_in_the_background_is_steered_after_its_cell_has_ended(client):
    """As in VS Code, which holds back what a person does until a cell has ended."""
    code = LOOP + BACKGROUND.format(count=10**9, seconds=0.001)
    fields = wait(client, send(client, code, "live.view.fields.model_id"))
    edit(client, fields, "lr", "0.05")
    while not (changes := wait(client, send(client, "", "live.changes"))):
        pass
    assert (changes[0]["name"], changes[0]["value"]) == ("lr", 0.05)
    wait(client, send(client, "live.stop()"))
    found = wait(client, send(client, "", "(live.state, float(live.history['lr'].iloc[-1]))"))
    assert found == ("stopped", 0.05)


class Events:
    def register(self, name, call):
        pass

    unregister = register


def test_in_colab_a_loop_that_blocks_says_what_to_do(monkeypatch):
    """Colab holds messages back, and its kernel has no channel to look into."""
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    kernel = SimpleNamespace(comm_manager=None, shell_stream=None, msg_queue=None)
    parent = {"metadata": {}, "header": {"msg_id": "1"}}
    shell = SimpleNamespace(events=Events(), kernel=kernel, get_parent=lambda: parent)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    live = Live(optimizer, cell=(cell := Cell(shell)))
    assert (cell.is_watched, cell.can_pump) == (True, False)
    for _ in live(range(2)):
        live._tell()
        assert "train in a function under @live.background" in live.view.trouble.value
    live.finish()
    assert live.view.trouble.value == ""
