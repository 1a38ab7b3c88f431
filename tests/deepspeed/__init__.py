"""DeepSpeed, on the real engine."""
