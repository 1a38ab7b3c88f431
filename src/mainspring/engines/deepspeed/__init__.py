"""Models on DeepSpeed: what ZeRO divides over the processes, and what it keeps elsewhere than on the device.

| module | question it answers |
|---|---|
| `engine` | how are model, optimizer and schedule set up, stepped, saved and loaded? |
| `starting` | how do the processes join, be it one alone? |
| `parts` | what stands for an optimizer or schedule that DeepSpeed makes and moves? |
| `states` | what do checkpoints hold, and how are they read back? |
"""

from __future__ import annotations

from mainspring.engines.deepspeed.engine import DeepSpeed

__all__ = ["DeepSpeed"]
