"""Rollouts as the hub leads them: the policy (pure), and the conductor that gathers and applies."""
