"""Makes methods of the functions in `calls` and `admin_calls`, with their arguments, answers and docstrings."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from asmg_client.call import Call

__all__ = ["awaitable", "blocking"]

P = ParamSpec("P")
T = TypeVar("T")


class Sends(Protocol):
    """What sends a call and returns its answer."""

    def send(self, call: Call[T], /) -> T:
        """The answer."""


class AwaitsSending(Protocol):
    """What sends a call, and is awaited."""

    def send(self, call: Call[T], /) -> Awaitable[T]:
        """The answer."""


def blocking(make: Callable[P, Call[T]]) -> Callable[Concatenate[Sends, P], T]:
    """A method that makes the call and sends it."""
    return cast(Callable[Concatenate[Sends, P], T], _method(make))


def awaitable(make: Callable[P, Call[T]]) -> Callable[Concatenate[AwaitsSending, P], Awaitable[T]]:
    """The same of an asynchronous client."""
    return cast(Callable[Concatenate[AwaitsSending, P], Awaitable[T]], _method(make))


def _method(make: Callable[..., Call[Any]]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **arguments: Any) -> Any:
        return self.send(make(*args, **arguments))

    method.__name__ = method.__qualname__ = make.__name__
    method.__doc__ = make.__doc__
    signature = inspect.signature(make)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    [answer] = signature.return_annotation.__args__
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[this, *signature.parameters.values()], return_annotation=answer
    )
    return method
