"""Where objects come from. A source says what changed (`Changes`); it knows nothing of the bus."""
