"""How long `realgen --help` takes: a person's wait, and its ratio to the least that a typer command line can take.

    python benchmarks/start.py [--pairs 11]

Both start a fresh interpreter, in turns, one right after the other; medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

HELP = [sys.executable, "-m", "realgen.apps.cli", "--help"]
LEAST = [sys.executable, "-c", "import typer, typer.main"]


def seconds(command: list[str]) -> float:
    """Wall time of a command."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Time pairs and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=11)
    pairs = [(seconds(HELP), seconds(LEAST)) for _ in range(parser.parse_args().pairs + 1)][1:]  # the first warms up
    print(
        json.dumps(
            {
                "seconds_help": round(statistics.median(ours for ours, _ in pairs), 3),
                "seconds_least": round(statistics.median(least for _, least in pairs), 3),
                "ratio": round(statistics.median(ours / least for ours, least in pairs), 2),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
