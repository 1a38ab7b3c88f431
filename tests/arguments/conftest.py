"""A profile to look for defects with, for much longer than the test suite does, each time elsewhere:

python -m pytest tests/arguments/test_fuzz.py --hypothesis-profile=long
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("long", max_examples=20_000, derandomize=False)
