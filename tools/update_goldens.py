"""Rewrite the golden texts of tests/golden after a change that means to change them; read the diff before you commit.

python tools/update_goldens.py
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = ("tests/passes/analysis/test_find_groups.py", "tests/passes/test_graphs.py")


def main() -> int:
    """Let the golden tests write what they see."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "golden", *TESTS]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "UPDATE_GOLDENS": "1"}, check=False)
    subprocess.run(["git", "diff", "--stat", "--", "tests/golden"], cwd=ROOT, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
