"""`python platform SPEC` runs a job spec from a checkout with nothing installed but the dependencies."""

import sys
from pathlib import Path

# Appended, not put first: what is installed and the standard library win over names in the checkout.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from fisa_platform.cli import main

main()
