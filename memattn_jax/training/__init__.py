"""Training and fine-tuning with the memorization gate."""
