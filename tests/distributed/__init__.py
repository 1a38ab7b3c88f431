"""Several processes over gloo. Many cases share one launch, which is nearly all imports."""
