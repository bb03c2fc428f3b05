"""Waiting for what another thread or process does: as long as a busy machine takes, and not for ever."""

import time


def until(condition, seconds=240.0, what=lambda: "it did not come to be"):
    """Return when `condition()` is true. Fails, with the text that `what()` gives, where it is not within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.01)
