"""The programs that are compared. Each is what its library's own documentation would have one write, tuned fairly.

They keep a user's last 50 events and answer every event. Two of them run on an interpreter of their own, so these
modules import their library and `deployment.py`, nothing else.
"""
