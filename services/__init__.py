"""Sluice: Ingress objects in, live nginx edge nodes out. One sub-package per service, `shared` for what two of them need."""
