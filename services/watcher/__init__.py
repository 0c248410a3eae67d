"""A source of Kubernetes objects in; normalized deltas and sync marks out, on the CLUSTER stream."""
