"""`--style NAME`: values that go well together, where no flag says otherwise."""

from __future__ import annotations

from cyclopts import App, ArgumentCollection, Token

from rhapsode.inference.styles import STYLES


def fill_in_style(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Put a style's values where no flag stands. cyclopts calls this between parsing a command and checking it."""
    by_name = {argument.name: argument for argument in arguments}
    style = by_name.get("--style")
    if style is None or not style.tokens:
        return
    chosen = next((values for name, values in STYLES.items() if name == style.tokens[0].value), {})
    for name, value in chosen.items():
        option = f"--{name.replace('_', '-')}"
        if not by_name[option].tokens:
            by_name[option].append(Token(keyword=option, value=str(value), source="--style"))
