"""Who may do what on the bus, by NATS' own means: an operator signs accounts, an account signs users, servers only verify."""
