"""What can go wrong with a journal."""

from __future__ import annotations


class JournalError(Exception):
    """The journal cannot do what it was asked."""


class JournalFull(JournalError):
    """There is no room for new work; what is held already still finishes."""


class JournalBroken(JournalError):
    """The disk or the file failed: what was asked is not known to be done."""


class JournalClosed(JournalError):
    """The journal was closed, or its writer has ended."""


class JournalInUse(JournalError):
    """Another process has this journal open."""


class JournalTooNew(JournalError):
    """A newer version of the agent has written this journal; this one does not know its schema."""
