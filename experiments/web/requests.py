"""What of a request is looked at before gradio sees it: the name by which the page was asked for, and the size."""

import ipaddress
from typing import Any

from starlette.exceptions import HTTPException

LOCAL = ("localhost", "127.0.0.1", "[::1]")
MAX_BODY = 40 * 2**20  # bytes of a request; gradio takes a thousand uploads at once into memory


def allowed_hosts(host: str) -> list[str]:
    """Returns the names by which a browser may ask for the page; a star stands for any.

    A page that is reachable from this machine alone has the names of this machine alone. Otherwise a web page of
    somebody else could give its own name the address 127.0.0.1, and let the browser of a visitor ask in that name.

    Args:
        host: the address on which the page is reachable. One that others reach may have any name.
    """
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # the name of a machine
        is_local = False
    return [*LOCAL, host.lower()] if is_local else ["*"]


class BoundedBody:
    """Refuses requests that are larger than any of the page.

    Args:
        app: answers the requests.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        taken = 0

        async def bounded() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body") or b"")
            if taken > MAX_BODY:
                raise HTTPException(413, f"the request is too large; expected at most {MAX_BODY:,} bytes.")
            return message

        await self.app(scope, bounded if scope["type"] == "http" else receive, send)
