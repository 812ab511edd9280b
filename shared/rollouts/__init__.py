"""Rollouts: a model's version taken to the fleet stage by stage, as hub and agents both understand it.

`stages` says who is exposed and how, `route` which version a job goes to, `measures` what is counted of a
version, `gates` what those counts must be like, and `trials` what an agent is told. All of it is pure.
"""
