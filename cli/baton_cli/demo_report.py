"""The table at the end of the demonstration, and what to try next."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from baton.v1 import inference_pb2 as pb
from baton_cli.demo_agent import Call
from baton_cli.demo_story import Story
from baton_cli.own_name import baton_as_typed


def print_next(model: str, console: Console) -> None:
    """What a person could type now."""
    baton = baton_as_typed()
    lines = (
        (f"{baton} up --model {model}", "the same cluster, and it stays up"),
        (f"{baton} chat --usage", "talk to it from another terminal"),
        (f"{baton} explain --model {model} --tp 2", "the program that the compiler made of it"),
        (f"{baton} doctor", "what this machine has"),
        ("make test", "everything this repository claims"),
    )
    width = max(len(command) for command, _ in lines)
    console.print("\n[bold]Next[/]")
    for command, what in lines:
        console.print(f"  {command:{width}}  [dim]{what}[/]", soft_wrap=True)


def print_report(calls: Sequence[Call], story: Story, console: Console) -> None:
    """One row for each request to the router."""
    table = Table(title="\nWhat each request cost", title_justify="left", box=None, pad_edge=False)
    # The one column that may be cut, so that the figures fit 80 columns.
    for title, width in (("turn", None), ("request", 16), ("route", None)):
        table.add_column(title, no_wrap=True, max_width=width)
    for title in ("prompt", "reused", "pages", "KiB", "out", "TTFT", "TPOT"):
        table.add_column(title, justify="right", no_wrap=True)
    for call in calls:
        table.add_row(*_row(call))
    console.print(table)
    console.print(
        "[dim]prompt, reused, out: tokens; reused ones were computed for an earlier request. "
        "pages, KiB: moved between processes by NIXL, because the reader lacked them.[/]"
    )
    if not story.live:
        console.print(
            "[dim]This checkpoint is random: its words mean nothing, the tool calls were "
            "scripted. The machinery is the real one.[/]"
        )


def _row(call: Call) -> tuple[str, ...]:
    usage = call.usage
    return (
        f"{call.turn + 1}.{call.step + 1}",
        call.what,
        pb.Route.Name(usage.route).removeprefix("ROUTE_").lower(),
        str(usage.prompt_tokens),
        str(usage.cached_tokens),
        str(usage.pages_moved),
        f"{usage.bytes_moved / 1024:.0f}",
        str(usage.generated_tokens),
        f"{usage.times.ttft_us / 1000:.0f} ms",
        _tpot(usage),
    )


def _tpot(usage: pb.Usage) -> str:
    if usage.generated_tokens < 2:
        return "-"
    return f"{usage.times.decode_us / (usage.generated_tokens - 1) / 1000:.1f} ms"
