"""Run the scenarios: `python -m tools.scenarios [FOLDER]`.

The hosts are in another module because a spawned process cannot import a package's `__main__`.
"""

import argparse
import sys
from pathlib import Path

from tools.scenarios.run import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.scenarios", description="Run the scenarios.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("data/scenarios"), help="emptied at the start"
    )
    sys.exit(main(parser.parse_args().folder))
