"""The models that the hub wants this agent to serve: fetched, verified, kept, loaded, and let go.

    source (HTTP) -> shelf (disk) -> engine, as plan (pure) says; registry drives them

Without `[registry] url` nothing of this is loaded.
"""
