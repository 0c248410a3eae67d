"""What two services need: contracts, the bus, versions, nginx text, telemetry. Imports no service."""
