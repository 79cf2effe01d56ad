"""POST /invocations, MLflow's scoring protocol. It does not go through FastAPI, since it has to be fast."""

from __future__ import annotations

from metalworks.serving.http import media_type
from metalworks.serving.http.asgi import BODY, App, Receive, Scope, Send, replay, send_failure, start_response
from metalworks.serving.predict.data_plane import DataPlane, Prediction
from metalworks.serving.predict.failures import Failure

PATH = "/invocations"
CHECK = b"metalworks-check"
"""Header of a request that only checks the service: it is neither copied to the shadow nor logged."""
_METHOD = Failure(405, "BAD_REQUEST", "Method Not Allowed", ((b"allow", b"POST"),))


class Invocations:
    """Answers requests to /invocations by the data plane, and leaves all others to the application."""

    def __init__(self, app: App, plane: DataPlane) -> None:
        """Predict by `plane`."""
        self.app, self.plane = app, plane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope.get("path") != PATH:
            await self.app(scope, replay(scope[BODY], receive) if scope["type"] == "http" else receive, send)
            return
        if scope["method"] != "POST":
            await send_failure(send, _METHOD)
            return
        content_type, is_check = b"", False
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = media_type.plain(value)
            elif name == CHECK:
                is_check = True
        body = scope[BODY]
        predicted = self.plane.predict(body, content_type)
        prediction = predicted if isinstance(predicted, Prediction) else await predicted
        text = prediction.body
        await send(start_response(prediction.status, prediction.media_type, text, prediction.headers))
        await send({"type": "http.response.body", "body": text})
        if not is_check:
            self.plane.copy(prediction, body, content_type)
