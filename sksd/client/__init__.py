"""The client: discovery, trust, session, relay. Runs under any Twisted reactor."""
