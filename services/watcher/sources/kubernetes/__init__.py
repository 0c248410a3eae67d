"""A Kubernetes API server as a source: each kind is listed in pages and then watched."""
