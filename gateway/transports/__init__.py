"""Thin shells between sockets and sessions: receive, hand over, write."""
