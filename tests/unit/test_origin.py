"""An origin by itself: what it sends, and when it registers."""

from __future__ import annotations

from itertools import count

from hotspare.protocol.origin import Lost, Origin, Parcel
from hotspare.table import ORIGIN_TTL_MS, Delete

SECOND_MS = 1000


class Driver:
    """An origin whose clock the test moves, and whose registrations and groups are answered at once."""

    def __init__(self) -> None:
        nonces = count(1)
        self.origin = Origin(lambda: b"nonce %d" % next(nonces))
        self.answers: list[list[int] | Lost] = []
        self.registrations = 0
        self.now_ms = 0

    def write(self) -> int:
        """Under which registration it was sent."""
        give_up_ms = self.now_ms + 5 * SECOND_MS
        self.origin.submit(Parcel([Delete(b"s1", 0)], 10, give_up_ms, self.answers.append), self.now_ms)
        if nonce := self.origin.wants_registration():
            self.registrations += 1
            self.origin.registered(nonce, self.registrations)
        (group,) = self.origin.take_groups(self.now_ms, self.now_ms)
        self.origin.answered(group.origin, group.first, [1])
        return group.origin


def test_a_writer_that_was_idle_for_long_registers_anew_before_it_sends():
    driver = Driver()
    assert driver.write() == 1

    driver.now_ms += ORIGIN_TTL_MS
    assert driver.write() == 2
    assert driver.answers == [[1], [1]]


def test_a_writer_keeps_its_registration_while_it_writes_now_and_then():
    driver = Driver()
    driver.now_ms = 10 * ORIGIN_TTL_MS
    for _ in range(20):
        assert driver.write() == 1
        driver.now_ms += ORIGIN_TTL_MS // 4
