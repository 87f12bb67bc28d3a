"""What nobody expected becomes a plain 500, and its traceback goes to the log."""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.errors import INTERNAL, INTERNAL_MESSAGE, error_response
from deployments.api.request_log import shown

logger = logging.getLogger(__name__)


class PlainFailures:
    """ASGI middleware; what stands outside of it sees an answer like any other."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_begun = False

        async def noted(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if scope["type"] != "http":
                raise
            logger.error("%s %s failed", scope["method"], shown(scope["path"]), exc_info=error)
            if is_begun:
                raise  # the server closes the connection, and the client sees that it is cut
            await error_response(INTERNAL, INTERNAL_MESSAGE)(scope, receive, send)
