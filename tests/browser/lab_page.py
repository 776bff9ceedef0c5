"""A JupyterLab on localhost and a page in it, as the browser tests use them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


def find_chromium() -> str | None:
    return shutil.which("chromium") or (CHROMIUM if Path(CHROMIUM).exists() else None)


class Server:
    """JupyterLab that serves ``folder``; its settings and run files are there too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "notebooks"
        self.folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        settings = folder / "settings"
        self._settings = settings
        quiet = {"fetchNews": "false", "checkForUpdates": False}
        self.set("apputils-extension/notification", quiet)
        places = {"JUPYTERLAB_SETTINGS_DIR": settings, "JUPYTERLAB_WORKSPACES_DIR": folder / "ws"}
        places |= {"JUPYTER_CONFIG_DIR": folder / "config", "JUPYTER_RUNTIME_DIR": folder / "run"}
        places |= {"IPYTHONDIR": folder / "ipython", "JUPYTER_DATA_DIR": folder / "data"}
        environment = os.environ | {name: str(place) for name, place in places.items()}
        environment |= {"OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
        command += [f"--port={self.port}", "--port-retries=0", "--allow-root"]
        command += ["--expose-app-in-browser", "--IdentityProvider.token="]
        command += ["--ServerApp.password=", f"--ServerApp.root_dir={self.folder}"]
        self._log = folder / "server.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def set(self, plugin: str, values: dict) -> None:
        """Write a user setting of ``@jupyterlab/PLUGIN``."""
        package, name = plugin.split("/")
        path = self._settings / "@jupyterlab" / package / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))

    def wait(self) -> None:
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/api/status", timeout=5).close()
                return
            except OSError:
                if self._process.poll() is not None:
                    log = self._log.read_text()[-2000:]
                    raise RuntimeError(f"JupyterLab does not answer:\n{log}") from None
                time.sleep(0.1)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def put(self, name: str, cells: Sequence[str] = (), **parameters: object) -> str:
        """A copy of a notebook of the repository without outputs, with other parameters.

        Args:
            cells: code of more cells, after those that there are.
        """
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        notebook.cells += [nbformat.v4.new_code_cell(code) for code in cells]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
            if "parameters" in cell.metadata.get("tags", []):
                for key, value in parameters.items():
                    cell.source, found = re.subn(
                        rf"^{key}\b.*?=(?! *=).*?(?=^\w|\Z)",
                        f"{key} = {value!r}\n",
                        cell.source,
                        flags=re.M | re.S,
                    )
                    assert found == 1, key
        file = f"{name}.ipynb"
        nbformat.write(notebook, self.folder / file)
        return file


class Lab:
    """One page with one notebook; `requests` to other hosts and `errors` are collected."""

    def __init__(self, page, server: Server) -> None:
        self.page, self.server = page, server
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        page.on("request", self._note)
        page.on("pageerror", lambda error: self.errors.append(f"{error}: {error.stack}"))

    def _note(self, request) -> None:
        local = (self.server.url, self.server.url.replace("http", "ws", 1), "data:", "blob:")
        if not request.url.startswith(local):
            self.elsewhere.append(request.url)

    def open(self, file: str, is_idle: bool = True) -> None:
        self.page.goto(f"{self.server.url}/lab/tree/{file}?reset")
        kernel = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel"
        wanted = "?.status === 'idle'" if is_idle else ""
        self.page.wait_for_function(f"() => {kernel}{wanted}", timeout=600_000)

    def run_all(self) -> None:
        """Start all cells; whoever needs their end waits for what they make."""
        self.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells'); }")

    def close(self) -> None:
        """Shut the notebook's kernel down, unsaved changes with it."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    def ask(self, expression: str):
        """The value of a Python expression in the kernel, through JSON; no cell is used."""
        return self.page.evaluate(
            ASK, {"code": "", "expression": f"__import__('json').dumps({expression})"}
        )

    def tell(self, code: str) -> None:
        """Run Python code in the kernel, beside the cells."""
        self.page.evaluate(ASK, {"code": code, "expression": "'null'"})

    def curve(self, view: str, key: str) -> list:
        """The y of a curve as the browser holds it."""
        return self.page.evaluate(CURVE, {"view": view, "key": key})

    def button(self, name: str, view: str = "gqc-live-run"):
        return self.page.locator(f".{view} button", has_text=name)

    def scroll_to(self, view: str) -> None:
        """Bring the cell that shows ``view`` onto the page, which holds only cells in sight."""
        self.page.evaluate(SCROLL, view)
        self.page.locator(f".{view}").scroll_into_view_if_needed()

    def press(self, handle, key: str) -> float:
        """Press ``key`` on ``handle``; when the browser took it [s since 1970]."""
        self.page.evaluate(NOTE_PRESS)
        handle.focus()
        self.page.keyboard.press(key)
        return self.page.evaluate("() => window.gqcPressed")


NOTE_PRESS = """() => document.addEventListener(
  'keydown', () => { window.gqcPressed = Date.now() / 1000; }, {capture: true, once: true})"""

SCROLL = """async view => {
  const notebook = jupyterapp.shell.currentWidget.content;
  for (let i = 0; i < notebook.widgets.length; i++) {
    if (document.querySelector('.' + view)) return;
    await notebook.scrollToItem(i);
    await new Promise(done => setTimeout(done, 50));
  }
}"""

ASK = """async ({code, expression}) => {
  const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute(
    {code, silent: false, store_history: false, user_expressions: {answer: expression}}, true);
  const {content} = await future.done;
  if (content.status !== 'ok') throw new Error(content.ename + ': ' + content.evalue);
  const answer = content.user_expressions.answer;
  if (answer.status !== 'ok') throw new Error(answer.ename + ': ' + answer.evalue);
  const text = answer.data['text/plain'];
  return JSON.parse(text.slice(1, -1).replace(/\\\\'/g, "'").replace(/\\\\\\\\/g, '\\\\'));
}"""

CURVE = """({view, key}) => {
  const plots = document.querySelectorAll('.' + view + ' .js-plotly-plot');
  const trace = [...plots].flatMap(plot => plot.data ?? []).find(t => t.meta === key);
  return trace && trace.y ? Array.from(trace.y._inputArray ?? trace.y) : [];
}"""
