"""The example application of `sluice up --demo`: its manifests (`examples/`), its certificate, and the small real backends behind it."""
