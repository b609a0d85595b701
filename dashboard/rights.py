"""What the signed-in person may do, so that pages offer nothing that the API would refuse. The API decides, not this."""

from dashboard import cached
from dashboard.api_client import ApiClient


def refusal(client: ApiClient) -> str | None:
    """Why this person can start, stop and change nothing, in a sentence; None when they can."""
    person = cached.me(client)
    if person.may("operator"):
        return None
    return (
        f"Your role is {person.role}: you may look at everything; to change runs, ask an admin for the role operator."
    )
