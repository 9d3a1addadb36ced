"""The answer to a request that cannot be served."""


class Refusal(Exception):
    """Ends a request with a status and one sentence.

    Args:
      status: of HTTP, 400 or more.
      text: a sentence for the one who asked.
      retry_after: seconds after which the same request may be served; None: never.
    """

    def __init__(self, status: int, text: str, retry_after: int | None = None):
        super().__init__(text)
        self.status, self.text = status, text
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
