"""A new version beside the old one, as a rollout says: jobs routed, shadowed, counted, and the way back.

    registry (both versions loaded) -> trials -> routes: window      which version a job runs on
                                              -> watch: runner       what came of it, to books and shadows
    books -> gate (pure) -> registry: back to the old version, with or without the hub

Without a trial none of it runs, and without `[registry] url` nothing is loaded but `watch`, the words that
the rest of the agent shares with it.
"""
