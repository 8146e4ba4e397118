"""Single files in the layout of CompVis and Stability AI: every part of a model in one file, under the older names."""
