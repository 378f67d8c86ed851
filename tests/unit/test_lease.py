"""The lease page: what readers in other processes believe, and what they must not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hotspare.cluster import clocks, lease
from hotspare.cluster.lease import (
    FILE,
    NEVER_MS,
    NOTHING_KNOWN,
    LeasePage,
    LeaseView,
    Limits,
)
from hotspare.protocol.clock import UNKNOWN_OFFSET_MS

BOOT = "this boot"
ENVIRONMENT, ANOTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2
FIRST = Limits(5_000, 100_000, 101_000)
SECOND = Limits(6_000, 100_001, 102_000)


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "boot_ms", lambda: 1_000)


def a_page(directory: Path, boot_id: str = BOOT, environment: str = ENVIRONMENT) -> LeasePage:
    return LeasePage.open(directory, environment, boot_id)


def test_a_reader_sees_what_the_node_wrote_last(tmp_path):
    page, view = a_page(tmp_path), LeaseView(tmp_path, BOOT)
    assert view.limits() == NOTHING_KNOWN
    for limits in (FIRST, SECOND):
        page.write("a server", limits, 1_000)
        assert view.limits() == limits
        assert LeaseView(tmp_path, BOOT).limits() == limits
    assert view.id == page.id


def test_what_readers_can_work_out_is_not_written_again(tmp_path):
    page = a_page(tmp_path)
    page.write("a server", FIRST, 1_000)
    before = (tmp_path / FILE).read_bytes()
    page.write("a server", FIRST._replace(floor_ms=101_500), 1_500)
    assert (tmp_path / FILE).read_bytes() == before
    page.write("a server", FIRST._replace(floor_ms=101_501), 1_500)
    assert (tmp_path / FILE).read_bytes() != before


@pytest.mark.parametrize("damaged", [0, 20, 50])
def test_a_value_that_was_half_written_is_not_seen(tmp_path, damaged):
    page = a_page(tmp_path)
    page.write("a server", FIRST, 1_000)
    page.write("a server", SECOND, 1_000)
    file = tmp_path / FILE
    content = bytearray(file.read_bytes())
    slots = [32, 96]
    newer = slots[page._sequence % 2]
    content[newer + damaged] ^= 1
    file.write_bytes(content)
    assert LeaseView(tmp_path, BOOT).limits() == FIRST
    # And whoever comes after a node that died in mid-write goes on with the older one.
    assert a_page(tmp_path).limits == FIRST


def test_a_page_that_is_torn_all_over_is_no_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_ATTEMPTS", 3)
    a_page(tmp_path).write("a server", FIRST, 1_000)
    file = tmp_path / FILE
    content = file.read_bytes()
    file.write_bytes(content[:32] + b"\x01" * (len(content) - 32))
    assert LeaseView(tmp_path, BOOT).limits().fresh_until_ms == NEVER_MS


def test_no_reader_ever_sees_a_torn_value(tmp_path, monkeypatch):
    """Every field of what is written follows from the first."""
    page, view = a_page(tmp_path), LeaseView(tmp_path, BOOT)
    ends = threading.Event()

    def write() -> None:
        n = 1
        while not ends.is_set():
            n += 1
            page.write("a server", Limits(n, 3 * n, 5 * n), 0)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        latest = 0
        for _ in range(20_000):
            fresh_until_ms, offset_ms, _ = view.limits()
            if fresh_until_ms >= 0:
                assert offset_ms == 3 * fresh_until_ms
                assert fresh_until_ms >= latest
                latest = fresh_until_ms
    finally:
        ends.set()
        writer.join()
    assert latest > 1


def test_of_another_boot_nothing_is_believed(tmp_path):
    a_page(tmp_path, "the boot before").write("a server", FIRST, 1_000)
    assert LeaseView(tmp_path, BOOT).limits() == NOTHING_KNOWN
    page = a_page(tmp_path)
    assert page.limits == NOTHING_KNOWN
    page.write("a server", SECOND._replace(fresh_until_ms=10), 1_000)
    assert LeaseView(tmp_path, BOOT).limits().fresh_until_ms == 10


def test_a_server_that_is_started_again_goes_on_with_its_lease(tmp_path):
    a_page(tmp_path).write("a server", FIRST, 1_000)
    view = LeaseView(tmp_path, BOOT)
    assert view.limits() == FIRST

    page = a_page(tmp_path)
    nothing_yet = Limits(NEVER_MS, UNKNOWN_OFFSET_MS, 0)
    page.write("a server", nothing_yet, 1_000)
    assert view.limits() == FIRST
    page.write("a server", SECOND, 1_000)
    assert view.limits() == SECOND
    page.write("a server", FIRST, 1_000)
    assert view.limits().fresh_until_ms == SECOND.fresh_until_ms, "a lease that was given lasts"


def test_another_server_begins_anew(tmp_path):
    page, view = a_page(tmp_path), LeaseView(tmp_path, BOOT)
    page.write("a server", FIRST, 1_000)
    assert view.limits().fresh_until_ms == FIRST.fresh_until_ms
    page.write("another server", Limits(NEVER_MS, 0, 0), 1_000)
    assert view.limits().fresh_until_ms == NEVER_MS


def test_cluster_time_never_goes_back_for_a_reader(tmp_path):
    page, view = a_page(tmp_path), LeaseView(tmp_path, BOOT)
    page.write("a server", FIRST, 1_000)
    assert view.limits().cluster_ms(1_000) == 101_000
    page.write("a server", Limits(7_000, 50_000, 60_000), 1_000)
    assert view.limits().cluster_ms(1_000) == 101_000
    other = LeaseView(tmp_path, BOOT)
    other.begin_at(200_000)
    assert other.limits().cluster_ms(1_000) == 200_000


def test_a_page_that_was_replaced_says_so(tmp_path):
    a_page(tmp_path)
    view = LeaseView(tmp_path, BOOT)
    assert view.is_in_place
    (tmp_path / FILE).unlink()
    assert not view.is_in_place
    a_page(tmp_path)
    assert not view.is_in_place


def test_the_page_of_another_environment_is_replaced(tmp_path):
    page = a_page(tmp_path)
    page.write("a server", FIRST, 1_000)
    view = LeaseView(tmp_path, BOOT)
    assert view.id == ENVIRONMENT
    another = a_page(tmp_path, environment=ANOTHER)
    assert another.limits == NOTHING_KNOWN
    assert not view.is_in_place
    assert LeaseView(tmp_path, BOOT).id == ANOTHER


def test_what_is_no_page_is_refused_to_readers_and_replaced_by_the_node(tmp_path):
    for content in (b"", b"x" * 20, b"x" * 500):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(ValueError, match=r"page|empty|length"):
            LeaseView(tmp_path, BOOT)
        page = a_page(tmp_path)
        page.write("a server", FIRST, 1_000)
        assert LeaseView(tmp_path, BOOT).limits() == FIRST


def test_nobody_but_its_user_may_read_it(tmp_path):
    a_page(tmp_path)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
