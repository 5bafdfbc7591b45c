"""Makes OUT/report.html of a run: `python -m minifunc.report --run out/default`."""

import sys

from minifunc.report.page import main

if __name__ == "__main__":
    sys.exit(main())
