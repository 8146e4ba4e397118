"""Text for a terminal: users' text shortened, on one line and without control characters; numbers with their nouns."""

import unicodedata


def printable(text: str, length: int | None = None) -> str:
    r"""The text on one line, as a terminal may show it.

    Control characters (ANSI escapes, line ends), format characters (bidirectional overrides, zero-width ones), line
    and paragraph separators, half characters and unassigned ones become escapes, as \x1b or \u202e. Everything that is
    printed passes through here: a prompt log comes from strangers.

    Args:
      text: of a user, or a message that quotes one.
      length: characters of the result at most; what is cut off becomes an ellipsis.
    """
    if length is None:
        return "".join(map(_escape, text))
    shown, used = [], 0
    for character in text[: length + 1]:  # a prompt may have megabytes
        shown.append(_escape(character))
        used += len(shown[-1])
    if used <= length:
        return "".join(shown)
    while used > length - 1:
        used -= len(shown.pop())
    return "".join(shown) + "…"


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 prompt", "2 prompts"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _escape(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
