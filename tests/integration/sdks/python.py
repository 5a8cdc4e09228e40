"""Clients of PyPI `centrifuge-python`."""

import ssl
from typing import Any

import centrifuge  # type: ignore[import-untyped]

from .client import COMMAND_SECONDS, RECONNECT_SECONDS, Client, CommandFailedError, Ended, History, Received, Subscribed


class PythonClient(Client, centrifuge.ClientEventHandler):  # type: ignore[misc]  # untyped
    """A client of `centrifuge-python`."""

    def __init__(self, name: str, url: str, token: str = "", ssl_context: ssl.SSLContext | None = None) -> None:
        super().__init__(name)
        self._client = centrifuge.Client(
            url,
            events=self,
            token=token,
            timeout=COMMAND_SECONDS,
            min_reconnect_delay=RECONNECT_SECONDS[0],
            max_reconnect_delay=RECONNECT_SECONDS[1],
            ssl_context=ssl_context,
            proxy=None,
        )

    async def open(self) -> None:
        await self._client.connect()

    async def _subscribe(self, channel: str) -> None:
        subscription = self._client.new_subscription(
            channel,
            events=_PythonSubscription(self, channel),
            min_resubscribe_delay=RECONNECT_SECONDS[0],
            max_resubscribe_delay=RECONNECT_SECONDS[1],
        )
        await subscription.subscribe()

    async def publish(self, channel: str, data: Any) -> None:
        try:
            await self._client.publish(channel, data)
        except centrifuge.CentrifugeError as error:
            raise _failed(error) from None

    async def history(
        self, channel: str, limit: int = -1, *, since: tuple[int, str] | None = None, reverse: bool = False
    ) -> History:
        position = centrifuge.StreamPosition(*since) if since else None
        try:
            page = await self._client.history(channel, limit=limit, since=position, reverse=reverse)
        except centrifuge.CentrifugeError as error:
            raise _failed(error) from None
        return History([_received(publication) for publication in page.publications], page.offset, page.epoch)

    async def close(self) -> None:
        await self._client.disconnect()

    # As the SDK's ClientEventHandler.

    async def on_connecting(self, ctx: centrifuge.ConnectingContext) -> None:
        self.note_connecting(ctx.code, ctx.reason)

    async def on_connected(self, ctx: centrifuge.ConnectedContext) -> None:
        self.connections.append(ctx.client)

    async def on_disconnected(self, ctx: centrifuge.DisconnectedContext) -> None:
        self.disconnected.append(Ended(ctx.code, ctx.reason))


class _PythonSubscription(centrifuge.SubscriptionEventHandler):  # type: ignore[misc]
    def __init__(self, client: PythonClient, channel: str) -> None:
        self._client = client
        self._channel = channel

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        self._client.subscribed[self._channel].append(Subscribed(ctx.was_recovering, ctx.recovered))

    async def on_unsubscribed(self, ctx: centrifuge.UnsubscribedContext) -> None:
        self._client.unsubscribed[self._channel].append(Ended(ctx.code, ctx.reason))

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        self._client.publications[self._channel].append(_received(ctx.pub))


def _received(publication: centrifuge.Publication) -> Received:
    info = publication.info
    return Received(publication.data, publication.offset, info.client if info else "")


def _failed(error: centrifuge.CentrifugeError) -> CommandFailedError:
    return CommandFailedError(error.code if isinstance(error, centrifuge.ReplyError) else 0, repr(error))
