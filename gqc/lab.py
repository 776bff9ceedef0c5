"""The lab's former name, kept so that old imports say where it went."""

raise ImportError("gqc.lab is now gqc_lab: write `from gqc_lab import ...`", name="gqc.lab")
