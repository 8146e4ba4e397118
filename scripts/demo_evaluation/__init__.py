"""What the demo model does: whether it memorizes what it should and nothing else, and what gives that away.

sampling.py     pictures, attention entropy and noise norm of every group of prompts
classifier.py   which objects a picture shows: a network trained on renderings, never on generated pictures
separation.py   AUROC of scores, with intervals over prompts; site and sign chosen on one half, reported on the other
tables.py       the numbers as Markdown
"""
