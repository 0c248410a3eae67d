"""The messages that the services exchange: frozen structs and pure functions, no I/O.

Data enters as bytes from the bus, is decoded (and so checked) once where it enters, and is trusted afterwards.
New fields have defaults, types never change: bytes recorded by an older release must still decode.
"""
