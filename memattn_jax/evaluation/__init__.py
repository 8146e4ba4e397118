"""How well scores separate memorized from clean prompts: curves, rates and their intervals."""
