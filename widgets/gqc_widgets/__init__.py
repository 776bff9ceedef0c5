"""ipywidgets views of :mod:`gqc.lab` objects."""
