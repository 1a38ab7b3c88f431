"""What `deepspeed=` asks for: the configuration, filled in from the options.

| module | question it answers |
|---|---|
| `reading` | what does the file or mapping say? |
| `filling` | which settings do the options fill in, and where must both agree? |
| `settings` | what does a run know of its configuration? |
"""

from __future__ import annotations

from mainspring.arguments.deepspeed.settings import DeepSpeedSettings, deepspeed_settings

__all__ = ["DeepSpeedSettings", "deepspeed_settings"]
