"""`python platform SPEC` runs a job spec from a checkout with nothing installed but the dependencies."""

import sys
from pathlib import Path

# Appended, not put first: what is installed and the standard library win over names in the checkout.
sys.path.append(str(Path(__file__).resolve().parents[1]))

try:
    from fisa_platform.cli import main
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed for {sys.executable}; run the spec with `uv run`, or activate the "
        "environment that has the dependencies (`. .venv/bin/activate`)"
    )

main()
