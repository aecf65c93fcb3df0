"""What of a request is looked at before gradio sees it: the name of the page, the site it comes from, and the size."""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from experiments.web.uploads import drop_oldest

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


def is_of_another_site(method: str, headers: Mapping[str, str]) -> bool:
    """Says whether a web page of another site makes a browser send a request; links to the page may be followed.

    Browsers say it, and no web page can change what they say. Programs such as curl say nothing.

    Args:
        method: of the request.
        headers: of the request, by names in small letters.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        is_link = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        return site not in ("same-origin", "none") and not is_link
    origin = headers.get("origin")  # of older browsers, and of those that reach the page without TLS
    own = {headers.get("host"), headers.get("x-forwarded-host")}  # the second is set by a proxy
    return origin is not None and origin.rpartition("//")[2] not in own


class OwnSite:
    """Refuses requests that web pages of other sites make a browser send.

    Args:
        app: answers the requests.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        answer = self.app
        if scope["type"] == "http" and is_of_another_site(scope["method"], Headers(scope=scope)):
            answer = PlainTextResponse("the request comes from another web site; expected one of this page.", 403)
        await answer(scope, receive, send)


class FewUploads:
    """Keeps few uploads, see `drop_oldest`; gradio by itself keeps all of an hour.

    Args:
        app: answers the requests.
        folder: of the uploads.
    """

    def __init__(self, app: Any, folder: Path):
        self.app = app
        self.folder = folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                drop_oldest(self.folder)
            await send(message)

        await self.app(scope, receive, answer)


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
