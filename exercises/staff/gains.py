"""Measures the gains of exercise 8: what a student reaches that copies each of the degraded teachers.

python exercises/staff/gains.py --seed 0 1 2     # writes exercises/gains.json: 42 runs, 12 minutes
"""

import json
import statistics
import sys
from argparse import Namespace
from pathlib import Path

EXERCISES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(EXERCISES.parent), str(EXERCISES)]

import run  # noqa: E402
from degraded import all_degraded  # noqa: E402

from teachers import load_teacher  # noqa: E402


def main() -> None:
    args = Namespace(exercise=8, words=sys.argv[1:], prediction="", hash="")
    gains = {}  # top-1 by name
    for name, worse in all_degraded(load_teacher("deit_nano")).items():
        words = ["--mode", "transfer", "--method", "copy", *args.words]
        folders = run.train_grid(args, name.replace(" ", "-"), words, teacher=worse)
        run.tell(name, folders)
        gains[name] = round(statistics.mean(run.runs.read_result(folder)["top1"] for folder in folders), 2)
    (EXERCISES / "gains.json").write_text(json.dumps(gains, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
