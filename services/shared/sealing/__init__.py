"""Private keys, passwords and client CAs on the bus: never in clear (docs/security.md)."""
