"""The page to try the service in a browser."""

from functools import cache
from importlib.resources import files

PAGE_HEADERS = {
    # Everything the page needs is in it; whatever a class name holds, nothing from elsewhere can run.
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; "
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@cache
def read_page() -> str:
    """The page's HTML, without any resource beside it."""
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")
