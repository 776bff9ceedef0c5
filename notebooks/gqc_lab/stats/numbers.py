"""Numbers in texts: short, and zero only where they are."""


def decimals(value: float, places: int) -> str:
    """Format with ``places`` decimals and commas; with two digits where that would read as 0."""
    text = f"{value:,.{places}f}"
    return text if float(text.replace(",", "")) or not value else f"{value:.2g}"
