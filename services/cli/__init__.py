"""The `sluice` command: one module per sub-command, and `up`, the supervisor."""
