"""The kinds of layer that a profile tells apart."""

KINDS = ("convolution", "linear", "self_attention", "cross_attention", "other")  # the first four are the models' scopes
ROUNDS = 2  # that a profile is the mean of
