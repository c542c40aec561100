"""What a person sees while a cluster starts, and when it ends."""

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from baton_cli.cluster import Cluster, Member
from baton_cli.own_name import baton_as_typed
from baton_cli.processes import exit_text


class Display:
    """Progress and results of a cluster's start and stop, on one console."""

    def __init__(self, console: Console) -> None:
        self.console = console

    async def start(self, cluster: Cluster, timeout_s: float) -> None:
        """Starts the cluster with one line a process. Raises ClusterError."""
        self.console.print(f"[dim]logs and configuration: {cluster.run}[/]")
        columns = (SpinnerColumn(finished_text="[green]✓[/]"), TextColumn("{task.description}"))
        with Progress(*columns, TimeElapsedColumn(), console=self.console) as progress:
            lines: dict[str, TaskID] = {
                m.name: progress.add_task(f"{m.name} starts", total=1) for m in cluster.members
            }

            def ready(member: Member) -> None:
                progress.update(
                    lines[member.name],
                    description=f"{member.name} is ready on {member.address}",
                    completed=1,
                )

            await cluster.start(timeout_s, ready)

    def addresses(self, cluster: Cluster) -> None:
        """Who is where, and what to type next."""
        table = Table(box=None, pad_edge=False)
        for title in ("process", "address", "metrics", "pid", "ready after"):
            table.add_column(title)
        for member in cluster.members:
            table.add_row(
                member.name,
                member.address,
                f"http://{member.metrics}/metrics",
                str(member.child.pid if member.child else "-"),
                f"{member.ready_s:.1f} s" if member.ready_s is not None else "-",
            )
        self.console.print()
        self.console.print(table)
        target = cluster.router.address
        baton = baton_as_typed()
        self.console.print(
            f"\nThe front door is [bold]{target}[/]. In another terminal:\n"
            f"  {baton} chat --target {target}\n"
            f'  {baton} generate --target {target} "def main():"\n'
            f"{_gateway_lines(cluster)}"
            "Ctrl-C ends the cluster."
        )

    def failed(self, what: str, details: str) -> None:
        """Bad news, with log lines as they are."""
        self.console.print(f"[bold red]{escape(what)}[/]")
        if details:
            self.console.print(escape(details), soft_wrap=True)

    async def stop(self, cluster: Cluster) -> None:
        """Ends the cluster in order and says how each process took it."""
        start = time.monotonic()
        ended: list[str] = []

        def stopped(member: Member, code: int) -> None:
            ended.append(member.name if code == 0 else f"{member.name} ({exit_text(code)})")

        with self.console.status("stopping the front door, workers, kvstore"):
            await cluster.stop(stopped)
        if ended:
            self.console.print(f"stopped {', '.join(ended)} in {time.monotonic() - start:.1f} s")


def _gateway_lines(cluster: Cluster) -> str:
    gateway = cluster.gateway
    if gateway is None:
        return ""
    url = f"http://{gateway.address}"
    return (
        f"The gateway is [bold]{url}[/]. For clients of\n"
        f"  OpenAI:     OPENAI_BASE_URL={url}/v1  OPENAI_API_KEY=none\n"
        f"  Anthropic:  ANTHROPIC_BASE_URL={url}  ANTHROPIC_API_KEY=none\n"
        f"  its metrics: http://{gateway.metrics}/metrics\n"
    )
