"""The bus on NATS JetStream: the only `nats` import of the product, and the one border where its exceptions are mapped."""

from services.shared.bus.jetstream.bus import JetStreamBus
from services.shared.bus.jetstream.node import NodeBus

__all__ = ["JetStreamBus", "NodeBus"]
