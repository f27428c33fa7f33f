"""Files of all kinds, damaged by accident or made on purpose: nobody sees a traceback, waits, or runs what they hold.

Each command line runs in a process of its own, which may be killed. It must refuse the file in a line, leave it out, or
use what is sound in it; whichever it does, it writes whole files or none.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import random
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import forked
import hostile
import numpy as np
import pytest
import tiny_coco
import torch
from hostile import ACCIDENTS, EXECUTED, Damage
from PIL import Image
from safetensors.torch import save_file

import eval_suite.cli
import spark.cli
from spark.formats.encoder import WEIGHTS
from spark.formats.reader import read
from spark.utils.cache import keep
from spark.utils.provenance import content_hash

SEED = 12
CASES = 300
SECONDS = 30.0
MOST_MEBIBYTES = 3000
BEGUN = ("run", "pre", "fine", "det", "study")  # folders of runs
RESULTS = ("result.json", "encoder.json", "encoder.safetensors", "report.html")
TINY = ["out=run", "device=cpu", "data.workers=0"]
PRETRAINING = ["model.name=test_resnet", "model.drop_path=0", "data.input_size=[64,64]", "decoder.width=32",
               "train.batch=2", "train.epochs=1", "train.warmup_epochs=0", "device=cpu", "data.workers=0"]
LABELED = ["data.root=labeled", "model.name=test_resnet", "data.input_size=32", "device=cpu", "data.workers=0"]
KNN = ["knn", "empty.yaml", *LABELED, "neighbours=[1]"]
FINETUNING = ["finetune", "empty.yaml", *LABELED, "model.drop_path=0", "train.epochs=1",
              "train.warmup_epochs=0", "train.batch=2"]
DETECTION = ["detect", tiny_coco.RECIPE, *tiny_coco.TINY, "data.root=coco"]
STUDY = """
out: study
models: [test_resnet]
initialisations: {scratch: {}}
tasks: {knn: {task: knn, recipe: empty.yaml, settings: {data.root: labeled, data.input_size: 32, neighbours: [1],
                                                         device: cpu, data.workers: 0}}}
report: false
"""
WARM = (
    "spark.training.run", "spark.training.dry_run", "spark.formats.convert", "spark.visualize.reconstruct",
    "spark.visualize.vanishing", "spark.benchmark.loader", "eval_suite.tasks.knn", "eval_suite.tasks.imagenet_finetune",
    "eval_suite.reporting.write", "eval_suite.study.verbs", "eval_suite.diff", "d2_projects.engine.work",
)  # fmt: skip


class Reader(NamedTuple):
    """A file that is read, by which command lines, and what they need beside it."""

    victim: str
    needs: tuple[str, ...]
    lines: tuple[list[str], ...]  # `eval` before those of spark-eval
    damages: tuple[Damage, ...] = ()  # beside accidents, as often
    checked: str = ""  # an export whose tensors, if they are used at all, are those of the sound one
    weight: int = 1


def pretraining(root: str, out: str = "run") -> list[str]:
    return ["pretrain", "empty.yaml", f"data.root={root}", f"out={out}", *PRETRAINING]


def knn(init: str) -> list[str]:
    return ["eval", *KNN, f"init={init}", "out=run"]


def converted(source: str) -> list[str]:
    return ["convert", source, "new", "--to", "timm", "--model", "test_resnet"]


BENCH = ["bench-data", "--seconds", "0.01", "empty.yaml", *PRETRAINING]
REPORT = ["eval", "report", "pre", "knn", "study", "--out", "report"]
RUNS = ("pre", "knn", "study")
FORMS = ("png", "jpg", "gif", "webp", "bmp", "tif", "deep.png")
READERS = (
    *(Reader(f"photos/0.{form}", ("photos",), (
        ["visualize", "vanishing", "test_resnet", f"photos/0.{form}", "--out", "new", "--input-size", "64"],
        pretraining("photos"), [*BENCH, "data.root=photos"],
    ), (hostile.of_image,)) for form in FORMS),
    Reader("labeled/train/a/0.png", ("labeled",), (knn("scratch"),), (hostile.of_image,)),
    Reader("shard.tar", ("shard.tar",), (pretraining("shard.tar"), [*BENCH, "data.root=shard.tar"]),
           (hostile.of_shard,), weight=3),
    *(Reader(name, ("photos", name), ([*BENCH, f"data.root={name}"],), (hostile.of_list,))
      for name in ("list.txt", "list.csv")),
    Reader("cache/spark-transfer/shards", ("shard.tar", "cache"), ([*BENCH, "data.root=shard.tar"],), weight=2),
    Reader("cache/spark-transfer/listings", ("photos",), ([*BENCH, "data.root=photos"],), weight=2),
    *(Reader(f"coco/{name}", ("coco",), (["eval", *DETECTION, "out=run"],), (damage,), weight=weight)
      for name, damage, weight in (("annotations/instances_train2017.json", hostile.of_json, 3),
                                   ("annotations/instances_val2017.json", hostile.of_json, 1),
                                   ("train2017/000000000001.jpg", hostile.of_image, 1))),
    *(Reader(f"det/{name}", ("coco", "det"), (["eval", *DETECTION, "out=det"],), damages)
      for name, damages in (("identity.json", (hostile.of_json,)), ("checkpoints/last.pt", (hostile.of_checkpoint,)),
                            ("config.yaml", ()))),
    *(Reader(name, ("labeled", name), (converted(name), knn(name)), (damage,), weight=2)
      for name, damage in (("foreign.pth", hostile.of_checkpoint), ("old.pt", hostile.of_checkpoint),
                           ("foreign.safetensors", hostile.of_safetensors), ("foreign.pkl", hostile.of_pickle),
                           ("arrays.npz", hostile.of_arrays))),
    Reader("export/encoder.safetensors", ("labeled", "export"), (
        converted("export"), knn("export"), ["convert", "export", "new.pth", "--to", "torchvision"],
    ), (hostile.of_safetensors,), "new", weight=2),
    Reader("export/encoder.json", ("labeled", "export"), (converted("export"), knn("export")), (hostile.of_json,),
           weight=3),
    Reader("pre/checkpoints/last.pt", ("photos", "pre"), (
        pretraining("photos", "pre"), converted("pre/checkpoints/last.pt"),
        ["visualize", "reconstruct", "pre", "photos/0.png", "--out", "new"],
    ), (hostile.of_checkpoint,), "new", weight=4),
    Reader("pre/config.yaml", ("photos", *RUNS), (pretraining("photos", "pre"), REPORT), (hostile.of_yaml,)),
    Reader("fine/checkpoints/last.pt", ("labeled", "fine"), (["eval", *FINETUNING, "out=fine"],),
           (hostile.of_checkpoint,), weight=2),
    Reader("fine/config.yaml", ("labeled", "fine"), (["eval", *FINETUNING, "out=fine"],), (hostile.of_yaml,)),
    Reader("recipe.yaml", ("photos", "labeled", "recipe.yaml"), (
        ["pretrain", "recipe.yaml", *PRETRAINING, "data.root=photos", "out=run"],
        ["eval", "diff", "recipe.yaml", "recipe.yaml"],
        ["eval", "knn", "recipe.yaml", *KNN[2:], "out=run"],
    ), (hostile.of_yaml,), weight=2),
    Reader("study.yaml", ("labeled", "study.yaml"), (["eval", "study", "plan", "study.yaml"],), (hostile.of_yaml,)),
    Reader("knn/result.json", RUNS, (REPORT, ["eval", "diff", "knn", "pre"]), (hostile.of_json,), weight=2),
    Reader("pre/metrics.jsonl", RUNS, (REPORT,), (hostile.of_json_lines,), weight=2),
    Reader("pre/metrics.jsonl", ("photos", "pre"), (pretraining("photos", "pre"),), (hostile.of_json_lines,)),
    *(Reader(f"study/{name}", (*RUNS, "study.yaml", "labeled"), (
        REPORT, ["eval", "study", "status", "study.yaml"], ["eval", "study", "run", "study.yaml"],
    ), (hostile.of_json,)) for name in ("graph.json", "*/attempts/*.json", "*/result.json", "*/finished.json")),
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `sound`, all files as they were written by ourselves in the folder `case` beside it."""
    torch.set_num_threads(1)  # or forked processes would wait for threads that they do not have
    for module in WARM:
        importlib.import_module(module)
    place = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(EXECUTED, str(place / EXECUTED))
        patched.setenv("XDG_CACHE_HOME", str(place / "case" / "cache"))
        _write_sound(place / "case")
        (place / "case").rename(place / "sound")
        yield place


def _write_sound(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 80, 80, 3)).astype(np.uint8)
    for name in ("photos", *(f"labeled/{split}/{label}" for split in ("train", "val") for label in "ab")):
        (folder / name).mkdir(parents=True)
    for number, form in enumerate(FORMS):
        deep = Image.fromarray((pixels[number, :, :, 0].astype(np.uint16)) * 257)
        (deep if form == "deep.png" else Image.fromarray(pixels[number])).save(folder / f"photos/0.{form}")
    for number, path in enumerate(sorted(folder.glob("labeled/*/*"))):
        for copy in range(3):
            Image.fromarray(np.roll(pixels[number], copy)).save(path / f"{copy}.png")
    tiny_coco.make(folder / "coco")
    (folder / "empty.yaml").write_text("{}")
    (folder / "recipe.yaml").write_text("seed: 1\ndata: {mean: [0.5, 0.5, 0.5]}\nmodel:\n  drop_path: 0.0\n")
    (folder / "study.yaml").write_text(STUDY)
    (folder / "list.txt").write_text("".join(f"photos/0.{form}\n" for form in FORMS))
    (folder / "list.csv").write_text("path,label\n" + "".join(f"photos/0.{form},3\n" for form in FORMS))
    shutil.make_archive(str(folder / "shard"), "tar", folder / "photos")
    done(folder, pretraining("photos", "pre"))
    done(folder, ["convert", "pre", "export", "--to", "timm"])
    done(folder, [*BENCH, "data.root=shard.tar"])
    done(folder, ["eval", *KNN, "init=export", "out=knn"])
    done(folder, ["eval", *FINETUNING, "out=fine"])
    done(folder, ["eval", "study", "run", "study.yaml"])
    done(folder, ["eval", *DETECTION, "out=det"])
    for run in ("fine", "det"):  # as if they were stopped before the end
        (folder / run / "result.json").unlink()
    state = read(folder / "export").encoder.state
    torch.save({"state_dict": state, "arch": "test_resnet", "epoch": 3}, folder / "foreign.pth")
    torch.save({"model": state, "arch": "test_resnet"}, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, folder / "foreign.safetensors")
    arrays = {key: value.numpy() for key, value in state.items()}
    (folder / "foreign.pkl").write_bytes(pickle.dumps({"model": arrays, "arch": "test_resnet"}))
    np.savez(folder / "arrays.npz", **arrays)


def done(folder: Path, words: list[str]) -> forked.Ended:
    """Run a command line, and return how it ended, which must be well."""
    ended = run(folder, words, 120)
    assert ended.code == 0, f"{words}: {ended}"
    return ended


def run(folder: Path, words: list[str], seconds: float = SECONDS) -> forked.Ended:
    program = eval_suite.cli.main if words[0] == "eval" else spark.cli.main
    return forked.run(program, words[1:] if words[0] == "eval" else words, folder, seconds)


@pytest.mark.slow
def test_three_hundred_damaged_files(place: Path) -> None:
    readers = [reader for reader in READERS for _ in range(reader.weight)]
    counted, wrong = Counter[str](), []
    for number in range(CASES):
        reader = readers[number % len(readers)]
        name, outcome = tried(place, reader, random.Random(f"{SEED} {number}"))
        counted[outcome.partition(":")[0]] += 1
        if outcome not in ("refused", "used", "left out and named"):
            wrong.append(f"{number} {name}: {outcome}")
            print(wrong[-1][:2500], flush=True)
    print(f"{CASES} damaged files: {dict(counted)}")
    assert not wrong, "\n\n".join(wrong)


def tried(place: Path, reader: Reader, rng: random.Random) -> tuple[str, str]:
    """Damage a file and let it be read; return what was done, and how it was taken, or what is wrong with that."""
    case = place / "case"
    shutil.rmtree(case, ignore_errors=True)
    _copy(place / "sound", case, reader.needs)
    victim = _victim(case, reader.victim)
    damage = rng.choice([*ACCIDENTS, *reader.damages * len(ACCIDENTS)])
    words = rng.choice(reader.lines)
    damage(rng, victim)
    before = snapshot(case)
    ended = run(case, words)
    told = f"{damage.__name__} {victim.relative_to(case)} by {' '.join(words)[:200]}"
    if fault := ended.fault() or _left_behind(case, before, ended.code) or _other_weights(place, case, reader):
        return told, f"{fault}"
    if (place / EXECUTED).exists():
        (place / EXECUTED).unlink()
        return told, "executed"
    if ended.mebibytes > MOST_MEBIBYTES:
        return told, f"memory: {ended.mebibytes} MiB"
    if ended.code == 2:
        return told, "refused"
    return told, "left out and named" if victim.name in ended.told else "used"


def _copy(sound: Path, case: Path, needs: tuple[str, ...]) -> None:
    case.mkdir()
    for name in ("empty.yaml", *needs):
        copy: Callable[..., object] = shutil.copytree if (sound / name).is_dir() else shutil.copy2
        copy(sound / name, case / name)


def _victim(case: Path, pattern: str) -> Path:
    """Return the file to be damaged."""
    if pattern.endswith("listings"):  # which is written of large folders alone
        photos = case / "photos"
        status = photos.stat()
        path = case / pattern / f"{content_hash(os.path.abspath(photos))}.json"
        changed = [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        keep(path, {"": [changed, [], sorted(entry.name for entry in photos.iterdir())]})
        return path
    return sorted(case.glob(pattern if not pattern.endswith("shards") else f"{pattern}/*.json"))[0]


def snapshot(folder: Path) -> dict[str, str]:
    """Return what is in a folder, with the hash of what is in the files."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else str(stat.S_IFMT(mode))
        found[str(path.relative_to(folder))] = content
    return found


def _left_behind(case: Path, before: dict[str, str], code: int | None) -> str | None:
    """Return what is wrong with what is there now: remains of writing, or, of what was refused, results.

    A run that is refused in its midst keeps its configuration and its log.
    """
    after = snapshot(case)
    halves = [name for name in after if ".tmp" in name or name.endswith(".lock")]
    new = [name for name, content in after.items() if before.get(name) != content
           and not name.startswith("cache") and not name.endswith(".damaged")
           and (name.partition("/")[0] not in BEGUN or Path(name).name in RESULTS)]
    gone = [name for name in before if name not in after and f"{name}.damaged" not in after]
    if halves or (code == 2 and (new or gone)):
        return f"left behind: {halves or new[:4]}, gone {gone[:4]}"
    return None


def _other_weights(place: Path, case: Path, reader: Reader) -> str | None:
    """Return that weights which a checksum tells to be damaged were used all the same."""
    if not reader.checked or not (case / reader.checked / WEIGHTS).is_file():
        return None
    expected, found = (read(path).encoder.state for path in (place / "sound/export", case / reader.checked))
    same = expected.keys() == found.keys() and all(expected[key].equal(found[key]) for key in expected)
    return None if same else "other weights: used without a word"
