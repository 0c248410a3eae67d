"""Versions on the bus: reading any that is kept (`read`), following them (`replica`), writing checkpoints (`write`), comparing (`diff`)."""
