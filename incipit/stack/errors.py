"""What a person is told when the local stack cannot run: one sentence with value, limit and fix."""


class StackError(Exception):
    """The local stack cannot start or go on; the message is for a person."""
