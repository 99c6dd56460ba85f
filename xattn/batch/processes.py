"""The processes that share a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xattn.batch.items import Failure, Numbered
from xattn.devices import process_state


class Crew:
    """The processes of a batch; one, where it wasn't launched as several."""

    def __init__(self) -> None:
        self.state: Any = process_state()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that keeps the index."""
        return bool(self.state.is_main_process)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return int(self.state.num_processes)

    def share(self, groups: Sequence[list[Numbered]]) -> list[list[Numbered]]:
        """Return the groups that this process draws."""
        # with fewer groups than processes, accelerate would give the last one several times
        missing = max(0, self.size - len(groups))
        padded: list[list[Numbered] | None] = [*groups, *[None] * missing]
        with self.state.split_between_processes(padded) as ours:
            return [group for group in ours if group is not None]

    def gather(self, failures: list[Failure]) -> list[Failure]:
        """Return the failures of all processes."""
        from accelerate.utils import gather_object

        return list(gather_object(failures))

    def by_main(self, work: Callable[[], Any]) -> Any:
        """Call a function in the main process; return its result, or raise its error, in all."""
        from accelerate.utils import broadcast_object_list

        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = work()
            except Exception as error:
                answer[1] = error
        broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the group of processes; nothing more can be done together.

        Work that went well ends for all at once: the main process keeps the others' meeting place,
        and whoever leaves early closes connections that a slower one may still need. After an error
        nobody waits, and those who would wait for this process fail too.
        """
        if kind is None:
            self.state.wait_for_everyone()
        self.state.destroy_process_group()
