"""Settings per transport: what doctor shows is what holds."""

import pytest

from baton_transfer import Transport, configure_ucx
from baton_transfer.doctor import examine
from baton_transfer.ucx import SETTINGS, post_copies, progress_delay_us


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in SETTINGS.values():
        for name in settings:
            # Set first, so that whatever the code under test sets is undone.
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("transport", "tls", "delay_us"),
    [("local", "tcp,cma", 10_000), ("tcp", "tcp", 1_000), ("rdma", "all", 1_000)],
)
def test_each_transport_has_its_settings(transport: str, tls: str, delay_us: int) -> None:
    holds = configure_ucx(Transport(transport))
    assert holds["UCX_TLS"] == tls
    assert holds["UCX_TCP_USER_TIMEOUT"] == "5s"
    assert progress_delay_us() == delay_us
    assert post_copies() == (transport == "local")


def test_what_the_operator_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")
    assert configure_ucx(Transport.LOCAL)["UCX_TLS"] == "tcp"
    assert progress_delay_us() == 1_000


def test_doctor_shows_settings_delay_and_mode_of_every_transport() -> None:
    found = {topic: (well, text) for topic, well, text in examine()}
    well, text = found["ucx"]
    assert well
    assert "UCX_TLS=tcp,cma" in text
    assert "progress thread every 10 ms, sync mode strict" in text
    assert "UCX_TLS=tcp" in found["ucx, tcp"][1]
    assert "progress thread every 1 ms" in found["ucx, tcp"][1]
    assert "UCX_TLS=all" in found["ucx, rdma"][1]
    assert "devices:" in found["ucx, rdma"][1]
    assert found["loopback"][0], found["loopback"]
