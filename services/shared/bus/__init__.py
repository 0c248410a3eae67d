"""The message bus: `port` says what there is, `jetstream` is NATS (the only `nats` import).

Bytes in, bytes out; contracts encode and decode. A contract suite (`tests/contract`) holds it to the port.
"""
