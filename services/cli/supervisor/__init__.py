"""What `sluice up` is made of. A plan (which processes, with which ports) in; running processes, their restarts and `up.json` out."""
