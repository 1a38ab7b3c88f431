"""Models on DeepSpeed: what ZeRO divides over the processes, and what it keeps elsewhere than on the device.

| module | question it answers |
|---|---|
| `engine` | how are model, optimizer and schedule set up, stepped, saved and loaded? |
| `starting` | how do the processes join, be it one alone, and how are DeepSpeed's engines started? |
| `parts` | what stands for an optimizer or schedule that DeepSpeed makes, steps and moves? |
| `gradients` | how is half an update forgotten, and what of a whole one is not to be kept? |
| `scaling` | by what are gradients of fp16 divided? |
| `states` | which checkpoints does DeepSpeed read by itself, and what do they hold? |
| `adopting` | how are the others put into its pieces? |
| `pieces` | where is what belongs to a parameter? |
| `files` | how are its files written and read? |
| `on_host` | what steps an optimizer on the host, and what needs a GPU? |
| `memory` | how much does a process keep, before the engine is there? |
| `divided` | what of a model that came in pieces? |
| `reading` | who reads pieces as if they were whole? |
| `leaving` | when is a model DeepSpeed's no longer? |
| `limits` | what cannot be, and how is it said? |
| `answers` | what of the library's own cannot be beside it? |
"""

from __future__ import annotations

from mainspring.engines.deepspeed.engine import DeepSpeed

__all__ = ["DeepSpeed"]
