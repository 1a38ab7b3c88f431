"""``python -m mainspring.cli``: the ``mainspring`` command without its script."""

from __future__ import annotations

import sys

from mainspring.cli import main

sys.exit(main())
