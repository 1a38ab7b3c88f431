"""What a model does differently while it is trained, switched on before and off after it.

recompute   activations are computed again in the backward pass, instead of being kept, by the model's own means
layers      the same, by its layers, where it has none
neftune     noise on the embeddings
liger       kernels of the package liger-kernel take the place of the model's own code
"""
