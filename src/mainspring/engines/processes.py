"""What every engine of several processes shares: joining them, sums and agreements between them, gathered evaluations."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import distributed as dist, nn
from torch.utils._pytree import tree_map_only

from mainspring.data.samplers import mark_last
from mainspring.data.shared import Dealt
from mainspring.data.uneven import may_end_apart
from mainspring.engines.base import EngineOptions, SingleProcess
from mainspring.engines.loaded import in_pieces
from mainspring.engines.watch import Phase, Watch, waits_for
from mainspring.processes import limit_of_collectives, side_channel
from mainspring.state import CONTROL_FLAGS, TrainerControl

if TYPE_CHECKING:
    from mainspring.engines.accelerator import MainspringAccelerator


class Processes(SingleProcess):
    """One process per rank; how they train one model together is what its subclasses say.

    Attributes:
        data_group: The ranks that read different data, over which sums and means are taken; None for all ranks.
    """

    def __init__(self, accelerator: MainspringAccelerator, options: EngineOptions) -> None:
        super().__init__(accelerator, options)
        self.data_group: dist.ProcessGroup | None = None
        self._round: Round | None = None
        self._question: Question | None = None
        self._wishes: Question | None = None
        self._side_channel: dist.ProcessGroup | None = None
        self._data_channel: dist.ProcessGroup | None = None
        _leave_at_exit()
        asked = int(os.environ.get("WORLD_SIZE", self.world_size))
        if not dist.is_initialized() or dist.get_world_size() != asked or self.world_size != asked:
            joined = dist.get_world_size() if dist.is_initialized() else 1
            raise RuntimeError(
                f"the launcher asked for {asked} processes but this one sees a world of {joined}: "
                "training would run as separate jobs that each report success"
            )
        self._watch = Watch(self.rank, self.world_size, limit_of_collectives().total_seconds())

    def session(self, name: str) -> contextlib.AbstractContextManager[None]:
        """The body works together with the other processes; losing them ends it with a `ProcessesError`."""
        return self._watch.session(name)

    def during(self, phase: Phase) -> contextlib.AbstractContextManager[None]:
        """The body is a phase of its own, which errors name."""
        return self._watch.during(phase)

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a 0-d tensor over all shares of the data, on the host."""
        return float(self.sum(value.detach().clone().float()).item()) / self.data_world_size

    @waits_for("a sum over the ranks")
    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all shares of the data, on the device; `value` stays as it is."""
        total = value.detach().clone().to(self.device)
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=self.data_group)
        return total

    @waits_for("what one rank tells the others")
    def share(self, value: Any, source: int = 0) -> Any:
        """The `value` of the rank `source`."""
        box = [value]
        dist.broadcast_object_list(box, src=source)
        return box[0]

    @waits_for("what each rank has")
    def every(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @waits_for("a group that is formed")
    def channel(self) -> Channel:
        """A group of its own over gloo: a thread may wait in it while the others train."""
        return Channel(side_channel())

    @waits_for("what each share of the data has")
    def each(self, numbers: Sequence[int]) -> list[list[int]]:
        """A few whole numbers of every share of the data, over gloo: no GPU is waited for."""
        own = torch.tensor(list(numbers), dtype=torch.int64)
        every = [torch.zeros_like(own) for _ in range(self.data_world_size)]
        dist.all_gather(every, own, group=self.data_channel())
        return [other.tolist() for other in every]

    @waits_for("what one rank passes on")
    def pass_on(self, value: Any, source: int) -> Any:
        """The `value` of the share `source` of the data."""
        box, group = [value], self.data_channel()
        dist.broadcast_object_list(box, src=dist.get_global_rank(group, source), group=group)
        return box[0]

    def data_channel(self) -> dist.ProcessGroup:
        """Gloo between the ranks that read different data. All ranks ask for it the first time."""
        if self._data_channel is None:
            everybody = range(self.world_size)
            own_group = everybody if self.data_group is None else dist.get_process_group_ranks(self.data_group)
            groups: list[Any] = [None] * self.world_size
            dist.all_gather_object(groups, tuple(own_group))
            own = groups[self.rank]  # every rank makes every group, in one order: torch asks for it
            made = {ranks: side_channel(ranks) for ranks in dict.fromkeys(groups)}
            self._data_channel = made[own]
        return self._data_channel

    @waits_for("the buffers of the first rank")
    def same_buffers(self, model: nn.Module) -> None:
        """Statistics of batches and the like differ by what each rank reads: the first one's are saved, and evaluated."""
        for buffer in model.buffers():
            if not in_pieces(buffer):
                send(buffer)

    @waits_for("a barrier")
    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()

    @waits_for("the flags of all ranks")
    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        wishes = torch.tensor([flag], dtype=torch.int32, device=self.device)
        dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
        return bool(wishes.item())

    @waits_for("an agreement of all ranks")
    def agree(self, wish: bool) -> bool:
        """What any rank wished by the question before; this question's sum travels while the next update computes."""
        answer = self._question is not None and self._question.answers(1)[0]
        self._question = self._ask([wish])
        return answer

    @waits_for("what callbacks of all ranks ask for")
    def settle(self, control: TrainerControl) -> None:
        """As in one process. Whoever asks for nothing waits for nobody, but hears of it the next time."""
        count = len(CONTROL_FLAGS)
        if self._wishes is not None:
            answers = self._wishes.answers(2 * count)
            for flag, some, not_all in zip(CONTROL_FLAGS, answers[:count], answers[count:], strict=True):
                if some and not_all:
                    setattr(control, flag, True)
        own = [bool(getattr(control, flag)) for flag in CONTROL_FLAGS]
        self._wishes = self._ask([*own, *(not wish for wish in own)])
        if any(own):
            for flag, not_all in zip(CONTROL_FLAGS, self._wishes.answers(2 * count)[count:], strict=True):
                setattr(control, flag, not not_all)

    def forget_wishes(self) -> None:
        """As in one process."""
        self._wishes = None

    def _ask(self, flags: Sequence[bool]) -> Question:
        """Begin to find out, for each flag, whether any rank has it set."""
        if self._side_channel is None:
            self._side_channel = side_channel()  # of its own: no order with the gradients' collectives
        bits = torch.tensor([sum(flag << place for place, flag in enumerate(flags))], dtype=torch.int32)
        return Question(dist.all_reduce(bits, op=dist.ReduceOp.BOR, group=self._side_channel, async_op=True), bits)

    def evaluation_batches(self, loader: Iterable[Any]) -> Iterator[tuple[Any, list[int] | None]]:
        """As in one process. Where ranks may have unequally much, they agree in each round on who has how many rows.

        A rank whose share is used up goes through the same collectives with a batch of which no row counts.
        """
        counts_rows = may_end_apart(loader) or not getattr(loader, "dealt", Dealt(self.data_world_size, even=True)).even
        if not counts_rows and self.data_world_size == self.world_size:
            prepared = hasattr(loader, "end_of_dataloader") and self.exact_rows
            yield from self._prepared_batches(loader) if prepared else super().evaluation_batches(loader)
            return
        with self._end_marker() as marker:
            for (batch, rows), is_last in mark_last(self._rounds(loader)):
                if is_last:
                    marker.close(remainder=-1)
                self._round = Round(rows, _row_count(batch))
                yield batch, rows
                self._round = None

    def _prepared_batches(self, loader: Any) -> Iterator[tuple[Any, list[int] | None]]:
        """The batches of a loader that Accelerate shares, the last one without its filling."""
        for batch in loader:
            held = _row_count(batch)
            whole = not loader.end_of_dataloader or loader.remainder <= 0
            if whole and self.data_world_size == self.world_size:
                yield batch, None
                continue
            left = held * self.data_world_size if whole else loader.remainder
            rows = [min(max(left - rank * held, 0), held) for rank in range(self.data_world_size)]
            own = rows[self.data_rank] or held
            self._round = Round(rows, own)
            yield _first_rows(batch, held, own), rows
            self._round = None

    def _rounds(self, loader: Iterable[Any]) -> Iterator[tuple[Any, list[int]]]:
        """`(batch, rows of each rank)` until no rank has any batch left."""
        batches, filling, first_round = iter(loader), None, True
        while True:
            own = list(islice(batches, 1))
            said = self.each([len(own), sum(map(_row_count, own))])
            having = [rank for rank, (has_batch, _) in enumerate(said) if has_batch]
            if not having:
                return
            filling = own[0] if own else filling
            if first_round and len(having) < len(said):  # some rank never has a batch: give it one of another's
                given = self.pass_on(filling, source=having[0])
                filling = own[0] if own else given
            first_round = False
            yield filling, [rows for _, rows in said]

    @waits_for("gathered tensors")
    def gather(self, data: Any) -> Any:
        """The tensors of every share of the data, one after another along dimension 0, in the order of the shares."""
        return tree_map_only(torch.Tensor, self._gather_alike, data)

    def _gather_alike(self, tensor: torch.Tensor) -> torch.Tensor:
        own = (tensor if tensor.ndim else tensor[None]).contiguous()
        every = [torch.empty_like(own) for _ in range(self.data_world_size)]
        dist.all_gather(every, own, group=self.data_group)
        return torch.cat(every)

    @waits_for("gathered rows")
    def gather_rows(self, data: Any, as_objects: bool) -> Any:
        """Each rank's own rows, in the order of the ranks."""
        if self._round is None:
            return None
        rows, held = self._round
        if as_objects:
            every: list[Any] = [None] * self.data_world_size
            dist.all_gather_object(every, data, group=self.data_group)
            return [item for part, count in zip(every, rows, strict=True) for item in part[:count]]
        return _map_rows(data, held, lambda tensor: self._gather_tensor(tensor, rows))

    def _gather_tensor(self, tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
        width = max(rows)  # collectives want equal shapes
        fitted = tensor[:width]
        if fitted.shape[0] < width:
            fitted = torch.cat([fitted, fitted[-1:].expand(width - fitted.shape[0], *fitted.shape[1:])])
        fitted = fitted.contiguous()
        every = [torch.empty_like(fitted) for _ in rows]
        dist.all_gather(every, fitted, group=self.data_group)
        return torch.cat([part[:count] for part, count in zip(every, rows, strict=True)])


class Question(NamedTuple):
    """Flags of all ranks, on their way: one number, for gloo takes longer over several."""

    work: dist.Work
    bits: torch.Tensor

    def answers(self, count: int) -> list[bool]:
        """Whether any rank has set each of the first `count` flags."""
        self.work.wait()
        bits = int(self.bits.item())
        return [bool(bits >> place & 1) for place in range(count)]


class Channel(NamedTuple):
    """A process group that one thread of each rank uses."""

    group: Any

    def every(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values


@functools.cache
def _leave_at_exit() -> None:
    """Leave the process group before the interpreter goes: gloo's threads otherwise abort some exits, with status -6."""
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


def refuse_frozen(model: nn.Module) -> None:
    """Refuse to train a model of which nothing learns."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")


def send(tensor: torch.Tensor) -> None:
    """Put the first rank's value into a plain tensor of all."""
    holder = tensor.detach()
    sent = holder.contiguous().clone()
    dist.broadcast(sent, src=0)
    holder.copy_(sent)


class Round(NamedTuple):
    """One round of an evaluation: the rows that each rank contributes, and those of the batch that this one holds."""

    rows: list[int]
    held: int


def _row_count(batch: Any) -> int:
    """Rows of a batch: those of its first tensor."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return next((count for part in parts if (count := _row_count(part))), 0)


def _first_rows(data: Any, rows: int, keep: int) -> Any:
    """The first `keep` rows of every tensor that has `rows` rows."""
    return _map_rows(data, rows, lambda tensor: tensor[:keep])


def _map_rows(data: Any, rows: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply `change` to every tensor in a nested structure that has `rows` rows."""
    if isinstance(data, torch.Tensor):
        return change(data) if data.ndim and data.shape[0] == rows else data
    if isinstance(data, Mapping):
        changed = {key: _map_rows(value, rows, change) for key, value in data.items()}
        return type(data)(changed)  # type: ignore[call-arg]
    if isinstance(data, (list, tuple)):
        return type(data)(_map_rows(value, rows, change) for value in data)
    return data
