"""Let the tests of this folder import pages.py and support_matrix.py, which are scripts' parts and no package."""

import sys
from pathlib import Path

# --import-mode=importlib puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))
