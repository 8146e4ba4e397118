"""LoRA and its relatives: files of changes to a model's weights, read in every layout that people hold.

`files` opens one, `keys` says what its keys mean, `kinds` has the formulas, `scaling` reads PEFT's configs, and `merge`
finds the layers of a model that a file changes.
"""
