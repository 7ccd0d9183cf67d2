"""These tests try the checkers on every exercise: what holds, what fails, and with which sentence.

A solution holds at 50 seeds; a stub is not begun; each wrong answer fails with the sentence in its first line; each
sentence is provoked by a wrong answer; mutants of the solutions die, or survivors.txt has a reason; every command of a
page parses. The last part runs check.py as learners and lecturers do.
"""

import ast
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

STAFF = Path(__file__).resolve().parent
EXERCISES, ROOT = STAFF.parent, STAFF.parent.parent
sys.path[:0] = [str(ROOT), str(EXERCISES), str(STAFF)]

import check  # noqa: E402
import run  # noqa: E402
from examine import Line, Report, examine, exercises, load, try_laws  # noqa: E402
from experiments import e1, e8  # noqa: E402
from kit import Answer, Draw, Wrong, hold  # noqa: E402

import eval  # noqa: E402
import train  # noqa: E402
from model import Routing, ViT  # noqa: E402
from support import data  # noqa: E402
from support.errors import UserError  # noqa: E402
from support.matching import layout  # noqa: E402
from teachers import find_teacher  # noqa: E402

KNOWN = exercises()
SOLVED = [number for number in KNOWN if (STAFF / "solutions" / f"e{number}.py").is_file()]
RIGHT = sorted(STAFF.glob("right/e[0-9]_*.py"))
WRONG = sorted([*STAFF.glob("wrong/e[0-9]_*.py"), *STAFF.glob("near/e[0-9]_*.py")])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Uses one thread, on which small tensors are faster."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def solution(number: int) -> Path:
    return STAFF / "solutions" / f"e{number}.py"


def number_of(path: Path) -> int:
    return int(path.name[1])


def found(path: Path, seed: int = 0, **options) -> list[Line]:
    """Returns what the laws say about a file."""
    return list(try_laws(KNOWN[number_of(path)].laws, load(path), seed, **options))


# ---- Laws, solutions, wrong answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SOLVED)
def test_the_solution_holds(number):
    most = getattr(KNOWN[number].laws, "DRAWS", 12)
    for seed in range(50):
        lines = found(solution(number), seed, draws=most if seed < 2 else min(4, most))
        assert [line for line in lines if line.state != "ok"] == [], seed
    for seed in range(3):
        lines = found(solution(number), seed, dtype=torch.float32)
        assert [line for line in lines if line.state != "ok"] == [], f"float32, {seed}"


@pytest.mark.parametrize("path", RIGHT, ids=lambda path: path.stem)
def test_another_right_answer_holds_too(path):
    for seed in range(5):
        assert [line for line in found(path, seed) if line.state != "ok"] == [], seed
    assert [line for line in found(path, dtype=torch.float32) if line.state != "ok"] == [], "float32"


@pytest.mark.parametrize("number", KNOWN)
def test_the_stub_is_not_begun(number, tmp_path):
    exercise = KNOWN[number]
    assert {line.state for line in found(exercise.stub)} <= {"not begun", "waits"}
    (tmp_path / "e.py").write_text(exercise.stub.read_text() + "\n")
    assert examine(exercise, tmp_path / "e.py", 0, seconds=0.001).state == "not begun"  # It starts no process.


@pytest.mark.parametrize("number", KNOWN)
def test_an_exercise_is_complete(number):
    exercise, page = KNOWN[number], KNOWN[number].page.read_text()
    assert page.count("\n") <= 75
    assert f"{exercise.points} points" in page.splitlines()[0]
    assert page.lower().startswith(f"# exercise {number}: {exercise.title.lower()}")
    assert (
        f"| {number} | {exercise.title} | {exercise.time} | {exercise.points} |"
        in (EXERCISES / "README.md").read_text()
    )
    assert len(exercise.laws.HINTS) == 3 and number in SOLVED and (EXERCISES / f"experiments/e{number}.py").is_file()
    assert sum(number_of(path) == number and path.parent.name == "wrong" for path in WRONG) >= 3
    assert any(number_of(path) == number and path.parent.name == "near" for path in WRONG)
    asked = {getattr(node, "name", None) for node in ast.parse(exercise.stub.read_text()).body}
    assert asked >= set(exercise.laws.RETURNS)
    lines = [law.__doc__.strip() for law in exercise.laws.LAWS]
    assert len(set(lines)) == len(lines) and not any("\n" in line or line.endswith(".") for line in lines)
    for law in exercise.laws.LAWS:
        for need in getattr(law, "needs", []):
            assert exercise.laws.LAWS.index(need) < exercise.laws.LAWS.index(law)


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_a_wrong_answer_meets_its_sentence(path):
    first, why, *_ = path.read_text().splitlines()
    assert first.startswith("# says: ") and why.startswith("# ")
    lines = try_laws(KNOWN[number_of(path)].laws, load(path), 0)
    sentence = next((line.sentence for line in lines if line.state == "WRONG"), "it holds")  # One reads this first.
    assert first.removeprefix("# says: ") in sentence


@pytest.mark.parametrize("number", SOLVED)
def test_every_sentence_is_provoked(number):
    laws = KNOWN[number].laws
    sites = {}  # These are the first and last line of each `raise Wrong`.
    for node in ast.walk(ast.parse(Path(laws.__file__).read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == "Wrong":
            sites[node.lineno] = node.end_lineno
    raised = set()
    for path in [path for path in WRONG if number_of(path) == number]:
        answer = Answer(load(path), laws.RETURNS)
        for law in laws.LAWS:  # A law that waits is tried, too.
            try:
                hold(law, answer, 0, draws=min(6, getattr(laws, "DRAWS", 12)))
            except Exception as error:  # A law that should wait may raise anything.
                frames = traceback.extract_tb(error.__traceback__)
                raised |= {frame.lineno for frame in frames if frame.filename == laws.__file__}
    silent = [first for first, last in sites.items() if raised.isdisjoint(range(first, last + 1))]
    assert silent == [], f"no wrong answer provokes the sentences of laws/e{number}.py in these lines"


# ---- Mutants of the solutions ----------------------------------------------------------------------------------------

SWAPPED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """Yields what could replace a node: another operator or none, another number, no sign, no transpose."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        yield ast.BinOp(node.right, node.op, node.left)
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        yield ast.BinOp(node.left, SWAPPED[type(node.op)](), node.right)
        yield node.left
        yield node.right
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        yield ast.Compare(node.left, [SWAPPED[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert | ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Attribute) and node.attr in ("mT", "T"):
        yield node.value


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Yields (what was changed, the changed file) for every single change."""
    tree = ast.parse(source)
    places = []  # (statement, parent, field, index)
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]:
        for statement in [node for node in ast.walk(function) if isinstance(node, ast.stmt) and node is not function]:
            places += [(statement, *place) for place in places_in(statement)]
    for statement, parent, field, index in places:
        held = getattr(parent, field)
        old = held if index is None else held[index]
        for new in variants(old):
            before = ast.unparse(statement).splitlines()[0]
            put(parent, field, index, new)
            changed = ast.unparse(statement).splitlines()[0], ast.unparse(tree)
            put(parent, field, index, old)
            yield f"{before}  ->  {changed[0]}", changed[1]


def places_in(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Yields where expressions are below a statement, but not below statements in it, nor in types and docstrings."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.stmt):
                yield node, field, index
                yield from places_in(child)


def put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("number", SOLVED)
def test_mutants_die(number, tmp_path):
    survivors = []
    for change, source in mutants(solution(number).read_text()):
        path = tmp_path / f"e{number}.py"
        path.write_text(source)
        lines = try_laws(KNOWN[number].laws, load(path), 0)
        if not any(line.state == "WRONG" for line in lines):  # The first one is enough.
            survivors.append(f"e{number}: {change}")
    listed = [line for line in (STAFF / "survivors.txt").read_text().splitlines() if line.startswith(f"e{number}: ")]
    assert all(line.partition("  # ")[2] for line in listed), "each survivor has a reason"
    assert sorted(survivors) == sorted(line.partition("  # ")[0] for line in listed)


# ---- Commands --------------------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    """Returns (page, command) for every command in the pages and in README."""
    found = []
    for page in sorted(EXERCISES.glob("*.md")):
        text = page.read_text()
        blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`(python [^`\n]+)`", text)
        found += [(page.name, line.strip()) for line in lines if line.strip().startswith("python ")]
    return sorted(set(found))


@pytest.mark.parametrize("page, command", commands())
def test_a_command_parses(page, command):
    _, script, *words = shlex.split(command, comments=True)
    if script == "exercises/run.py":
        run.parse_arguments(words)
        if "--" in words:
            train.plan_runs(train.parse_arguments(words[words.index("--") + 1 :]))
    elif script == "train.py":
        train.plan_runs(train.parse_arguments(words))
    else:
        {"exercises/check.py": check, "eval.py": eval}[script].parse_arguments(words)


# ---- Runs ------------------------------------------------------------------------------------------------------------

SMALL = "--train-images 40 --batch-size 20 --epochs 1".split()
RUNS = {  # Each has the words for the exercise, and those for train.py.
    1: ("--condition 10", "--mode transfer --method distill"),
    2: ("", "--mode transfer --method distill"),
    3: ("--keep 0.5", ""),
    4: ("--radius 1", "--mode transfer --method copy"),
    5: ("--control other_image no_image", "--method copy"),
    6: ("", ""),
    7: ("", ""),
    8: ("", ""),
}


@pytest.fixture
def small_runs(tmp_path, monkeypatch):
    """Makes runs take a second, below tmp_path, with few images and an untrained teacher."""
    usual, teacher = data.matching, ViT(find_teacher("deit_nano").config).eval().requires_grad_(False)

    def few(count, seed):
        return usual(min(count, 256), seed)

    def untrained(name, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(ViT(find_teacher(name).config).state_dict(), path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "matching", few)
    monkeypatch.setattr("experiments.e3.matching", few)
    monkeypatch.setattr("experiments.e3.layout", lambda count, seed: layout(min(count, 256), seed))
    monkeypatch.setattr(train, "build_teacher", lambda settings: teacher)
    monkeypatch.setattr("teachers.load_teacher", lambda name: teacher)
    monkeypatch.setattr("teachers.pretrain", untrained)


def words_for(number: int, answers: Path, *more: str) -> list[str]:
    """Returns what is typed after run.py. Exercise 3 looks at the runs that are there."""
    own, for_train = RUNS[number]
    looked_at = map(str, Path("runs").glob("deit_nano*")) if number == 3 else []
    return [str(number), *looked_at, *own.split(), "--answers", str(answers), "--", *for_train.split(), *SMALL, *more]


def hand_in(folder: Path, number: int, figures: str) -> None:
    """Writes an answer with something below each heading."""
    texts = ("more", f"python exercises/run.py {number}", figures, "It follows.", "If not.")
    parts = [f"## {heading}\n{text}\n" for heading, text in zip(check.HEADINGS, texts, strict=True)]
    (folder / f"e{number}.md").write_text("\n".join(parts))


def test_headings_are_found_as_people_write_them_and_nothing_else_is_one(tmp_path):
    page = tmp_path / "e4.md"
    page.write_text(
        "# Mine\n## Prediction:\n### In figures\nless\n## command\npython a\n## Figures\n```\n# radius seed\n```\n"
        "## What would refute this?\nmore"
    )
    assert check.written(page) == {
        "Prediction": "### In figures less",
        "Command": "python a",
        "Figures": "``` # radius seed ```",
        "What would refute this": "more",
    }


UNCALLED = ["2 -- --mode transfer --method copy", "4 --radius 1 -- --mode baseline", "6 -- --mode baseline"]


@pytest.mark.parametrize("words", UNCALLED)
def test_runs_in_which_the_function_is_not_called_do_not_count(words, small_runs, tmp_path):
    number, rest = int(words[0]), words[1:].split()
    shutil.copy(solution(number), tmp_path)
    hand_in(tmp_path, number, "")
    words = [words[0], "--answers", str(tmp_path), *rest, *SMALL]
    with pytest.raises(UserError, match="your function was never called"):
        run.main(words)
    assert not list(Path("runs").rglob("config.json"))


def test_a_watched_function_may_be_called_by_its_parameters_names():
    calls, module = [], SimpleNamespace(windowed=lambda r, config, radius: (r, radius))
    assert run.watched(module, KNOWN[4].laws, calls).windowed(1, config=2, radius=3) == (1, 3)
    assert calls == ["windowed"]


def test_a_layer_that_reads_without_the_function_is_called_too(small_runs, tmp_path):
    source = solution(7).read_text().replace("def read_with_null", "def reading").replace("read_with_null", "reading")
    (tmp_path / "e7.py").write_text(source + "\n\ndef read_with_null(r, v, null):\n    return reading(r, v, null)\n")
    hand_in(tmp_path, 7, "")
    run.main(words_for(7, tmp_path))
    assert len(list(Path("runs/exercises/e7").rglob("result.json"))) == 6


def test_the_gains_of_exercise_8_are_measured(small_runs, tmp_path, monkeypatch):
    import gains

    monkeypatch.setattr(gains, "EXERCISES", tmp_path)
    monkeypatch.setattr(gains, "load_teacher", run.train.build_teacher)
    monkeypatch.setattr(gains, "all_degraded", lambda teacher: {"flat 0": teacher})
    monkeypatch.setattr(sys, "argv", ["gains.py", *SMALL])
    gains.main()
    assert json.loads((tmp_path / "gains.json").read_text())["flat 0"] >= 0


TROUBLE = {
    "def other(): pass": "there is no windowed in the file",
    "def windowed(r, config, radius): return r + 'x'": "does not work yet .*python exercises/check.py 4",
    "def windowed(r, config, radius): raise NotImplementedError": "does not work yet",
}


@pytest.mark.parametrize("source", TROUBLE)
def test_an_answer_that_fails_in_a_run_is_one_line(source, small_runs, tmp_path):
    (tmp_path / "e4.py").write_text(source)
    hand_in(tmp_path, 4, "")
    with pytest.raises(UserError, match=TROUBLE[source]):
        run.main(words_for(4, tmp_path))


@pytest.mark.parametrize("words", ["4 --keep 0", "8 RUN", "3", "9", "4 --radius -1", "5 --control none"])
def test_run_refuses_words_of_another_exercise(words):
    with pytest.raises(UserError):
        run.parse_arguments(words.split())


@pytest.mark.parametrize("number", [1, 2, 4, 5, 6])
def test_run_waits_for_a_prediction_then_trains_and_records_it(number, small_runs, tmp_path, capsys):
    shutil.copy(solution(number), tmp_path)
    words = words_for(number, tmp_path)
    page = tmp_path / f"e{number}.md"
    page.write_text("# Mine\n\n## Prediction\n")
    with pytest.raises(UserError, match="no prediction yet"):
        run.main(words)
    page.write_text("# Mine\n\n## Prediction\n\nAbout half.\n")
    run.main(words)
    assert re.search(r"top-1 \d+\.\d \(", capsys.readouterr().out)
    for path in (tmp_path / "runs" / "exercises").rglob("config.json"):
        config = json.loads(path.read_text())
        exercise = config["exercise"]
        assert exercise["number"] == number and exercise["prediction"] == check.prediction_hash("About half.")
        assert config["settings"]["device"] == "cpu" and path.with_name("result.json").is_file()

    def epochs_of(*words: str) -> set:
        run.main(list(words))
        results = (tmp_path / "runs" / "exercises").rglob("result.json")
        return {json.loads(path.read_text())["epochs"] for path in results}

    # With other words, the results of the first ones are not shown.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "exercises").rglob("result.json")}
    assert epochs_of(*words) == {1} and all(path.stat().st_mtime_ns == time for path, time in times.items())
    with pytest.raises(UserError, match="epochs 1 there and 2 here.*--fresh"):
        run.main([*words[:-1], "2"])
    assert epochs_of(*words[:-1], "2", "--fresh") == {2}
    with open(tmp_path / f"e{number}.py", "a") as answer:
        answer.write("# another answer")
    assert epochs_of(*words[:-1], "1") == {1}


def test_the_solutions_with_their_runs_and_written_answers_get_all_points(small_runs, tmp_path, capsys, monkeypatch):
    person = tmp_path / "class" / "Ada"
    person.mkdir(parents=True)
    words = "train.py --mode transfer --method distill --seed 0 1 2".split()
    monkeypatch.setattr(sys, "argv", [*words, *SMALL])
    train.main()
    for number in KNOWN:
        shutil.copy(solution(number), person)
        hand_in(person, number, "")
        capsys.readouterr()
        run.main(words_for(number, person, "--seed", "0", "1", "2"))
        hand_in(person, number, capsys.readouterr().out)
    shutil.copytree("runs/exercises", person / "runs")
    reports = {number: Report(found(person / f"e{number}.py", draws=2)) for number in KNOWN}
    monkeypatch.setattr(check, "examine", lambda exercise, path, seed: reports[exercise.number])
    table = tmp_path / "scores.csv"
    assert check.main(["--grade", str(person.parent), "--csv", str(table), "--salt", "1"]) == 0
    (row,) = csv.DictReader(table.open(encoding="utf-8", newline=""))
    assert row["remarks"] == "" and row["total"] == "100.0"
    assert [float(row[f"e{number}"]) for number in KNOWN] == [exercise.points for exercise in KNOWN.values()]

    # What exercises 3 and 8 write keeps its first prediction until the answer changes.
    for number in (3, 8):
        configs = list(Path("runs/exercises", f"e{number}").glob("*/config.json"))
        page = person / f"e{number}.md"
        page.write_text(page.read_text().replace("more", "less"))
        run.main(words_for(number, person))
        sealed = {json.loads(path.read_text())["exercise"]["prediction"] for path in configs}
        assert len(configs) == 3 and sealed == {check.prediction_hash("more")}
    with open(person / "e8.py", "a") as answer:
        answer.write("# another answer")
    run.main(words_for(8, person))
    record = json.loads(Path("runs/exercises/e8/seed0/config.json").read_text())["exercise"]
    assert record["prediction"] == check.prediction_hash("less")


def test_what_an_experiment_makes_is_on_the_device_of_the_routing():
    """Here the device is "meta", whose tensors have no values. To mix them with a CPU's raises an error."""
    args = Namespace(condition=[10.0], train=[])
    (trial,) = e1.run(args, load(solution(1)))
    there = Routing(*torch.empty(2, 2, 3, 5, 4, device="meta"))
    transfer = SimpleNamespace(teacher_routings=lambda images, drops: {0: there})
    trial.change(transfer)
    assert transfer.teacher_routings(None)[0].k.device.type == "meta"


def test_the_averaged_weights_have_the_averaged_gates(small_runs, tmp_path):
    from safetensors.torch import load_file

    shutil.copy(solution(6), tmp_path)
    hand_in(tmp_path, 6, "")
    run.main(words_for(6, tmp_path, "--ema", "0.5", "--lr", "0.1"))
    (folder,) = Path("runs/exercises/e6/gates").iterdir()
    last, average = (load_file(folder / f"student{end}.safetensors") for end in ("", "_ema"))
    gates = [name for name in last if name.endswith("raw_gate")]
    assert len(gates) == 4 and last.keys() == average.keys()
    for name in gates:
        assert last[name].count_nonzero() and average[name].count_nonzero() and not average[name].equal(last[name])


def test_ranks_share_a_place_and_a_constant_score_has_no_order():
    assert e8.rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) == 0
    assert e8.rank_correlation([5, 6, 7, 8], [1, 20, 300, 4000]) == pytest.approx(1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: their covariance is 4.5 / 4, and their variances are 4.5 / 4 and 5 / 4.
    assert e8.rank_correlation([0, 3, 3, 9], [1, 2, 3, 4]) == pytest.approx((4.5 / 5) ** 0.5)


# ---- Manners: what kit.py says ---------------------------------------------------------------------------------------

MANNERS = {
    "def double(x): return 2 * x": "",
    "def twice(x): return 2 * x": "There is no function double in the file",
    "def double(x): return y": "double raised NameError: name 'y' is not defined, on line 1 (def double(x): return y), "
    "given x = a tensor (2, 3).",
    "def double(): return 2": "before its first line, given x = a tensor (2, 3).",
    "import sys\ndef double(x): sys.exit(3)": "double raised SystemExit: 3, on line 2",
    "def double(x):\n  x *= 2\n  return x": "double changed its input x",
    "def double(x): x.resize_(1)": "double changed its input x",
    "def double(x): return None": "double returned None where a tensor (2, 3) is expected",
    "def double(x): return 2 * x[0]": "double returned a tensor (3,) where a tensor (2, 3) is expected",
    "def double(x): return 2 * x.float()": "torch.float32 where torch.float64 is expected",
    "def double(x): return x / 0": "double returned numbers that are not finite",
    "def double(x):\n  while True:\n    try: 1\n    except Exception: pass": "did not return within 0.1 s",
}


@pytest.mark.parametrize("source", MANNERS)
def test_manners(source, tmp_path):
    def law(answer: Answer, draw: Draw) -> None:
        """it doubles"""
        answer.double(torch.ones(2, 3, dtype=draw.dtype))

    path = tmp_path / "e.py"
    path.write_text(source)
    answer = Answer(load(path), {"double": lambda x: x}, seconds=0.1)
    if not MANNERS[source]:
        return hold(law, answer, 0)
    with pytest.raises(Wrong, match=re.escape(MANNERS[source])):
        hold(law, answer, 0)


def test_what_must_come_back_may_be_parts():
    from kit import misfit

    from model import Routing

    x = torch.zeros(2)
    assert (
        misfit((x, x), (x, x)) == "" and misfit(1.0, 0.0) == "" and misfit(torch.nn.Identity(), torch.nn.Module) == ""
    )
    assert misfit([x, x], [x]) == "[a tensor (2,), a tensor (2,)] where [a tensor (2,)] is expected"
    assert misfit((x, x, None), Routing(x, x)) == "(a tensor (2,), a tensor (2,), None) where Routing(" + (
        "q: (2,), k: (2,), bias: None) is expected"
    )
    assert "k: (1,)" in misfit(Routing(x, x[:1]), Routing(x, x))
    assert "torch.float32 where torch.float64" in misfit(Routing(x, x), Routing(x, x.double()))
    assert "plain number" in misfit(x[0], 0.0) and "Module is expected" in misfit(x, torch.nn.Module)


def test_plugged_changes_what_a_student_copies():
    from dataclasses import replace

    from kit import plugged

    from model import ViT, ViTConfig
    from transfer import AttentionTransfer

    config = ViTConfig(img_size=16, patch_size=8, dim=8, depth=2, heads=2, num_classes=3)
    student, teacher, images = ViT(config), ViT(replace(config, num_classes=0)), torch.randn(2, 3, 16, 16)
    transfer, blocks = AttentionTransfer(student, teacher, "copy").eval(), []
    before, _ = transfer(images)
    same, _ = plugged(transfer, lambda block, routing: blocks.append(block) or routing)(images)
    other, _ = plugged(transfer, lambda block, routing: routing._replace(q=-routing.q))(images)
    assert blocks == [0, 1, 0, 1] and same.equal(before) and not other.allclose(before)


# ---- check.py, as learners and teachers call it ----------------------------------------------------------------------


def test_start_hint_and_table(tmp_path, capsys):
    folder, place = tmp_path / "answers", ["--answers", str(tmp_path / "answers")]
    assert check.main(place) == 1
    assert "begin with: python exercises/check.py --start" in capsys.readouterr().out
    assert check.main(["--start", *place]) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"e{n}.{end}" for n in KNOWN for end in ("md", "py")
    )
    assert list(check.written(folder / "e1.md")) == list(check.HEADINGS)
    (folder / "e1.py").write_text("mine")
    (folder / "e2.md").write_text("## Prediction\n<!-- of what? -->\nless")
    assert check.main(["--start", *place]) == 0 and (folder / "e1.py").read_text() == "mine"
    (folder / "e1.py").unlink()
    capsys.readouterr()
    assert check.main(place) == 1
    table = capsys.readouterr().out
    assert table.count("not begun") == len(KNOWN) and "1 of 5" in table and "# Exercise 1: two routings" in table
    for number in (1, 2, 3):
        assert check.main(["1", "--hint", *place]) == 0
        assert capsys.readouterr().out == f"hint {number} of 3: {KNOWN[1].laws.HINTS[number - 1]}\n"
    assert check.main(["1", "--hint", *place]) == 0
    assert capsys.readouterr().out.count("of 3: ") == 3 and check.hints_given(KNOWN[1], folder) == 4
    assert check.main(["1", *place]) == 1
    assert "not begun: its page is exercises/e1.md" in capsys.readouterr().out
    (folder / ".hints").write_bytes(b"\xff broken")
    assert check.hints_given(KNOWN[1], folder) == 0


def test_bad_files_are_answered_and_the_others_checked(tmp_path, capsys, monkeypatch):
    """Checks each file in a process of its own, as learners do."""
    reports = {}

    def noted(exercise, path, seed):
        reports[exercise.number] = examine(exercise, path, seed)
        return reports[exercise.number]

    monkeypatch.setattr(check, "examine", noted)
    bad = {
        1: solution(1).read_text()
        + "\nimport os\nfor _ in range(10_000):\n    print('here' * 99)\nos.system('echo there')",
        2: "def reverse_kl(log_p, logits:\n    return 1",
        3: "import os\nif os.fork() == 0:\n    while True: pass\n\ndef rollout(maps, keep):\n    os._exit(0)",
    }
    for number, text in bad.items():
        (tmp_path / f"e{number}.py").write_text(text)
    assert check.main(["--answers", str(tmp_path)]) == 1
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    states = {row[1].strip(): row[5].strip() for row in table}
    assert [states[str(number)] for number in bad] == ["holds", "WRONG", "WRONG"]
    assert reports[1].printed.startswith("herehere") and len(reports[1].printed) == 1000
    assert reports[2].mistake.startswith("The file does not parse: '(' was never closed, on line 1")
    assert reports[3].mistake.startswith("It ended its own process before all laws were tested.")
    check.print_report(KNOWN[1], tmp_path / "e1.py", reports[1])
    assert "your file printed:\n  herehere" in capsys.readouterr().out


def test_a_process_that_does_not_listen_is_ended(tmp_path):
    (tmp_path / "e1.py").write_text("while True:\n    try:\n        while True: pass\n    except BaseException: pass")
    report = examine(KNOWN[1], tmp_path / "e1.py", 0, seconds=0.5)
    assert report.mistake == "It did not finish within 0.5 s. Is there an endless loop?"


def test_one_clear_answer_each(tmp_path, capsys, monkeypatch):
    def answer(exercise, path, seed):
        """Returns what a process of its own would report."""
        try:
            return Report(list(try_laws(exercise.laws, load(path), seed)))
        except Wrong as error:
            return Report(mistake=str(error))

    monkeypatch.setattr(check, "examine", answer)
    path = tmp_path / "e4.py"
    told = {
        "def windowed(r, config:\n  return": "  WRONG  The file does not parse: '(' was never closed, on line 1",
        "\0": "  WRONG  The file does not parse: ",
        "raise ValueError('no')": "  WRONG  The file raised ValueError: no, on line 1",
        "quit(3)": "  WRONG  The file raised SystemExit: 3, on line 1",
        "def windowed(r, config, radius): return 3": "returned 3 where Routing(",
        (STAFF / "wrong" / "e4_flattened.py").read_text(): "  -      6 more laws wait for this one\n",
        "windowed = 4": "There is no function windowed in the file",
    }
    for source, sentence in told.items():
        path.write_text(source)
        assert check.main(["4", "--answers", str(tmp_path)]) == 1
        output = capsys.readouterr().out
        assert sentence in output and "Traceback" not in output, output
        assert output.startswith("exercise 4, blinkers (90 min): ")
        assert output.endswith("hint 1 of 3: python exercises/check.py 4 --hint\n")
    path.write_text(solution(4).read_text())
    assert check.main(["4", "--answers", str(tmp_path)]) == 0
    assert f"all {len(KNOWN[4].laws.LAWS)} laws hold" in capsys.readouterr().out


MISUSE = {
    "99": "there is no exercise 99",
    "four": "invalid int value: 'four'",
    "--hint": "a hint for which exercise?",
    "1 --start": "one thing at a time",
    "--grade here": "--grade DIR and --csv FILE go together",
    "--csv here.csv": "--grade DIR and --csv FILE go together",
    "--grade /nowhere --csv here.csv": "/nowhere is not a folder",
    "--grade . --csv .": "cannot write .: it is a folder",
    "--strat": "unrecognized arguments: --strat",
}


@pytest.mark.parametrize("words", MISUSE)
def test_misuse_is_a_line(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(MISUSE[words])):
        check.main(words.split())


def test_misuse_ends_with_status_2():
    done = subprocess.run([sys.executable, "exercises/check.py", "99"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and re.fullmatch(
        r"error: there is no exercise 99.*\n", done.stderr
    )


def note_runs(person: Path, number: int, prediction: str = "more", seeds: tuple = (0, 1, 2)) -> None:
    for seed in seeds:
        folder = person / "runs" / f"seed{seed}"
        folder.mkdir(parents=True)
        exercise = {"number": number, "prediction": check.prediction_hash(prediction)}
        (folder / "config.json").write_text(json.dumps({"settings": {"seed": seed}, "exercise": exercise}))
        (folder / "result.json").write_text(json.dumps({"top1": 95.123, "epochs": 50}))


def table_of(folder: Path, table: Path) -> dict[str, dict]:
    """Returns the rows of a class, by name."""
    assert check.main(["--grade", str(folder), "--csv", str(table), "--salt", "2026"]) == 0
    return {row["name"]: row for row in csv.DictReader(table.open(encoding="utf-8", newline=""))}


FIGURES = "seed 0: 95.12, seed 1: 96.00, seed 2: 94.5"


def test_a_class_is_marked(tmp_path, capsys):
    """Marks three submissions (right, half right, without runs) and folders with strange names."""
    right, half, bare = (tmp_path / "class" / name for name in ("Ada", "Ben, jr.", "=Cem"))
    for folder in (right, half, bare / "answers", tmp_path / "class" / "empty\n\x1b[2J", tmp_path / "class" / ".git"):
        folder.mkdir(parents=True)
    (tmp_path / "class" / "a file").write_text("")
    shutil.copy(solution(1), right)
    hand_in(right, 1, FIGURES)
    note_runs(right, 1)
    shutil.copy(STAFF / "wrong" / "e1_inverse.py", half / "e1.py")
    hand_in(half, 1, "50 epochs, of which 50 were 50.0")
    note_runs(half, 1, prediction="written afterwards", seeds=(0,))
    (half / "e2.py").mkdir()
    shutil.copy(solution(1), bare / "answers")
    (bare / "e1.md").write_text("## Prediction\nnot where the answers are")

    rows = table_of(tmp_path / "class", tmp_path / "scores.csv")
    assert "salt 2026" in capsys.readouterr().out
    assert list(rows) == ["'=Cem", "Ada", "Ben, jr.", "empty??[2J"]
    laws = len(KNOWN[1].laws.LAWS)
    assert rows["Ada"]["e1"] == "5.0" and rows["'=Cem"]["e1"] == "3.0" and rows["Ada"]["remarks"] == ""
    assert rows["Ben, jr."]["e1"] == f"{5 * (0.6 * (laws - 1) / laws + 0.4 / 4):.1f}"
    lacks = "e1: lacks the prediction before the run, three seeds, figures from its runs"
    assert rows["Ben, jr."]["remarks"] == lacks
    assert rows["empty??[2J"]["total"] == "0.0" and rows["empty??[2J"]["remarks"] == "no answers found"


FORGED = """
import os, pathlib, sys
pathlib.Path(sys.argv[-1]).write_text({report}, "utf-8", "surrogatepass")
os._exit(0)
"""
REPORTS = {  # These are expressions of Python.
    "deep": "'[' * 200_000",
    "huge": """'[[], "", ' + '9' * 400 + ']'""",
    "long": """'"' + 'x' * 300_000""",
    "not a report": "'3'",
    "other laws": """'[[["all is well", "ok", ""]], "", ""]'""",
    "letters that are none": r"""'[[], "\\ud800 =1+1", ""]'""",
}


def test_what_marking_cannot_read_costs_that_exercise_alone(tmp_path):
    def failing(exercise, path, seed):
        raise RecursionError

    points, remark = check.mark(tmp_path, KNOWN[1], "1", failing)
    assert points == 0 and remark == "e1: could not be marked; look at it yourself (RecursionError)"
    (tmp_path / "e1.py").write_text("#" * 200_000)
    assert examine(KNOWN[1], tmp_path / "e1.py", 0).mistake == "The file has more than 100,000 bytes."
    assert len(check.plain("x" * 5000)) == 1000 and check.plain("=1\n") == "'=1?"


def test_the_sample_submission_gets_all_points():
    assert check.mark(STAFF / "sample" / "Ada", KNOWN[4], "2026", examine) == (10.0, "")
    assert len(KNOWN[4].laws.LAWS) == 10, "marks.md names this number"


def test_the_teachers_accuracy_is_no_figure_of_ones_own(tmp_path):
    note_runs(tmp_path, 1)
    for path in tmp_path.rglob("result.json"):
        path.write_text(json.dumps({"top1": 95.123, "teacher_top1": 99.88}))
    hand_in(tmp_path, 1, "99.88, 1.1 and 2.2")
    assert check.missing_parts(tmp_path / "e1.md", tmp_path, 1) == ["figures from its runs"]


def test_no_submission_stops_the_class(tmp_path, capsys):
    """Each does harm in its own way, but the honest one, the last of the class, gets all points."""
    people = tmp_path / "class"
    honest = people / "Zoe"
    honest.mkdir(parents=True)
    shutil.copy(solution(1), honest)
    hand_in(honest, 1, FIGURES)
    note_runs(honest, 1)
    for name, report in REPORTS.items():
        (people / name).mkdir()
        (people / name / "e1.py").write_text(FORGED.format(report=report))
    (people / "a large file").mkdir()
    with open(people / "a large file" / "e1.py", "wb") as file:
        file.truncate(2**40)  # It takes no room on the disk.
    runs = {
        "a large number": ("config.json", '{"settings": {"seed": %s}}' % ("9" * 400)),
        "a larger number": ("result.json", '{"top1": 95.12, "n": %s}' % ("9" * 400)),
        "a number too large": ("result.json", '{"top1": %s}' % ("9" * 5000)),
        "brackets": ("config.json", "[" * 200_000),
        "a list": ("result.json", "[]"),
    }
    for name, (file, text) in runs.items():
        shutil.copytree(honest, people / name)
        (people / name / "runs" / "seed1" / file).write_text(text)
    shutil.copytree(honest, people / "comments")
    (people / "comments" / "e1.md").write_text("<!--" * 1_000_000)
    if hasattr(os, "mkfifo"):
        shutil.copytree(honest, people / "a pipe")
        (people / "a pipe" / "runs" / "seed1" / "result.json").unlink()
        os.mkfifo(people / "a pipe" / "runs" / "seed1" / "result.json")
    rows = table_of(people, tmp_path / "scores.csv")
    assert rows["Zoe"]["e1"] == "5.0" and len(rows) == len(list(people.iterdir()))
    assert {rows[name]["e1"] for name in REPORTS} == {"0.0"}
    for name in ("deep", "long", "not a report", "other laws"):
        assert "It ended its own process" in rows[name]["remarks"], name
    # A run that cannot be read does not count: the written answer has two seeds left.
    assert rows.pop("a larger number")["e1"] == "5.0"  # It is not a figure, and the run has others.
    found = [(row["e1"], row["remarks"]) for name, row in rows.items() if name in runs]
    assert found == [("4.5", "e1: lacks three seeds")] * 4


def test_the_old_table_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    (tmp_path / "class" / "Ada").mkdir(parents=True)
    table = tmp_path / "scores.csv"
    table.write_text("old")
    monkeypatch.setattr(check, "mark", stopped)
    with pytest.raises(KeyboardInterrupt):
        check.main(["--grade", str(tmp_path / "class"), "--csv", str(table)])
    assert table.read_text() == "old"


def test_an_answer_that_needs_much_memory_harms_only_itself(tmp_path):
    path = tmp_path / "e3.py"
    path.write_text("import torch\ndef rollout(maps, keep): return torch.ones(2**20, 2**10) + 1")  # 4 GiB
    report = examine(KNOWN[3], path, 0)
    assert any("memory" in line.sentence for line in report.lines), report


def test_as_many_answers_at_once_as_cores_and_memory_allow(monkeypatch):
    gigabytes = 1024**3
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 64 * gigabytes, raising=False)
    for told, expected in {"max": 31, str(8 * gigabytes): 3, str(gigabytes): 1}.items():
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_text", lambda path, encoding, told=told: told)
            assert check.workers() == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5}, raising=False)
    assert check.workers() <= 2


def test_only_seconds_of_computing_count(tmp_path):
    """A busy machine makes no right answer too slow: this one sleeps for longer than it may compute."""
    path = tmp_path / "e1.py"
    path.write_text("import time\ntime.sleep(2.5)\n" + solution(1).read_text())
    assert examine(KNOWN[1], path, 0, seconds=2).state == "holds"
