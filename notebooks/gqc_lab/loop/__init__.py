"""One training, driven: the experiment as an iterator of records, its controls, its tracking."""
