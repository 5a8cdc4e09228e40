"""One GET request to a port of this machine."""

from http.client import HTTPConnection, HTTPException

from deploy.cluster.ports import HOST


def status_of(port: int, path: str, timeout: float = 2.0) -> int | None:
    """Return the status code of `GET path`, or None when there was no answer within `timeout` seconds."""
    connection = HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()
