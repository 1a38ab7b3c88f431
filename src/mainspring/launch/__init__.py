"""Starting a run as several processes: on one machine, on several, from a notebook.

| module | question |
|---|---|
| `job` | what is started: how many processes, where they meet, in which environment |
| `accelerate_file` | what an Accelerate configuration file comes to |
| `elastic` | how torch's elastic launcher starts it, passes on signals, and how it ended |
| `notebook` | how a function is started from a notebook |

A run needs nothing of this room: how it was started is read from its environment, in `arguments/runtime.py` and
`arguments/launchers.py`. So torchrun, `accelerate launch`, `srun` and `mpirun` start the same scripts.
"""

from __future__ import annotations
