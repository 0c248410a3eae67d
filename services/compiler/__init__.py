"""Deltas in; numbered versions (policies and table rows), verdicts and answers out. Pure up to `commit`; every stage has a test."""
