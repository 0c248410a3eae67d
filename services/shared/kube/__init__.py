"""The Kubernetes API as bytes: requests, watches, Leases. The only place that imports the client library."""
