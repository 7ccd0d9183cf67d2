"""Measures the gains of exercise 8: the top-1 of students that copy each of the degraded teachers.

python exercises/staff/gains.py --seed 0 1 2     # Writes exercises/gains.json. 42 runs take 12 minutes.
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
from kit import Trial  # noqa: E402

from teachers import load_teacher  # noqa: E402


def main() -> None:
    record = {"number": 8, "arguments": sys.argv[1:], "prediction": "", "answer": ""}
    args = Namespace(out=Path("runs/exercises/e8"), record=record, trained=[])
    gains = {}  # This is top-1 by name.
    for name, worse in all_degraded(load_teacher("deit_nano")).items():
        words = ["--mode", "transfer", "--method", "copy", *sys.argv[1:]]
        folders = run.train_grid(args, Trial(name, words, teacher=worse))
        gains[name] = round(statistics.mean(run.runs.read_result(folder)["top1"] for folder in folders), 2)
    (EXERCISES / "gains.json").write_text(json.dumps(gains, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
