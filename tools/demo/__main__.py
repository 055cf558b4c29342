"""Run the demo: `python -m tools.demo [FOLDER]`.

The hosts are in another module because a spawned process cannot import a package's `__main__`.
"""

import argparse
import sys
from pathlib import Path

from tools.demo.run import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description="Run the demo.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("data/demo"), help="emptied at the start"
    )
    sys.exit(main(parser.parse_args().folder))
