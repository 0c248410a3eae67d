"""Back to the API: which address each Ingress has. Only the leader writes, apart from the way of deltas."""
