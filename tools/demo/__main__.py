"""Run the demo: `python -m tools.demo [FOLDER]`.

The hosts are in another module because a spawned process cannot import a package's `__main__`.
"""

import sys
from pathlib import Path

from tools.demo.run import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/demo")))
