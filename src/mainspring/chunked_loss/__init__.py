"""The loss of causal language models from hidden states: logits of all tokens are never there at once.

| module | holds |
|---|---|
| `gradients` | the loss of a linear layer in pieces, with its gradients |
| `kernels` | which implementation computes it: torch's, Liger's, or that one |
| `head` | a model whose output layer gives the loss rather than logits |
| `trial` | whether a model's loss is the same in that way: it is asked, with a few tokens |
"""

from mainspring.chunked_loss.head import LossHead
from mainspring.chunked_loss.trial import loss_head

__all__ = ["LossHead", "loss_head"]
