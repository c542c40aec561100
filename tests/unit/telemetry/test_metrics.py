"""Names, totals, and the route by which they are read."""

import urllib.request
from dataclasses import dataclass, replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from baton_telemetry import (
    PAGE_STATES,
    PREFIX,
    KvstoreMetrics,
    RoleMetrics,
    RouterMetrics,
    WorkerMetrics,
    serve_metrics,
)

ROLES: list[type[RoleMetrics]] = [RouterMetrics, WorkerMetrics, KvstoreMetrics]
OF_THE_PROCESS = ("process_", "python_")


@dataclass(frozen=True)
class Stats:
    total_pages: int = 100
    free_pages: int = 60
    cached_pages: int = 20
    owned_pages: int = 10
    referenced_pages: int = 5
    leased_pages: int = 3
    quarantined_pages: int = 2
    running: int = 4
    waiting: int = 1
    computed_tokens: int = 100
    generated_tokens: int = 10
    reused_tokens: int = 50
    fetched_tokens: int = 30
    retractions: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0


def value(metrics: RoleMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(PREFIX + name, labels)
    assert found is not None, name
    return found


@pytest.mark.parametrize("role", ROLES)
def test_every_name_has_the_prefix_a_text_and_a_unit_of_its_kind(role: type[RoleMetrics]) -> None:
    for family in role().registry.collect():
        if family.name.startswith(OF_THE_PROCESS):
            continue
        assert family.name.startswith(PREFIX)
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_tokens"))


@pytest.mark.parametrize("role", ROLES)
def test_two_of_a_role_live_in_one_process(role: type[RoleMetrics]) -> None:
    role()
    role()


def test_vllms_suffixes_are_kept() -> None:
    names = {family.name for role in ROLES for family in role().registry.collect()}
    for suffix in (
        "time_to_first_token_seconds",
        "time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prompt_tokens",  # the parser cuts a counter's _total off
        "generation_tokens",
        "request_success",
        "num_preemptions",
    ):
        assert PREFIX + suffix in names


def test_totals_become_increments_and_a_restart_starts_again() -> None:
    metrics = WorkerMetrics()
    metrics.pool(Stats())
    metrics.pool(Stats())
    assert value(metrics, "prompt_tokens_computed_total") == 100
    metrics.pool(replace(Stats(), computed_tokens=130))
    assert value(metrics, "prompt_tokens_computed_total") == 130
    metrics.pool(replace(Stats(), computed_tokens=7))
    assert value(metrics, "prompt_tokens_computed_total") == 137


def test_the_states_of_the_pages_add_up_to_the_pool() -> None:
    metrics = WorkerMetrics()
    metrics.pool(Stats())
    states = [value(metrics, "pool_pages", state=state) for state in PAGE_STATES]
    assert sum(states) == Stats().total_pages
    assert value(metrics, "pool_pages_reclaimable") == 80
    assert value(metrics, "kv_cache_usage_perc") == pytest.approx(0.2)
    metrics.pool(replace(Stats(), total_pages=0))
    assert value(metrics, "kv_cache_usage_perc") == 0


def test_groups_beside_the_tokens_are_told_apart() -> None:
    metrics = WorkerMetrics()
    metrics.group(1, free=3, cached=2, owned=1, referenced=0, leased=0)
    metrics.group(2, free=9, cached=0, owned=0, referenced=0, leased=0)
    assert value(metrics, "group_pages", group="1", state="free") == 3
    assert value(metrics, "group_pages", group="2", state="free") == 9


def test_a_finished_request_counts_once_everywhere() -> None:
    metrics = RouterMetrics()
    metrics.accepted(prompt_tokens=200)
    assert value(metrics, "num_requests_running") == 1
    metrics.finished(
        route="remote", reason="eos", cached_tokens=192, generated_tokens=11, ttft_s=0.5, e2e_s=1.5
    )
    assert value(metrics, "num_requests_running") == 0
    assert value(metrics, "prompt_tokens_total") == 200
    assert value(metrics, "prompt_tokens_cached_total") == 192
    assert value(metrics, "time_per_output_token_seconds_sum", route="remote") == pytest.approx(0.1)


def test_a_refused_request_was_never_running() -> None:
    metrics = RouterMetrics()
    metrics.failed("invalid_sampling", accepted=False)
    assert value(metrics, "num_requests_running") == 0
    metrics.accepted(1)
    metrics.failed("numeric", accepted=True)
    assert value(metrics, "num_requests_running") == 0


@pytest.mark.parametrize("role", ROLES)
def test_the_route_serves_what_prometheus_can_parse(role: type[RoleMetrics]) -> None:
    served = serve_metrics("127.0.0.1:0", role())
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/metrics", timeout=5) as page:
            text = page.read().decode()
        assert any(f.name.startswith(PREFIX) for f in text_string_to_metric_families(text))
    finally:
        served.close()
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{served.port}/metrics", timeout=1)


@pytest.mark.parametrize("address", ["", "9100", "localhost:", "h:port", "h:70000"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        serve_metrics(address, RouterMetrics())


def test_a_taken_port_is_an_error() -> None:
    served = serve_metrics("127.0.0.1:0", RouterMetrics())
    try:
        with pytest.raises(OSError):
            serve_metrics(f"127.0.0.1:{served.port}", RouterMetrics())
    finally:
        served.close()
