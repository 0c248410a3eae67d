"""Logs, traces and the life of a process: what every service does the same way."""
