"""Failure: the watchdog of each rank, injection of faults, the decision after a death and the recovery.

Lower rooms know a death only as PeerLost; only this room catches it."""
