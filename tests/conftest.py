"""What holds for every test."""

from __future__ import annotations

import os
import signal

import hypothesis

# The surroundings of whoever runs the tests must not configure the nodes in them.
for variable in [name for name in os.environ if name.startswith("HOTSPARE_")]:
    del os.environ[variable]

# Nor may a background job, which ignores Ctrl-C and hands that on to whatever the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: how long an example takes says something about the machine. In CI the same examples every time.
hypothesis.settings.register_profile(
    "hotspare", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("hotspare")
