"""What both ends of a connection share: names, messages, errors on the wire, and the limits of the broker.

docs/protocol.md is the written home of all of it.
"""
