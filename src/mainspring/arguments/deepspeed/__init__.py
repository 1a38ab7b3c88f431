"""What `deepspeed=` asks for: the configuration, filled in from the options.

| module | question it answers |
|---|---|
| `reading` | what does the file, text, mapping or object say? |
| `launcher` | what does `accelerate launch` say, and does it agree? |
| `filling` | which settings do the options fill in, when, and where must both agree? |
| `words` | which keys and values does DeepSpeed know? |
| `rules` | what must hold between settings, and between them and the options? |
| `settings` | what does a run know of its configuration? |
| `hf` | how do scripts hold a configuration, and read that of their arguments? |
| `registry` | which configuration is in force while models are loaded? |
| `shown` | where did each value come from? |
"""

from __future__ import annotations

from mainspring.arguments.deepspeed.settings import DeepSpeedSettings, deepspeed_settings

__all__ = ["DeepSpeedSettings", "deepspeed_settings"]
