"""The journal: the agent's durable store, one SQLite file.

    callers -> journal.py -> writer.py (one thread, group commit) -> changes.py, outbox.py -> SQLite
                    |
                    +------> readers.py (threads) -> reads.py -> SQLite

What a commit holds survives kill -9 and a power cut. A task is in the books from the commit that its
device's acknowledgement waits for, until the commit that puts its result rows into the outgoing lane
and its reply beside them; so at every instant each accepted job is either held or answered.
"""
