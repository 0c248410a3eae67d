"""The message bus: `port` says what there is, `jetstream` is NATS (the only `nats` import), `memory` serves fast tests.

Bytes in, bytes out; contracts encode and decode. One contract suite (`tests/contract`) holds both implementations to the port.
"""
