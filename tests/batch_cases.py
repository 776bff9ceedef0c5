"""What tests of batches share."""

import time

import nbformat

HANG = 900  # seconds after which something hangs, however busy the machine is


class Heard:
    """A listener that remembers, and acts on each sign of life of a run."""

    def __init__(self, act=None):
        self.notes, self.texts, self.ends, self.act = [], [], [], act

    def note(self, text):
        self.notes.append(text)

    def kept(self, count):
        self.num_kept = count

    def started(self, run):
        pass

    def moved(self, run, cell, text):
        self.texts.append(text)
        if self.act:
            self.act(run)

    def ended(self, run, outcome):
        self.ends.append((run.id, outcome["status"]))


def write_notebook(path, *cells, parameters="seed = 0"):
    """A notebook of a `parameters` cell, the ``cells`` and a last one that saves a number."""
    sources = [parameters, *cells, "from gqc_lab import runs\nruns.save(None, {'loss': 1.0})"]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def wait_for(condition):
    until = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
