"""A rank other than 0: does every step that rank 0 sends, pulls the same pages, lets others read.

Started by a launcher; `python -m baton_engine.ranks --fd N` is the process one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from baton_engine.batch import StepInput
from baton_engine.config import EngineConfig
from baton_engine.guessing import DraftOrder
from baton_engine.rank_transfer import RankTransfer
from baton_engine.ranks.frames import (
    FrameSocket,
    HashOrder,
    Kind,
    PeerGone,
    PullOrder,
    pack_hashed,
    pack_pulled,
    unpack_draft,
    unpack_hash,
    unpack_pull,
    unpack_step,
)
from baton_engine.ranks.group_init import Rendezvous, join_group
from baton_engine.runner import ModelRunner, set_threads
from baton_transfer import ReadFailure, ReadOutcome, configure_ucx

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """What a follower must know to start; rank 0 sends it as JSON."""

    config: EngineConfig
    rendezvous: Rendezvous
    name: str  # of the worker
    epoch: int

    def pack(self) -> bytes:
        return json.dumps(
            {
                "config": self.config.model_dump(mode="json"),
                "rendezvous": self.rendezvous.to_json(),
                "name": self.name,
                "epoch": self.epoch,
            }
        ).encode()

    @staticmethod
    def unpack(payload: bytes) -> Hello:
        """ValueError or KeyError when it is not what `pack` writes."""
        fields = json.loads(payload)
        return Hello(
            config=EngineConfig.model_validate(fields["config"]),
            rendezvous=Rendezvous.from_json(fields["rendezvous"]),
            name=fields["name"],
            epoch=fields["epoch"],
        )


class Follower:
    """Receives frames on its own thread, so that pulls go on while a step computes."""

    def __init__(self, frames: FrameSocket) -> None:
        self._frames = frames
        self._steps: queue.SimpleQueue[StepInput | DraftOrder | None] = queue.SimpleQueue()
        self._transfer: RankTransfer | None = None

    def run(self) -> None:
        """Load, report READY, follow until STOP or until rank 0 is gone."""
        kind, payload = self._frames.receive()
        if kind is not Kind.HELLO:
            raise ValueError(f"the first frame must be HELLO, not {kind.name}")
        hello = Hello.unpack(payload)
        set_threads(hello.config.threads)
        configure_ucx(hello.config.transport)
        place = join_group(hello.rendezvous)
        runner = ModelRunner(hello.config, place)
        runner.warm_up()
        self._transfer = RankTransfer(
            hello.name, hello.epoch, runner.arena, place.mesh.rank, hello.config.tp
        )
        self._frames.send(Kind.READY, self._transfer.exporter.exported.SerializeToString())
        receiver = threading.Thread(target=self._receive, name="baton-frames", daemon=True)
        receiver.start()
        while (work := self._steps.get()) is not None:
            if isinstance(work, StepInput):
                runner.run(work)
            else:
                runner.draft(work)
            runner.finish()
            self._frames.send(Kind.STEPPED)
        self._transfer.close()

    def _receive(self) -> None:
        while True:
            try:
                kind, payload = self._frames.receive()
            except PeerGone:
                kind, payload = Kind.STOP, b""
            if kind is Kind.STEP:
                self._steps.put(unpack_step(payload))
            elif kind is Kind.DRAFT:
                self._steps.put(unpack_draft(payload))
            elif kind is Kind.PULL:
                self._pull(unpack_pull(payload))
            elif kind is Kind.HASH:
                self._hash(unpack_hash(payload))
            elif kind is Kind.FORGET:
                self._ready.reader.forget(payload)
            else:
                self._steps.put(None)
                return

    @property
    def _ready(self) -> RankTransfer:
        if self._transfer is None:
            raise RuntimeError("rank 0 asks for pages before the follower was ready")
        return self._transfer

    def _hash(self, order: HashOrder) -> None:
        # The steps that sealed these pages are over: rank 0 has had their STEPPED.
        sums = self._ready.exporter.arenas[order.group].checksums(order.pages)
        self._frames.send(Kind.HASHED, *pack_hashed(order.hash_id, sums))

    def _pull(self, order: PullOrder) -> None:
        def done(future: Future[ReadOutcome]) -> None:
            error = future.exception()
            if error is not None:
                # The read is fenced before its future ends, whatever it ends with.
                text = f"{type(error).__name__}: {error}"
                outcome = ReadOutcome(0, 0, 0.0, ReadFailure.CLOSED, text)
            else:
                outcome = future.result()
            try:
                self._frames.send(Kind.PULLED, *pack_pulled(order.pull_id, outcome))
            except PeerGone:
                log.warning("rank 0 is gone; the end of pull %d is not told", order.pull_id)

        self._ready.reader.submit(
            order.memory,
            order.group,
            order.source_pages,
            order.target_pages,
            order.checksums,
            seconds=order.seconds,
        ).add_done_callback(done)


def follow(frames: FrameSocket) -> int:
    """Run a follower to its end; the process's exit code."""
    try:
        Follower(frames).run()
    except PeerGone:
        return 0
    except Exception as error:
        log.exception("follower failed")
        try:
            frames.send(Kind.FAILED, f"{type(error).__name__}: {error}".encode())
        except PeerGone:
            log.warning("rank 0 is gone too")
        return 1
    return 0


def _die_with_parent() -> None:
    """A killed rank 0 must not leave followers behind, computing or stuck in a collective."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Entry of the process launcher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to rank 0")
    arguments = parser.parse_args()
    _die_with_parent()
    # A terminal's Ctrl-C reaches the whole process group; rank 0 decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    code = follow(FrameSocket(socket.socket(fileno=arguments.fd)))
    # Gloo's threads may be stuck in a collective whose other side is gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
