"""The one exception for what the user got wrong."""


class InputError(ValueError):
    """Input that cannot be used: one line that says what is wrong, where, and what would be right.

    The command lines print it and exit with status 2; any other exception is a defect and keeps its traceback.
    """
