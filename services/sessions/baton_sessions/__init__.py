"""What a session lease is, to all who keep one: the router and the kvstore. Imports nothing."""

from baton_sessions.table import SessionLease, SessionTable

__all__ = ["SessionLease", "SessionTable"]
