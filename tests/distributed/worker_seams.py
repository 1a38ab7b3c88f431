"""Run every probe of the seam table on this process of several, and write down what it did."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.contract.seam_probes import PROBES
from tests.contract.seams import SETTINGS, Outcome, changed, run
from tests.helpers.sides import SUBJECT


def main(out: Path) -> None:
    """Write `rank<r>.json`: per probe its calls, the parts of the outcome that changed, and its error if it raised."""
    rank = int(os.environ["RANK"])
    plain: dict[str, Outcome] = {}
    for name, setting in SETTINGS.items():
        plain[name], _ = run(SUBJECT, None, setting, out / "plain" / name)
    results: dict[str, dict[str, Any]] = {}
    for probe in PROBES:
        if probe.first_generation and SUBJECT.is_reference:
            continue
        try:
            outcome, hits = run(SUBJECT, probe, SETTINGS[probe.setting], out / "probes" / probe.__name__)
            changes = sorted(changed(plain[probe.setting], outcome))
            results[probe.__name__] = {"hits": hits, "changed": changes, "error": ""}
        except Exception:  # noqa: BLE001 - one broken seam must not hide what the others do
            results[probe.__name__] = {"hits": 0, "changed": [], "error": traceback.format_exc()[-1500:]}
        (out / f"rank{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
