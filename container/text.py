"""Text from files, made harmless for a terminal."""


def printable(text: str, keep: str = "") -> str:
    """Every character that could move a cursor, change a colour or fake a line, as an escape; those of `keep` stay."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
