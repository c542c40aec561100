"""SMG as one more process of a cluster: the OpenAI and Anthropic face of the router."""

import importlib.util
import sys
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from baton_cli.tree import ConfigError
from baton_rpc import Address


class GatewayConfig(BaseModel):
    """The section `gateway` of the tree."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["smg"] = "smg"
    listen: Address  # HTTP
    metrics: Address
    router: Address
    # How SMG reads the model's text. These are Baton's own formats (docs/router.md):
    # <tool_call>{"name": ..., "arguments": {...}}</tool_call> and <think>...</think>.
    tool_call_parser: str = "qwen"
    reasoning_parser: str = "qwen3"
    drain_s: int = Field(default=10, ge=0)
    arguments: tuple[str, ...] = Field(default=(), description="further ones for `smg launch`")


def gateway_command(config: GatewayConfig) -> list[str]:
    """`smg launch ...` over one worker, the router. Raises ConfigError without SMG."""
    if importlib.util.find_spec("smg") is None:
        raise ConfigError(["gateway: smg is not installed: pip install 'baton-serve[gateway]'"])
    host, _, port = config.listen.rpartition(":")
    metrics_host, _, metrics_port = config.metrics.rpartition(":")
    # One worker: there is nothing to balance, and the router itself retries elsewhere.
    return [
        sys.executable, "-m", "smg", "launch",
        "--host", host, "--port", port,
        "--prometheus-host", metrics_host, "--prometheus-port", metrics_port,
        "--worker-urls", f"grpc://{config.router}",
        "--worker-startup-check-interval", "1",
        "--policy", "round_robin",
        "--tool-call-parser", config.tool_call_parser,
        "--reasoning-parser", config.reasoning_parser,
        "--shutdown-grace-period-secs", str(config.drain_s),
        *config.arguments,
    ]  # fmt: skip
