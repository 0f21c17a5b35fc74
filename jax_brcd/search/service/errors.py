"""What a client is told of an error: one line of JSON, whatever went wrong."""

import http
import json


class Refused(Exception):
    """A request that is not carried out.

    Attributes:
        status: of HTTP. problem: what is wrong and how to mend it.
    """

    def __init__(self, status: int, problem: str):
        super().__init__(problem)
        self.status, self.problem = status, problem


def error_line(status: int, problem: str) -> bytes:
    """The body of an answer with an error's status."""
    line = " ".join(problem.split()) or http.HTTPStatus(status).phrase.lower()
    return json.dumps({"error": line, "status": status}).encode() + b"\n"
