"""Processes that fit one category together: each computes a share of every step, and all end with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
import torch.distributed
from torch import Tensor

Item = TypeVar("Item")


class Team(Protocol):
    """The members of a fit. All of them call the same methods in the same order, and each waits for the others."""

    @property
    def rank(self) -> int:
        """This member's number, from 0."""

    @property
    def size(self) -> int:
        """How many members there are."""

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all members in place of every tensor, the same bits for each member."""

    def take_from(self, rank: int, tensor: Tensor) -> None:
        """Put a member's values in place of a tensor of the same shape and type."""

    def gather(self, own: Item) -> list[Item]:
        """What every member gives, by rank: small things, and never anything from outside the run."""


class Solo:
    """A team of one."""

    rank, size = 0, 1

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Nothing: the sum of one."""

    def take_from(self, rank: int, tensor: Tensor) -> None:
        """Nothing: they are its own."""

    def gather(self, own: Item) -> list[Item]:
        """Its own."""
        return [own]


class Processes:
    """The members of torch's default process group, over gloo."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """One message for all tensors: the network's latency is paid once a step."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def take_from(self, rank: int, tensor: Tensor) -> None:
        """A broadcast."""
        torch.distributed.broadcast(tensor, rank)

    def gather(self, own: Item) -> list[Item]:
        """Pickled, as all that Ray hands to its workers is."""
        gathered: list[Item] = [own] * self.size
        torch.distributed.all_gather_object(gathered, own)
        return gathered


SOLO = Solo()


def own_share(team: Team) -> slice:
    """Every `size`-th item, from the member's rank on."""
    return slice(team.rank, None, team.size)


def share_of(items: Sequence[Item], team: Team) -> Sequence[Item]:
    """The member's share of some items."""
    return items[own_share(team)]


def interleaved(shares: Sequence[Sequence[Item]]) -> list[Item]:
    """All items in their order again, from the shares of all members."""
    longest = max(map(len, shares))
    return [share[number] for number in range(longest) for share in shares if number < len(share)]
