"""The local stack: everything that `incipit up` and `make demo` run on one machine."""

from incipit.stack.errors import StackError
from incipit.stack.local_stack import LocalStack
from incipit.stack.state import StackState, running_stack

__all__ = ["LocalStack", "StackError", "StackState", "running_stack"]
