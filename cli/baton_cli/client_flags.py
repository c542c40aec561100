"""The flags of a client, and the request fields they become."""

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `baton --help` does without protobuf
    from baton.v1 import inference_pb2 as pb

DEFAULT_TARGET = "127.0.0.1:7000"


def add_client_flags(parser: argparse.ArgumentParser) -> None:
    """--target, sampling, stopping, session."""
    parser.add_argument(
        "--target",
        default=os.environ.get("BATON_TARGET", DEFAULT_TARGET),
        metavar="HOST:PORT",
        help=f"the router (default $BATON_TARGET or {DEFAULT_TARGET})",
    )
    parser.add_argument("--model", default="", help="default: the one model served")
    parser.add_argument("--timeout", type=float, metavar="S", help="deadline of a request")
    parser.add_argument("--token", default=os.environ.get("BATON_TOKEN"), help="bearer token")
    parser.add_argument("--usage", action="store_true", help="print usage after each answer")

    sampling = parser.add_argument_group("sampling (what is not given takes the model's default)")
    for name, kind, text in (
        ("temperature", float, "0 is greedy"),
        ("top-p", float, "(0, 1]"),
        ("top-k", int, "0 keeps every token"),
        ("min-p", float, "[0, 1]"),
        ("frequency-penalty", float, "[-2, 2]"),
        ("presence-penalty", float, "[-2, 2]"),
        ("repetition-penalty", float, "> 0; 1 is off"),
        ("seed", int, "the same seed gives the same tokens"),
    ):
        sampling.add_argument(f"--{name}", type=kind, help=text)

    stopping = parser.add_argument_group("stopping")
    stopping.add_argument("--max-tokens", type=int, help="at most this many new tokens")
    stopping.add_argument("--stop", action="append", default=[], metavar="TEXT", help="repeatable")
    stopping.add_argument("--ignore-eos", action="store_true")

    session = parser.add_argument_group("session")
    session.add_argument("--session", default="", help="turns of one session share cached pages")
    session.add_argument("--tenant", default="", help="cached pages are never shared across these")


def sampling_of(options: argparse.Namespace) -> "pb.SamplingParams":
    """The sampling flags that were given; the router checks their values."""
    from baton.v1 import inference_pb2 as pb

    names = (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "seed",
    )
    given = {name: getattr(options, name) for name in names}
    for name in ("top_k", "seed"):
        if given[name] is not None and given[name] < 0:
            raise ValueError(f"--{name.replace('_', '-')} is {given[name]}, but not below 0")
    return pb.SamplingParams(**{name: value for name, value in given.items() if value is not None})


def stop_of(options: argparse.Namespace) -> "pb.StopParams":
    """The stopping flags."""
    from baton.v1 import inference_pb2 as pb

    stop = pb.StopParams(stop=options.stop, ignore_eos=options.ignore_eos)
    if options.max_tokens is not None:
        if options.max_tokens < 0:
            raise ValueError(f"--max-tokens is {options.max_tokens}, but not below 0")
        stop.max_tokens = options.max_tokens
    return stop
