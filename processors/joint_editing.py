"""Handlers of joint attention: one edits it, one keeps the source's part for later edits."""

from __future__ import annotations

from torch import Tensor

from xattn.processors.call import AttentionCall, Handler
from xattn.processors.forms import EditedRows
from xattn.processors.joint import JointCall, JointStep
from xattn.processors.joint_source import (
    JointSource,
    KeptJoints,
    followed,
    place_of,
    refuse_masked,
)


class JointEditing(Handler):
    """Edit one layer's joint attention: its layout, its text's columns, or both.

    Attributes:
        step: the step's edit of the text's columns; None if there is none.
        follow: the rows whose layout follows their source; None if there are none.
        kept: the source kept from an earlier run; None if it is in the batch.
    """

    edits = True

    def __init__(self) -> None:
        super().__init__()
        self.step: JointStep | None = None
        self.follow: EditedRows | None = None
        self.kept: KeptJoints | None = None

    def transform(self, call: AttentionCall) -> AttentionCall:
        """Return the call in effect.

        Raises:
            RuntimeError: its processor computes explicit probabilities.
        """
        if call.own is None:
            raise RuntimeError("joint attention with explicit probabilities cannot be edited")
        source = None if self.kept is None else self.kept.read(call)
        if self.follow is not None:
            part = source or _layout(call, self.follow.span)
            call = followed(call, self.follow, part)
        return call if self.step is None else JointCall(call, self.step, source)


def _layout(call: AttentionCall, rows: slice) -> JointSource:
    """Return a source's image queries and keys; its sums, which cost, are left out."""
    place = place_of(call, rows.start)
    query, key = call.query[rows][:, :, place.queries], call.key[rows][:, :, place.image]
    return JointSource(query, key[:, :, :0], key, query.new_zeros(0))


class JointKeeping(Handler):
    """Keep the source's part of one joint layer for later edits.

    Attributes:
        calls: the list to append to, the tensors of a ``JointSource`` per denoiser call.
        rows: the source's rows of the batch.
    """

    edits = True

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, ...]] = []
        self.rows = slice(None)

    def observe(self, call: AttentionCall) -> None:
        """Keep a call's image queries, its keys, and its softmax's sums."""
        refuse_masked(call)
        call.prepare()
        part = JointSource.of(call, self.rows, call.sums(self.rows))
        self.calls.append(tuple(t.detach().clone() for t in part.tensors))
