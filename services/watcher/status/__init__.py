"""Back to the API: which address each Ingress has, and what happened to it. Only the leader writes, apart from the way of deltas."""
