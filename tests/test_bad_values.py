"""Six hundred bad values, over the settings and arguments of all verbs: each is refused in a line, and nothing more.

Which values they are follows from SEED. A case is bad by construction: it is refused with exit code 2 and one line, in
time, without a traceback; it writes nothing, and nothing that it names is executed.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_coco
from PIL import Image

import eval_suite.cli
import spark.cli
from eval_suite.classification.finetune_config import FinetuneConfig
from eval_suite.classification.probe_config import KnnConfig, ProbeConfig
from eval_suite.study.cluster import ClusterConfig
from eval_suite.study.config import StudyConfig
from spark.config.recipe import declarations, load_recipe
from spark.config.values import Text, declared, text_is_wanted
from spark.methods.registry import read_recipe
from spark.methods.spark.config import SparKConfig

SEED = 12
CASES = 600
SECONDS = 30
EXECUTED = "executed"  # the file that whatever is executed would leave
NO_NUMBERS = (
    "nan", ".nan", ".inf", "-.inf", "inf", "1e300", "-1e300", str(2**64), str(-(2**65)), "9" * 5000, "word", "[]",
    "{}", "{a: 1}", "[[1]]", "2024-01-01", "1 2", "0x", "''", "true", "1e", "${seed.x}", "${oc.env:HOME}", "[",
    "\ud800", "a\0b", f"!!python/object/apply:os.system ['touch {EXECUTED}']",
    "*alias", "&a [*a]", "- 1", "1_0_x", "\x07",
)  # fmt: skip
NO_TEXT = ("x" * 300, "a/" * 2100 + "b", "\0", "a\0b", "\ud800", "x" * 70_000)
NO_TEXT_IN_FILES = ("[a, b]", "{a: b}", f"!!python/object/apply:os.system ['touch {EXECUTED}']", "!!binary aGVsbG8=",
                    "${nope}", "${seed.x}", "[", "!!set {a}", "&a [*a]")
NO_LISTS = ("3", "word", "{a: 1}", "[.nan]", "[.inf, 1]", "[[1]]", "[word]", "[1e300, 1, 1]", "[" * 60, f"[{2**64}]")
NO_MAPPINGS = ("3", "word", "[1]", "true", "{a: .nan}", "{a: {b: .inf}}", "{1: {2: [.nan]}}", f"{{a: {2**70}}}",
               "{a: 'x\0'}")  # fmt: skip
NO_FILES = (
    "", "x" * 300, "\0", "\ud800", "nowhere/at/all.yaml", ".", "/dev/null", "fifo.yaml", "42",
    "{scalar}", "{list}", "{bomb}", "{deep}", "{cyclic}", "{object}", "{new}", "{binary}",
    "{twice}", "{utf16}", "{tab}", "{big}", "{own}", "{cut}",
)  # fmt: skip
FILES = {
    "scalar": "42", "list": "- 1\n- 2\n", "deep": "a: " + "{b: " * 3000, "cyclic": "a: &a [*a]\n",
    "bomb": 'a: &a ["l","l","l","l","l","l","l","l","l"]\n' + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "object": f'out: !!python/object/apply:os.system ["touch {EXECUTED}"]\n',
    "new": f'!!python/object/new:subprocess.Popen [["touch","{EXECUTED}"]]\n',
    "binary": "out: !!binary aGVsbG8=\n", "twice": "out: a\nout: b\n", "tab": "a:\n\t- b\n",
    "big": "out: x\nseed: 1" + "0" * 5000, "own": "base: own.yaml\n", "cut": "train: {epochs: 3",
}  # fmt: skip
# What a wrong setting stands among.
TINY = ["out=run", "device=cpu", "data.workers=0"]
PRETRAINING = [*TINY, "data.root=photos", "model.name=test_resnet", "model.drop_path=0", "data.input_size=[32,32]",
               "decoder.width=32", "train.batch=2", "train.epochs=1", "train.warmup_epochs=0"]
LABELED = [*TINY, "data.root=labeled", "model.name=test_resnet", "data.input_size=32"]
KNN = [*LABELED, "neighbours=[1]"]
FINETUNING = [*LABELED, "model.drop_path=0", "train.epochs=1", "train.warmup_epochs=0", "train.batch=2"]
PROBING = [*LABELED, "train.epochs=1", "train.batch=4"]


class Case(NamedTuple):
    """A command line, of `spark` or `spark-eval`."""

    program: Callable[[Sequence[str]], int]
    words: list[str]


class TooSlowError(BaseException):
    """No `except Exception` may keep it."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with images, a COCO set and unsound files."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    for folder in ("photos", "labeled/train/a", "labeled/train/b", "labeled/val/a", "labeled/val/b"):
        Path(folder).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(pixels).save(f"{folder}/{number}.png")
    tiny_coco.make(Path("coco"))
    for name, text in FILES.items():
        Path(f"{name}.yaml").write_text(text, encoding="utf-8")
    Path("utf16.yaml").write_bytes("out: x\n".encode("utf-16"))
    os.mkfifo("fifo.yaml")
    Path("empty.yaml").write_text("{}")
    Path("study.yaml").write_text(
        "out: studies/a\nmodels: [resnet18]\ninitialisations: {scratch: {}}\n"
        "tasks: {knn: {task: knn, recipe: empty.yaml, settings: {data.root: labeled}}}\n"
    )
    return tmp_path


def test_what_the_bad_values_stand_among_is_sound(place: Path) -> None:
    """Otherwise all would be refused for something else."""
    read_recipe("empty.yaml", PRETRAINING)
    for schema, known in ((FinetuneConfig, FINETUNING), (ProbeConfig, PROBING), (KnnConfig, KNN)):
        load_recipe(schema, "empty.yaml", known)
    assert eval_suite.cli.main(["study", "plan", "study.yaml"]) == 0


@pytest.mark.slow
def test_six_hundred_bad_values_are_refused(place: Path) -> None:
    rng = random.Random(SEED)
    makers = [*settings_of_verbs(), *arguments_of_verbs()]
    before, counted, wrong = tree(place), Counter[str](), []
    for number in range(CASES):
        case = makers[number % len(makers)](rng)
        fault = tried(case)
        after = tree(place)
        if left := after - before:
            fault = f"{fault or ''} left behind: {sorted(left)[:3]}"
        before = after
        counted[fault.split(":")[0] if fault else "refused"] += 1
        if fault:
            wrong.append(f"{' '.join(word[:80] for word in case.words)!r}: {fault}")
    print(f"{CASES} bad values: {dict(counted)}")
    assert not wrong, "\n".join(wrong)


def tried(case: Case) -> str | None:
    """Return what is wrong with how a program takes a case."""
    told = io.StringIO()
    try:
        with in_time(), contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            code = case.program(case.words)
    except TooSlowError:
        return "hangs"
    except BaseException as error:  # what would be a traceback
        return f"traceback: {type(error).__name__} {str(error)[:300]}"
    lines = [line for line in told.getvalue().splitlines() if line.startswith("error:")]
    if code == 0:
        return "accepted"
    if code != 2 or len(lines) != 1 or "Traceback" in told.getvalue():
        return f"told badly: exit code {code}, {told.getvalue()[-300:]!r}"
    return None if len(lines[0]) < 2000 else f"too long: {lines[0][:200]}"


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tree(place: Path) -> set[str]:
    return {str(path) for path in place.rglob("*") if not path.name.startswith("setting")}


Maker = Callable[[random.Random], Case]


def settings_of_verbs() -> Iterator[Maker]:
    """Yield what makes cases of a wrong setting, given on the command line or in a recipe."""
    spark_main, eval_main = spark.cli.main, eval_suite.cli.main
    for program, verb, schema, known in (
        (spark_main, ["pretrain"], SparKConfig, PRETRAINING),
        (spark_main, ["bench-data"], SparKConfig, PRETRAINING),
        (eval_main, ["finetune"], FinetuneConfig, FINETUNING),
        (eval_main, ["probe"], ProbeConfig, PROBING),
        (eval_main, ["knn"], KnnConfig, KNN),
    ):
        yield lambda rng, p=program, v=verb, s=schema, k=known: a_setting(rng, p, v, declarations(s), k)
        yield lambda rng, p=program, v=verb, k=known: Case(p, [*v, a_file(rng), *k])
    for verb in ("plan", "run", "status"):
        yield lambda rng, v=verb: a_study(rng, ["study", v], declarations(StudyConfig))
    yield lambda rng: a_cluster(rng, declarations(ClusterConfig))
    yield a_detection
    yield lambda rng: Case(eval_main, ["detect", a_file(rng), "out=run"])


def a_setting(
    rng: random.Random, program: Any, verb: list[str], hints: dict[str, Any], known: list[str]
) -> Case:
    """One wrong setting among sound ones."""
    key = rng.choice(sorted(hints))
    in_file = rng.random() < 0.5
    value = a_value(rng, hints[key], in_file)
    others = [word for word in known if not word.startswith(f"{key}=")]
    if not in_file:
        return Case(program, [*verb, "empty.yaml", *others, f"{key}={value}"])
    return Case(program, [*verb, written(f"{key}: {value}\n"), *others])


def a_value(rng: random.Random, hint: Any, in_file: bool) -> str:
    """A value that a setting of this type cannot have."""
    base, limits = declared(hint)
    origin = typing.get_origin(base) or base
    if origin in (list, tuple):
        of_text = text_is_wanted((typing.get_args(base) or (Any,))[0])  # 3 and nan can be names
        return rng.choice([value for value in NO_LISTS if not of_text or value[:1] != "[" or value[:2] == "[["])
    if origin is dict:
        return rng.choice(NO_MAPPINGS)
    if base is bool or bool in typing.get_args(hint):
        return rng.choice([value for value in NO_NUMBERS if value != "true"])
    if base is str:
        texts = [value for value in NO_TEXT if len(value) > 65_535 or limits or ("x" not in value and "/" not in value)]
        return rng.choice([*texts, *(NO_TEXT_IN_FILES * in_file)])
    return rng.choice(NO_NUMBERS)


def written(text: str) -> str:
    Path("setting.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    return "setting.yaml"


def a_study(rng: random.Random, verb: list[str], hints: dict[str, Any]) -> Case:
    key = rng.choice([key for key in sorted(hints) if key != "models"])  # a model may be called nan
    if rng.random() < 0.3:
        return Case(eval_suite.cli.main, [*verb, a_file(rng)])
    if rng.random() < 0.5:
        return Case(eval_suite.cli.main, [*verb, "study.yaml", f"{key}={a_value(rng, hints[key], False)}"])
    text = Path("study.yaml").read_text(encoding="utf-8")
    place = rng.choice(["studies/a", "[resnet18]", "{scratch: {}}", "{}", "knn", "labeled", "empty.yaml"])
    bad = rng.choice(["[[.nan]]", ".inf", f"[{2**64}]", "x" * 300, "[", "&a [*a]", "${a}", "3: {4: 5}"])
    return Case(eval_suite.cli.main, [*verb, written(text.replace(place, bad, 1))])


def a_cluster(rng: random.Random, hints: dict[str, Any]) -> Case:
    key = rng.choice(sorted(hints))
    if rng.random() < 0.3:
        return Case(eval_suite.cli.main, ["study", "plan", "study.yaml", "--cluster", a_file(rng)])
    value = a_value(rng, hints[key], True)
    file = written(f"scheduler: local\n{key}: {value}\n" if key != "scheduler" else f"scheduler: {value}\n")
    return Case(eval_suite.cli.main, ["study", "plan", "study.yaml", "--cluster", file])


def a_detection(rng: random.Random) -> Case:
    keys = {"train.max_iter": int, "train.seed": int, "optimizer.lr": float, "train.clip_grad_norm": float,
            "dataloader.train.total_batch_size": int, "train.amp.enabled": bool, "train.log_period": int,
            "test.tta_scales": list, "optimizer.weight_decay": float, "data.root": NAME, "out": NAME, "init": NAME,
            "model.pixel_mean": list, "resume": bool, "eval_only": bool, "lr_multiplier.warmup_length": float}
    key = rng.choice(sorted(keys))
    value = a_value(rng, keys[key], False)
    words = [*tiny_coco.TINY, "out=run", "data.root=coco"]
    others = [word for word in words if not word.startswith(f"{key}=")]
    return Case(eval_suite.cli.main, ["detect", tiny_coco.RECIPE, *others, f"{key}={value}"])


NAME = typing.Annotated[str, Text(part=255, empty=False)]


def a_file(rng: random.Random) -> str:
    name = rng.choice(NO_FILES)
    return f"{name[1:-1]}.yaml" if name.startswith("{") else name


def arguments_of_verbs() -> Iterator[Maker]:
    """Yield what makes cases of a wrong argument."""
    wrong = types.SimpleNamespace(number="number", path="path", word="word")
    lines = {
        "check": (["test_resnet"], {"--input-size": wrong.number, "--engine": wrong.word, "--method": wrong.word}),
        "bench": (["test_resnet", "--rounds", "1", "--batch", "1", "--input-size", "32", "--decoder-width", "32"], {
            "--batch": wrong.number, "--mask-ratio": wrong.number, "--decoder-width": wrong.number,
            "--precision": wrong.word, "--device": wrong.word, "--rounds": wrong.number, "--ratios": wrong.number,
            "--out": wrong.path, "--method": wrong.word}),
        "bench-data": (["empty.yaml", "data.root=photos", "data.workers=0"], {"--seconds": wrong.number}),
        "models": (["test_resnet"], {"--table": wrong.path, "--missing": None}),
        "visualize vanishing": (["test_resnet", "photos/0.png"], {
            "--input-size": wrong.number, "--mask-ratio": wrong.number, "--seed": wrong.number, "--engine": wrong.word,
            "--out": wrong.path}),
        "visualize reconstruct": (["nowhere", "photos"], {
            "--seeds": wrong.number, "--mask-ratios": wrong.number, "--out": wrong.path, "--device": wrong.word}),
        "convert": (["nowhere", "converted"], {"--to": wrong.word, "--model": wrong.word, "--method": wrong.word}),
    }  # fmt: skip
    for verb, (words, options) in lines.items():
        yield lambda rng, v=verb, w=words, o=options: Case(spark.cli.main, [*v.split(), *w, *an_option(rng, o)])
    yield lambda rng: Case(spark.cli.main, ["convert", a_file(rng), "converted", "--to", "timm"])
    models = (*NO_TEXT, "", "nowhere.py:A", "[1]", "1e3", "..", "a:b")
    yield lambda rng: Case(spark.cli.main, ["check", rng.choice(models)])
    yield lambda rng: Case(spark.cli.main, ["visualize", "vanishing", "test_resnet", a_file(rng), "--out", "out"])
    yield lambda rng: Case(spark.cli.main, ["visualize", "reconstruct", a_file(rng), "photos", "--out", "out"])
    yield lambda rng: Case(eval_suite.cli.main, ["report", rng.choice(NO_TEXT), "--out", "report"])
    yield lambda rng: Case(eval_suite.cli.main, ["report", "photos", "--out", an_option(rng, {"": "path"})[1]])
    yield lambda rng: Case(eval_suite.cli.main, ["diff", a_file(rng), "empty.yaml"])
    yield lambda rng: Case(eval_suite.cli.main, ["diff", "empty.yaml", a_file(rng)])
    yield lambda rng: Case(eval_suite.cli.main, ["study", rng.choice(["run", "retry"]), "study.yaml",
                                                 *an_option(rng, {"--jobs": "number", "--cluster": "path"})])


def an_option(rng: random.Random, options: dict[str, Any]) -> list[str]:
    option = rng.choice(sorted(options))
    kind = options[option]
    values = {"number": NO_NUMBERS, "word": ("word", "\0", "x" * 300, "\ud800", ""),
              "path": ("x" * 300, "\0", "\ud800", "scalar.yaml", "/proc/nowhere", "", "a/" * 2100)}
    return [option] if kind is None else [option, rng.choice(values[kind])]
