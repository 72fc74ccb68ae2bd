"""Server-sent events, read as they come."""

import json

from asmg_client.answers import Period
from asmg_client.call import Call
from asmg_client.decoding import decoded
from asmg_client.errors import InvalidAnswer

__all__ = ["PeriodEvents", "period_events"]


def period_events(number: int) -> Call[Period]:
    """The stream of a period."""
    headers = {"Accept": "text/event-stream"}
    return Call("GET", f"/periods/{int(number)}/events", Period, headers=headers, repeatable=True)


class PeriodEvents:
    """What a stream has told so far.

    After the stream was broken off it can be opened again: the service tells the state of the moment first.
    """

    def __init__(self) -> None:
        self.ended = False
        """Whether the update of the period has ended: nothing follows."""
        self._last: Period | None = None
        self.begin()

    def begin(self) -> None:
        """Read a stream from its beginning."""
        self._rest, self._event, self._data = "", "", list[str]()

    def read(self, text: str) -> list[Period]:
        """The periods of the events that end in the next part of a stream and tell something new.

        Raises:
            InvalidAnswer: it is no stream of the service.
        """
        # Not `splitlines`, which also splits at characters that JSON may contain.
        *lines, self._rest = (self._rest + text).split("\n")
        periods = [self._read_line(line.removesuffix("\r")) for line in lines]
        return [period for period in periods if period is not None]

    def _read_line(self, line: str) -> Period | None:
        """The period, where the line ends an event that tells something new."""
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                self._event = value
            elif name == "data":
                self._data.append(value)
            return None
        event, data = self._event, "\n".join(self._data)
        self._event, self._data = "", []
        if event == "end":
            self.ended = True
        if event != "status":
            return None
        try:
            period = decoded(Period, json.loads(data))
        except ValueError as error:
            raise InvalidAnswer(f"expected a period in JSON; received {data[:100]!r}") from error
        if period == self._last:
            return None
        self._last = period
        return period
