"""Write a reply as HTML. What the model or a file says goes through `escape`."""

from html import escape

from vidsieve.cli.app.service import Reply


def heading(reply: Reply) -> str:
    """Write what is above the answers: the error, or what was gained."""
    if reply.error:
        return f'<p role="alert" class="error">{escape(reply.error)}</p>'
    faults = "".join(f'<p role="alert" class="error">warning: {escape(fault)}</p>' for fault in reply.warnings)
    return f"{faults}<p><b>{escape(reply.gain)}</b><br>{escape(reply.tokens)}</p>"


def table(reply: Reply) -> str:
    """Write prompt lengths and times side by side, and when the kept tokens are shown; nothing after an error."""
    if reply.error:
        return ""
    titles = "".join(f'<th class="number">{escape(title)}</th>' for title in reply.titles)
    rows = "".join(_row(*row) for row in reply.rows)
    spans = f"<p>most of the kept tokens: {escape(reply.spans)}</p>"
    return f"<table><thead><tr><th></th>{titles}</tr></thead><tbody>{rows}</tbody></table>{spans}"


def _row(name: str, *values: str) -> str:
    cells = "".join(f'<td class="number">{escape(value)}</td>' for value in values)
    return f"<tr><td>{escape(name)}</td>{cells}</tr>"
