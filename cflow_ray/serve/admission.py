"""How much a replica has in hand: what is more than that is refused at once, instead of waiting ever longer."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from cflow_ray.errors import ServingError


class OverloadedError(ServingError):
    """More is asked for than is let in; the caller should come back later."""


class Room:
    """So many images may be in hand at once, from before their bytes are read until they are answered."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.taken = 0
        """Images in hand now."""

    def place(self) -> Place:
        """For the images of one request; a context manager that gives them back."""
        return Place(self)

    def take(self, images: int) -> None:
        """Let so many more in; raises OverloadedError where there is no room for all of them."""
        if self.taken + images > self._limit:
            raise OverloadedError(
                f"{self.taken} images are in hand and {images} more are too many; {self._limit} is the limit. Try again later."
            )
        self.taken += images

    def give_back(self, images: int) -> None:
        """So many are answered."""
        self.taken -= images


class Place:
    """The images of one request, which may become more."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._images = 0

    def hold(self, images: int) -> None:
        """Have room for so many in all; raises OverloadedError."""
        self._room.take(images - self._images)
        self._images = images

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._room.give_back(self._images)
