"""The one exception that a user is meant to see."""


class InputError(ValueError):
    """Bad input. The message is one plain sentence: the option or file, its value, what was expected."""
