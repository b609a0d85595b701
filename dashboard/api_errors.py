"""What can go wrong between dashboard and API, as sentences for people. One family, caught in one place per view."""

from engine.findings import Finding


class ApiError(Exception):
    """The API did not do what was asked. `str(error)` is a sentence to show, `advice` what to do about it."""

    advice = "Try again; if it stays, look at the API's log."

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ApiDown(ApiError):
    """Nobody answers at the address."""

    advice = "Start it with `incipit up`, or set INCIPIT_API_URL to where it runs."


class SignedOut(ApiError):
    """The API does not take the credential, or there is none."""

    advice = "Sign in again; a key may have expired or been revoked."


class Forbidden(ApiError):
    """The person's role does not allow this."""

    advice = "Ask an admin for a key with a higher role."


class NotFound(ApiError):
    """The record does not exist, or no more."""

    advice = "Choose another one from the list."


class Conflict(ApiError):
    """The record is in a state that does not allow this."""

    advice = "Reload the page to see its present state."


class Invalid(ApiError):
    """The API refused what was sent; `findings` say where."""

    advice = "Correct the fields named below."

    def __init__(self, message: str, findings: list[Finding]) -> None:
        super().__init__(message)
        self.findings = findings


class ServerFault(ApiError):
    """The API failed, or answered something that this dashboard cannot read."""

    advice = "This is a fault of the service, not of your input. Its log has the details."
