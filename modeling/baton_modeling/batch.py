"""What one forward step is given. Every field says who fills it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StateSlots:
    """The snapshots of a step's rows, for models with a recurrent state.

    reads   int32 [B]  engine: slot of the state before the row's first token of this step;
                       NO_STATE (-1) when it has none behind it
    writes  int32 [B]  engine: slot that gets the state after the row's last token. May be the read
                       slot; no row reads what another row of the step writes.
    """

    reads: Tensor
    writes: Tensor


@dataclass(frozen=True)
class ForwardBatch:
    """One step over B rows with T tokens in all; tensors live on the model's device.

    Rows are requests. The first ``decode_rows`` rows have exactly one token each; prefill chunks
    follow. A row may have no tokens at all (it is then skipped).

    token_ids      int64 [T]    scheduler (decode rows: the token sampled last)
    positions      int64 [T]    engine, from context: position of each token in its request
    write_slots    int64 [T]    engine, from its page table: page * page_size + offset
    query_starts   int32 [B+1]  scheduler: row r owns tokens query_starts[r]:query_starts[r+1]
    context_tokens int32 [B]    scheduler: tokens of the row in the cache *after* this step
    page_tables    int32 [B, P] engine: pages of each row in order; entries past the last page
                                that holds a token are never read and may hold anything
    decode_rows    int          scheduler
    logit_rows     int64 [L]    engine: the tokens (indices into T) whose logits are wanted
    states                      engine: None for models without a recurrent state
    group_tokens, group_logit_rows
                   [dp] ints    scheduler: with data-parallel attention the batch is that of this
                                rank's group alone, and these are T and L of every group in the
                                axis's order, this one included. A group may have none. Without
                                data parallelism they are empty.
    """

    token_ids: Tensor
    positions: Tensor
    write_slots: Tensor
    query_starts: Tensor
    context_tokens: Tensor
    page_tables: Tensor
    decode_rows: int
    logit_rows: Tensor
    states: StateSlots | None = None
    group_tokens: tuple[int, ...] = ()
    group_logit_rows: tuple[int, ...] = ()
