"""From a dataset to the batches of one process: columns, collators, samplers, loaders, and the place in an epoch."""
