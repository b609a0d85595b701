"""How many files leave the API at once: each holds a connection, a thread now and then, and the disk's attention."""

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from backend.error_answers import problem
from backend.problems import Refusal


class DownloadPlaces:
    """One per API process, used from its event loop alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_open = 0

    def sent(self, response: Response) -> Response:
        """The response, which takes a place while it is sent, or says (503) that there is none."""
        return _Placed(response, self)


class _Placed(Response):
    def __init__(self, inner: Response, places: DownloadPlaces) -> None:
        super().__init__()
        self._inner = inner
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._places.num_open >= self._places.limit:
            sentence = (
                f"{self._places.limit} files are being sent, as many as one API process sends at once; "
                "try again when one has ended."
            )
            await problem(scope, Refusal(503, sentence), {"Retry-After": "5"})(scope, receive, send)
            return
        self._places.num_open += 1
        try:
            await self._inner(scope, receive, send)
        finally:
            self._places.num_open -= 1
