"""A feed, whose requests are answered by an event loop: rank posts with their context, let the service log what was
shown, report which posts were read, and follow an update of the model.

    python -m asmg_client.examples.feed http://127.0.0.1:8000
"""

import asyncio
import sys
from collections.abc import Sequence

from asmg_client import AsyncClient, AsyncEventBuffer, Click, Interaction

POSTS = [f"post {number}" for number in range(20)]


class Feed:
    """What the feed asks and reports. One for each event loop.

    Args:
        client: of the service.
        events: sends what happened.
    """

    def __init__(self, client: AsyncClient, events: AsyncEventBuffer) -> None:
        self._client, self._events = client, events

    async def page(self, user: str, posts: Sequence[str], length: int) -> tuple[list[str], str]:
        """The best posts of all, which the service logs as shown, and the id to which clicks refer."""
        prediction = await self._client.predict(user, posts, log_impressions=length)
        best = sorted(range(len(posts)), key=lambda n: -prediction.scores[n])[:length]
        return [posts[n] for n in best], prediction.request_id

    async def opened(self, request_id: str, post: str) -> None:
        """A post of a page was opened. Waits only where the buffer is full."""
        await self._events.add(Click(request_id, post))

    async def watched(self, user: str, video: str, seconds: float) -> None:
        """A video played by itself: no click, but a label all the same, which weighs more the longer it ran."""
        await self._events.add(Interaction(user, video, int(seconds > 10), weight=max(0.1, min(seconds / 60, 10))))


async def main(url: str) -> None:
    """Ten users read at once; then the period is closed, and its update is followed for as long as it takes."""
    async with AsyncClient(url) as client:
        async with AsyncEventBuffer(client) as events:
            feed = Feed(client, events)

            async def read(user: str) -> None:
                page, request_id = await feed.page(user, POSTS, 5)
                await feed.opened(request_id, page[0])
                await feed.watched(user, "video", 42)

            await asyncio.gather(*(read(f"user {number}") for number in range(10)))
        print(f"{events.counts.accepted} events are stored, {events.counts.lost} are lost")
        closed = await client.close_period(reason="end of the example")
        async for period in client.period_events(closed.period):
            print(f"period {period.period}: {period.status} {period.stage or ''}".rstrip())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
