"""What the demo model does: whether it memorizes what it should and nothing else, and what gives that away.

evaluation.py   the model, its samples, and what is measured on them
sampling.py     pictures, attention entropy and noise norm of prompts
likeness.py     how alike pictures are: correlation, SSCD
classifier.py   trains what finds objects in pictures: on renderings, never on generated pictures
graded.py       the ladder's rungs and the templates
separation.py   AUROC of scores, with intervals over prompts; site and sign chosen on one half, reported on the other
sections.py     the tables
tables.py       numbers as Markdown
"""
