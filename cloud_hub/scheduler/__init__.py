"""Which queued task runs where: a pure policy, and the loop that gathers and applies."""
