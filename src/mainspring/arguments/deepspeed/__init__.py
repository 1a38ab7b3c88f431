"""What `deepspeed=` asks for: the configuration, filled in from the options.

| module | question it answers |
|---|---|
| `settings` | what does a run know of its DeepSpeed configuration? |
"""

from __future__ import annotations

from mainspring.arguments.deepspeed.settings import DeepSpeedSettings, deepspeed_settings

__all__ = ["DeepSpeedSettings", "deepspeed_settings"]
