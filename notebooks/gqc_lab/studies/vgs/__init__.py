"""Training where gradients are noisy, and streams whose variance is known: the scaler judged."""
